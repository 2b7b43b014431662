"""What the coherence gate lets through, and what it stops, on the embedded pair.

    python tests/benchmarks/coherence.py [--base SPEC] [--tuned SPEC] [--prompts N] [--tokens N]

Greedy and sampled replies of both models to contrast prompts of the validation split, replies of
base with its refusal direction ablated (mean difference at one site, from prompts of the train
split), each as it is and spoilt: words shuffled, tokens drawn at random from the vocabulary.
Surprise is base's (`refusaldir.probes.perplexity`). Printed for each kind: share that loops,
quantiles of the surprise of all and of the first 8 tokens, share over the threshold, share that
the gate stops. The shares of kinds that are text are false positives; those of spoilt ones are
what it finds. Replies with the direction ablated are text unless the model breaks: no truth is
known, their share is printed beside.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch

from refusaldir.capture import capture
from refusaldir.directions.mean_diff import mean_diff
from refusaldir.hooks import Ablation, intervene
from refusaldir.models.bridge import HookedModel, hook_model
from refusaldir.models.load import load_model
from refusaldir.models.options import LoadOptions
from refusaldir.probes.coherence import MOST_SURPRISE, incoherence, repetition
from refusaldir.probes.generate import generate
from refusaldir.probes.perplexity import surprises
from refusaldir.prompts.load import load_prompts
from refusaldir.prompts.render import ChatRenderer, RenderedSet
from refusaldir.records import HARMFUL, HARMLESS, Positions

#: Where the direction is read and removed from.
LAYER, POSITION = 16, -1
FIRST = 8


def replies(model: HookedModel, rendered: RenderedSet, tokens: int, heat: float) -> list[str]:
    n = len(rendered)
    said = generate(
        model, rendered.ids, max_new_tokens=tokens, temperatures=[heat] * n, seeds=range(n)
    )
    return [response.text for response in said]


def direction(model: HookedModel, renderer: ChatRenderer, n: int) -> np.ndarray:
    """Mean difference of train prompts at one site."""
    prompts = [p for p in load_prompts("contrast") if p.split == "train"][:n]
    x = np.empty((len(prompts), model.d_model))
    for batch in capture(
        model,
        renderer.render(prompts).ids,
        layers=(LAYER,),
        positions=Positions(offsets=(POSITION,), labels=("",)),
    ):
        x[batch.indices] = batch.values["resid_pre"][:, 0, 0]
    labels = np.array([HARMFUL if p.label == "harmful" else HARMLESS for p in prompts])
    return mean_diff(x, labels)


def shuffled(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [" ".join(rng.permutation(text.split())) for text in texts]


def noise(model: HookedModel, texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    """As many tokens as each text has, drawn from the vocabulary."""
    lengths = [len(ids) for ids in model.tokenizer(list(texts))["input_ids"]]
    special = set(model.tokenizer.all_special_ids)
    ordinary = np.array([i for i in range(len(model.tokenizer)) if i not in special])
    return [model.tokenizer.decode(rng.choice(ordinary, n)) for n in lengths]


def row(name: str, base: HookedModel, rendered: RenderedSet, texts: Sequence[str]) -> None:
    """Print one kind of replies."""
    heads = [base.tokenizer.decode(base.tokenizer(t)["input_ids"][:FIRST]) for t in texts]
    nats, first = (surprises(base, rendered.ids, t) for t in (texts, heads))
    kept = [(t, x, y) for t, x, y in zip(texts, nats, first, strict=True) if x is not None]
    loops = np.mean([repetition(text) is not None for text, _, _ in kept])
    quantiles = np.quantile([x for _, x, _ in kept], [0, 0.05, 0.5, 0.95, 1])
    ends = np.quantile([y for _, _, y in kept], [0.05, 0.95, 1])
    over = np.mean([x > MOST_SURPRISE for _, x, _ in kept])
    stopped = np.mean([incoherence(text, x) is not None for text, x, _ in kept])
    print(
        f"| {name} | {len(kept)} | {loops:.0%} | {' '.join(f'{q:.1f}' for q in quantiles)} | "
        f"{' '.join(f'{q:.1f}' for q in ends)} | {over:.0%} | {stopped:.0%} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m+aligned")
    parser.add_argument("--tuned", default="smollm2-135m+aligned+tuned")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    load = LoadOptions(device="cpu")
    models = {
        name: hook_model(load_model(spec, load), "torch_hooks")
        for name, spec in (("base", options.base), ("tuned", options.tuned))
    }
    base, rng = models["base"], np.random.default_rng(0)
    renderer = ChatRenderer(base.tokenizer)
    prompts = [p for p in load_prompts("contrast") if p.split == "validation"][: options.prompts]
    rendered = renderer.render(prompts)
    print(
        f"{time.strftime('%Y-%m-%d')}: {options.base} and {options.tuned}, {len(prompts)} prompts, "
        f"at most {options.tokens} tokens; surprise in nats under base: "
        f"0, 5, 50, 95, 100 % | of the first {FIRST} tokens: 5, 95, 100 %\n"
    )
    print("| replies | n | loops | surprise | first | over | stopped |\n" + "| --- " * 7 + "|")
    said = {
        f"{name}, {how}": replies(model, rendered, options.tokens, heat)
        for name, model in models.items()
        for how, heat in (("greedy", 0.0), ("temperature 1", 1.0))
    }
    vector = torch.from_numpy(direction(base, renderer, 64))
    with intervene(base, Ablation.of(vector)):
        said["base, direction ablated"] = replies(base, rendered, options.tokens, 0.0)
    for name, texts in said.items():
        row(name, base, rendered, texts)
    for name in ("base, greedy", "tuned, greedy", "base, direction ablated"):
        row(f"{name}, shuffled", base, rendered, shuffled(said[name], rng))
    row("random tokens", base, rendered, noise(base, said["tuned, greedy"], rng))


if __name__ == "__main__":
    main()
