"""Path attribution against a plain forward pass and against the obvious ways, in one run.

    python tests/benchmarks/bench_path.py [--base SPEC] [--tuned SPEC] [--full] [--prompts N]

Ways compared, each on the same batch at the same point of the line:
  forward            outcome of the batch, no gradient
  refusaldir         slope of every prompt's outcome along every change
  autograd, mean     ``param.grad`` of whole weights, one backward pass a batch: means only
  autograd, prompts  the same with one backward pass a prompt: what refusaldir gives
The obvious ways hold a third model at that point. The largest difference of their slopes to
refusaldir's is printed, then nodes, gap and the first layers of the whole attribution. ``--full``
saves tuned as a whole model first, so that the pair is two sets of weights.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from refusaldir.batching import TokenBatch, collate
from refusaldir.layers.outcomes import RefusalScore
from refusaldir.layers.path.attribution import attribute
from refusaldir.layers.path.line import on_line
from refusaldir.layers.weight_pair import WeightPair
from refusaldir.models.bridge import open_model
from refusaldir.models.options import LoadOptions
from refusaldir.prompts.load import load_prompts
from refusaldir.prompts.render import ChatRenderer

T = TypeVar("T")
TAU = 0.3


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """CPU time, which other programs on the machine do not add to."""
    began = time.process_time()
    value = run()
    return time.process_time() - began, value


def between(base: str, tuned: str, options: LoadOptions):
    """A model at one point of the line, and the change of every parameter."""
    middle, other = (open_model(spec, options, backend="torch_hooks") for spec in (base, tuned))
    deltas = {}
    for name, parameter in middle.hf.named_parameters():
        delta = other.hf.get_parameter(name).data - parameter.data
        if delta.any():
            deltas[name] = delta
            parameter.data += TAU * delta
            parameter.requires_grad_(True)
    return middle, deltas


def slopes_of(middle, deltas, value: torch.Tensor, retain: bool) -> np.ndarray:
    parameters = [middle.hf.get_parameter(name) for name in deltas]
    grads = torch.autograd.grad(value, parameters, retain_graph=retain)
    return np.array([float((g * d).sum()) for g, d in zip(grads, deltas.values(), strict=True)])


def obvious_ways(middle, deltas, outcome: RefusalScore, batch: TokenBatch):
    """Slopes of the mean in one backward pass, and of every prompt in one each."""

    def mean() -> np.ndarray:
        return slopes_of(middle, deltas, outcome.of(middle, batch, None).mean(), False)

    def each() -> np.ndarray:
        values = outcome.of(middle, batch, None)
        return np.stack([slopes_of(middle, deltas, value, True) for value in values])

    return mean, each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m+aligned")
    parser.add_argument("--tuned", default="smollm2-135m+aligned+tuned")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--refusal-tokens", default="I,Sorry")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--nodes", type=int)
    args = parser.parse_args()
    options = LoadOptions(dtype="float32", device="cpu")

    with tempfile.TemporaryDirectory() as folder:
        tuned = args.tuned
        if args.full:
            whole = open_model(tuned, options, backend="torch_hooks")
            whole.hf.save_pretrained(folder)
            whole.tokenizer.save_pretrained(folder)
            tuned = folder
        pair = WeightPair.open(args.base, tuned, options)
        tokenizer = pair.model.tokenizer
        refusal = [tokenizer.encode(t)[0] for t in args.refusal_tokens.split(",")]
        prompts = load_prompts("contrast", limit=args.prompts)
        rendered = ChatRenderer(tokenizer).render(prompts)
        rows = [i for i, prompt in enumerate(rendered.prompts) if prompt.label == "harmful"]
        sequences = [list(rendered.ids[i]) for i in rows[: args.prompts]]
        outcome = RefusalScore(refusal)
        batch = collate(
            sequences,
            sorted(range(len(sequences)), key=lambda i: -len(sequences[i])),
            0,
            pair.model.device,
        )
        kind = type(pair.switches[0]).__name__
        print(f"{len(sequences)} prompts, {batch.input_ids.numel()} tokens, {kind}, "
              f"{len(pair.changes)} changes, {torch.get_num_threads()} threads")  # fmt: skip

        plain = ours = np.inf
        for _ in range(args.repeats):  # in turn, so that both meet the same machine
            with torch.inference_mode():
                plain = min(plain, timed(lambda: outcome.of(pair.model, batch, None))[0])
            with on_line(pair) as line:
                took, slopes = timed(lambda: line.slopes(TAU, batch, outcome))
            ours = min(ours, took)
        print(f"forward            {plain:7.2f} s")
        print(f"refusaldir         {ours:7.2f} s  {ours / plain:5.2f} forward passes")

        middle, deltas = between(args.base, tuned, options)

        ways = obvious_ways(middle, deltas, outcome, batch)
        for name, way in zip(("mean", "prompts"), ways, strict=True):
            took, found = timed(way)
            total = found.sum(axis=-1)
            own = slopes.numpy().sum(axis=1)
            own = own.mean() if name == "mean" else own
            off = np.abs(total - own).max() / np.abs(own).max()
            print(f"autograd, {name:8s} {took:7.2f} s  {took / plain:5.2f} forward passes, "
                  f"largest difference of sums {off:.1e}")  # fmt: skip
        del middle, deltas, ways

        took, result = timed(lambda: attribute(pair, sequences, outcome, nodes=args.nodes))
        print(f"score {result.base.mean():.3f} -> {result.tuned.mean():.3f}, "
              f"{result.nodes} nodes, gap {result.relative_gap:.1e}, "
              f"worst prompt {np.abs(result.prompt_gaps).max():.1e}, "
              f"{took:.1f} s")  # fmt: skip
        by_layer = result.by_layer.mean(axis=0)
        for layer in np.argsort(-np.abs(by_layer))[:6]:
            parts = {k: v[:, layer].mean() for k, v in result.by_component.items()}
            print(f"  layer {layer:2d} {by_layer[layer]:+.3f}  "
                  + "  ".join(f"{k} {v:+.3f}" for k, v in parts.items()))  # fmt: skip


if __name__ == "__main__":
    main()
