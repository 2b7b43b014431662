"""Causal selection against the obvious way, same model, same prompts, same run.

    python tests/benchmarks/bench_select.py [--model SPEC] [--obvious-candidates 6]
    python tests/benchmarks/bench_select.py --layers 9,12,15 --obvious-candidates 0

The obvious way is three full sweeps a candidate (bypass, induce, KL): left-padded batches of 32
through the HF model with full logits, hooks on every block. It takes as long for one candidate as
for another, so by default only a random sample and every candidate whose KL passes are run and
the time is scaled by the number of candidates; ``--obvious-candidates 0`` runs all. refusaldir
always runs all of them. Printed: both times and their ratio (CPU time too, for a busy machine),
the largest difference of scores, and whether the choice is the same: where only a sample was run,
whether no candidate of it beats the chosen one.
"""

import argparse
import time
from collections import Counter
from contextlib import contextmanager

import numpy as np
import torch
from bench_capture import left_padded

from refusaldir.capture import capture
from refusaldir.directions.candidates import Thresholds
from refusaldir.directions.causal import select_causal
from refusaldir.directions.divergence import kl_divergence
from refusaldir.models.bridge import hook_model
from refusaldir.models.load import load_model
from refusaldir.models.options import LoadOptions
from refusaldir.prompts.load import load_prompts
from refusaldir.prompts.render import ChatRenderer
from refusaldir.refusal_score import refusal_scores, score_of_logits

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


def clock():
    """Wall time and CPU time of all threads, which other processes do not disturb."""
    return np.array([time.perf_counter(), time.process_time()])


def obvious(hf, sites, vectors, harmful, harmless, tokens, pad):
    """Bypass, induce and KL by site; seconds a candidate, and once."""
    began = clock()
    clean = sweep(hf, harmless, pad).double().softmax(-1)
    table, once = {}, clock() - began
    for site in sites:
        vector = torch.from_numpy(vectors[site]).float()
        unit = vector / vector.norm()
        with hooks(hf, unit=unit):
            bypass = score_of_logits(sweep(hf, harmful, pad), tokens).mean()
            changed = sweep(hf, harmless, pad).double().softmax(-1)
        with hooks(hf, add=(site.layer, vector)):
            induce = score_of_logits(sweep(hf, harmless, pad), tokens).mean()
        kl = kl_divergence(clean, changed).mean()
        table[site] = tuple(map(float, (bypass, induce, kl)))
    return table, (clock() - began - once) / len(table), once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m+aligned")
    parser.add_argument("--layers", default="all", help="comma-separated, or: all")
    parser.add_argument("--positions", default="post", help="offsets, or: post")
    parser.add_argument("--obvious-candidates", type=int, default=6, help="0 for all")
    parser.add_argument("--no-filter", action="store_true", help="keep prompts treated wrongly")
    parser.add_argument("--kl", type=float, default=0.1)
    parser.add_argument("--induce", type=float, default=0.0)
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
    positions = renderer.positions(args.positions)
    # Torch hooks, so that the obvious way runs the model as Hugging Face made it.
    hf = loaded.hf
    model = hook_model(loaded, "torch_hooks")
    kept = {}
    for name, prompts in sets.items():
        y = np.asarray(prompts.labels)
        good = (refusal_scores(model, ids[name], tokens) > 0) == (y == 1)
        kept[name] = [np.flatnonzero((good | args.no_filter) & (y == wanted)) for wanted in (0, 1)]
    harmless, harmful = (
        [ids["validation"][i] for i in rows[: args.validation]] for rows in kept["validation"]
    )
    x = np.zeros((len(ids["train"]), len(layers), len(positions.offsets), model.d_model))
    for batch in capture(model, ids["train"], layers=layers, positions=positions):
        x[batch.indices] = batch.values["resid_pre"]
    directions = x[kept["train"][1]].mean(0) - x[kept["train"][0]].mean(0)

    limits = Thresholds(kl=args.kl, induce=args.induce, depth=1.0)
    began = clock()
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
    fast = clock() - began
    sites = [c.site for c in choice.candidates]
    vectors = {
        site: directions[layers.index(site.layer), positions.offsets.index(site.position)]
        for site in sites
    }
    mine = choice.chosen.site if choice.chosen else None
    sample = sites
    if args.obvious_candidates:
        drawn = np.random.default_rng(0).permutation(len(sites))[: args.obvious_candidates]
        passing = [c.site for c in choice.candidates if c.induce is not None]
        sample = list(dict.fromkeys(passing + [sites[i] for i in drawn]))
    table, each, once = obvious(hf, sample, vectors, harmful, harmless, tokens, pad)
    slow = once + each * len(sites)
    valid = {s: v for s, v in table.items() if v[2] <= limits.kl and v[1] >= limits.induce}
    best = min(valid, key=lambda s: valid[s][0]) if valid else None
    gaps, wrong = [], []
    for c in choice.candidates:
        if c.site not in table:
            continue
        bypass, induce, kl = table[c.site]
        if c.kl_exact:
            gaps.append(abs(c.kl - kl))
        elif not limits.kl < c.kl <= kl + 1e-3:
            wrong.append(c.site)
        gaps += [abs(a - b) for a, b in ((c.bypass, bypass), (c.induce, induce)) if a is not None]
        if c.valid != (c.site in valid):
            wrong.append(c.site)
    counts = Counter(c.dropped or "valid" for c in choice.candidates)
    print(f"{len(sites)} candidates, {len(harmful)} + {len(harmless)} prompts, {args.model}")
    print(f"dropped: {dict(counts)}")
    scaled = f" (scaled from {len(table)} candidates)" if len(table) < len(sites) else ""
    nearest = f" (nearest {choice.nearest.site})" if choice.nearest else ""
    for name, took, chosen in (
        ("obvious", slow, f"{best}{scaled}"),
        ("refusaldir", fast, f"{mine}{nearest}"),
    ):
        print(f"{name:11}{took[0]:8.1f} s wall {took[1]:8.1f} s CPU   chooses {chosen}")
    print(f"ratio      {slow[0] / fast[0]:8.1f}x     {slow[1] / fast[1]:8.1f}x")
    print(f"same choice{' in the sample' * bool(scaled)}: {best == mine}")
    print(f"largest difference of scores: {max(gaps, default=0):.1e}; judged otherwise: {wrong}")


if __name__ == "__main__":
    main()
