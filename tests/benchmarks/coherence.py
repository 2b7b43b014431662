"""What the coherence gate lets through, and what it stops, on the embedded pair.

    python tests/benchmarks/coherence.py [--base SPEC] [--tuned SPEC] [--prompts N] [--tokens N]

Greedy replies of both models to contrast prompts of the validation split, the same spoilt (words
shuffled, tokens drawn at random from the vocabulary), their first tokens alone, replies of base
with its refusal direction ablated (mean difference at one site, from prompts of the train split),
and replies at temperature 1. Surprise is base's (`refusaldir.probes.generation.perplexity`).
Printed for each kind: share that loops, quantiles of the surprise, share over the threshold, share
that the gate stops. The shares of greedy replies are false positives but for those that do loop,
the shares of spoilt ones what it finds. Of ablated and hot replies no truth is known.
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
from refusaldir.probes.generation.generate import generate
from refusaldir.probes.generation.perplexity import surprises
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
    nats = surprises(base, rendered.ids, texts)
    kept = [(text, x) for text, x in zip(texts, nats, strict=True) if x is not None]
    loops = np.mean([repetition(text) is not None for text, _ in kept])
    quantiles = np.quantile([x for _, x in kept], [0, 0.05, 0.5, 0.95, 1])
    over = np.mean([x > MOST_SURPRISE for _, x in kept])
    stopped = np.mean([incoherence(text, x) is not None for text, x in kept])
    print(
        f"| {name} | {len(kept)} | {loops:.0%} | {' '.join(f'{q:.1f}' for q in quantiles)} | "
        f"{over:.0%} | {stopped:.0%} |",
        flush=True,
    )


def beginnings(model: HookedModel, texts: Sequence[str]) -> list[str]:
    return [model.tokenizer.decode(model.tokenizer(t)["input_ids"][:FIRST]) for t in texts]


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
        f"at most {options.tokens} tokens; surprise in nats under base: 0, 5, 50, 95, 100 %\n"
    )
    print("| replies | n | loops | surprise | over | stopped |\n" + "| --- " * 6 + "|")
    for name, model in models.items():
        greedy = replies(model, rendered, options.tokens, 0.0)
        row(f"{name}, greedy", base, rendered, greedy)
        row(f"{name}, words shuffled", base, rendered, shuffled(greedy, rng))
        row(f"{name}, first {FIRST} tokens", base, rendered, beginnings(base, greedy))
    row("random tokens", base, rendered, noise(base, greedy, rng))
    vector = torch.from_numpy(direction(base, renderer, 64))
    with intervene(base, Ablation.of(vector)):
        ablated = replies(base, rendered, options.tokens, 0.0)
    row("base, direction ablated", base, rendered, ablated)
    for name, model in models.items():
        hot = replies(model, rendered, options.tokens, 1.0)
        row(f"{name}, temperature 1", base, rendered, hot)


if __name__ == "__main__":
    main()
