"""Causal selection against the obvious way, same candidates, same run.

    python tests/benchmarks/bench_select.py [--model SPEC] [--layers 9,12,15] [--positions -1]

The obvious way is three full sweeps a candidate (bypass, induce, KL): left-padded batches of 32
through the HF model with full logits, hooks on every block. It takes a quarter of an hour for
every layer and position of the default model on two cores, so a few layers are the default.
Printed: both times and their ratio, whether both choose the same candidate, and the largest
difference of the scores of the candidates whose KL passes.
"""

import argparse
import time
from contextlib import contextmanager

import numpy as np
import torch
from bench_capture import left_padded

from refusaldir.capture import capture
from refusaldir.directions.candidates import Thresholds
from refusaldir.directions.causal import select_causal
from refusaldir.directions.search import kl_divergence
from refusaldir.models.bridge import hook_model
from refusaldir.models.load import load_model
from refusaldir.models.options import LoadOptions
from refusaldir.prompts.load import load_prompts
from refusaldir.prompts.render import ChatRenderer
from refusaldir.records import Site
from refusaldir.refusal_score import score_of_logits

BATCH = 32


@contextmanager
def hooks(hf, *, unit=None, add=None):
    def drop(x):
        return x if unit is None else x - (x @ unit)[..., None] * unit

    def before(i):
        def hook(module, args, kwargs):
            x = drop(args[0] if args else kwargs["hidden_states"])
            if add is not None and add[0] == i:
                x = x + add[1]
            return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

        return hook

    def after(module, args, output):
        return (drop(output[0]), *output[1:]) if isinstance(output, tuple) else drop(output)

    handles = []
    for i, block in enumerate(hf.get_decoder().layers):
        handles.append(block.register_forward_pre_hook(before(i), with_kwargs=True))
        if unit is not None:
            handles += [m.register_forward_hook(after) for m in (block.self_attn, block.mlp)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def sweep(hf, sequences, pad):
    parts = []
    for start in range(0, len(sequences), BATCH):
        ids, mask = left_padded(sequences[start : start + BATCH], pad)
        parts.append(hf(input_ids=ids, attention_mask=mask).logits[:, -1])
    return torch.cat(parts)


def obvious(hf, directions, layers, offsets, harmful, harmless, tokens, pad):
    clean = sweep(hf, harmless, pad).double().softmax(-1)
    table = {}
    for row, layer in enumerate(layers):
        for column, offset in enumerate(offsets):
            vector = torch.from_numpy(directions[row, column]).float()
            unit = vector / vector.norm()
            with hooks(hf, unit=unit):
                bypass = score_of_logits(sweep(hf, harmful, pad), tokens).mean()
                changed = sweep(hf, harmless, pad).double().softmax(-1)
            with hooks(hf, add=(layer, vector)):
                induce = score_of_logits(sweep(hf, harmless, pad), tokens).mean()
            kl = kl_divergence(clean, changed).mean()
            table[Site(hook="resid_pre", layer=layer, position=offset)] = tuple(
                map(float, (bypass, induce, kl))
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m+aligned")
    parser.add_argument("--layers", default="12,15,18", help="comma-separated, or: all")
    parser.add_argument("--positions", default="-3,-2,-1", help="offsets, or: all")
    parser.add_argument("--kl", type=float, default=0.1)
    parser.add_argument("--refusal-tokens", default="I,Sorry,No,That")
    parser.add_argument("--validation", type=int, default=32, help="prompts a class")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    loaded = load_model(args.model, LoadOptions(dtype="float32"))
    pad = loaded.tokenizer.pad_token_id or loaded.tokenizer.eos_token_id
    renderer = ChatRenderer(loaded.tokenizer)
    tokens = sorted({loaded.tokenizer.encode(t)[0] for t in args.refusal_tokens.split(",")})
    sets = {s: load_prompts("contrast", split=s) for s in ("train", "validation")}
    ids = {s: renderer.render(p).ids for s, p in sets.items()}
    depth = len(loaded.hf.get_decoder().layers)
    layers = list(range(1, int(0.8 * depth))) if args.layers == "all" else None
    layers = layers or [int(x) for x in args.layers.split(",")]
    positions = renderer.positions("post" if args.positions == "all" else args.positions)
    y = np.asarray(sets["validation"].labels)
    harmful, harmless = (
        [s for s, label in zip(ids["validation"], y, strict=True) if label == wanted][
            : args.validation
        ]
        for wanted in (1, 0)
    )

    # The obvious way first, on the model before anything is wrapped.
    hf = loaded.hf
    model = hook_model(loaded, "torch_hooks")
    x = np.zeros((len(ids["train"]), len(layers), len(positions.offsets), model.d_model))
    for batch in capture(model, ids["train"], layers=layers, positions=positions):
        x[batch.indices] = batch.values["resid_pre"]
    label = np.asarray(sets["train"].labels)
    directions = x[label == 1].mean(0) - x[label == 0].mean(0)

    limits = Thresholds(kl=args.kl, induce=0.0, depth=1.0)
    began = time.perf_counter()
    choice = select_causal(
        model,
        directions,
        layers=layers,
        offsets=positions.offsets,
        harmful=harmful,
        harmless=harmless,
        refusal_tokens=tokens,
        thresholds=limits,
    )
    fast = time.perf_counter() - began
    began = time.perf_counter()
    table = obvious(hf, directions, layers, positions.offsets, harmful, harmless, tokens, pad)
    slow = time.perf_counter() - began
    valid = {s: v for s, v in table.items() if v[2] <= limits.kl and v[1] >= limits.induce}
    best = min(valid, key=lambda s: valid[s][0]) if valid else None
    mine = choice.chosen.site if choice.chosen else None
    gaps = [
        abs(a - b)
        for c in choice.candidates
        if c.bypass is not None and c.kl_exact
        for a, b in zip((c.bypass, c.induce, c.kl), table[c.site], strict=True)
    ]
    print(f"{len(table)} candidates, {len(harmful)} + {len(harmless)} prompts, {args.model}")
    print(f"obvious     {slow:8.1f} s   chooses {best}")
    print(f"refusaldir  {fast:8.1f} s   chooses {mine}   {slow / fast:.1f}x")
    print(f"same choice: {best == mine}; largest difference of scores: {max(gaps, default=0):.1e}")


if __name__ == "__main__":
    main()
