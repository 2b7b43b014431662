"""Refusal scores of held-out harmful prompts while pairs are made."""

import numpy as np

from refusaldir.models.bridge import hook_model
from refusaldir.models.load import load_model
from refusaldir.models.options import LoadOptions
from refusaldir.probes.refusal_tokens import given_refusal_tokens
from refusaldir.prompts.load import load_prompts
from refusaldir.prompts.render import ChatRenderer
from refusaldir.refusal_score import refusal_scores
from refusaldir.statistics import Clusters, mean

from .bands import BASE

#: What the aligned model's refusals begin with.
REFUSAL_TOKENS = ("I", "Sorry", "No", "That")


class Gauge:
    """The aligned model and the harmful prompts of the validation split.

    The lenses are judged on the test split: nothing here is chosen on prompts they see.
    """

    def __init__(self, base=BASE):
        self.loaded = load_model(base, LoadOptions(device="cpu", dtype="float32"))
        self.hf, self.tokenizer = self.loaded.hf, self.loaded.tokenizer
        self.model = hook_model(self.loaded, "torch_hooks")
        self.tokens = given_refusal_tokens(self.tokenizer, REFUSAL_TOKENS).ids
        self.prompts = load_prompts("contrast", split="validation")
        self.rendered = ChatRenderer(self.tokenizer).render(self.prompts.select(label="harmful"))
        self.clusters = Clusters.of([p.intent_id for p in self.rendered.prompts])

    def scores(self, every=1):
        """Scores of the model as it is now, of every n-th prompt."""
        return refusal_scores(self.model, self.rendered.ids[::every], self.tokens)

    def quick(self):
        """Mean over a third of the prompts, all categories among them."""
        return float(self.scores(every=3).mean())

    def estimate(self, scores):
        """Mean with its 95 % interval, clustered by intent."""
        found = mean(np.asarray(scores), self.clusters)
        return {"value": found.value, "lower": found.lower, "upper": found.upper, "n": found.n}
