"""Capture against the obvious ways, same prompts, same run.

    python tests/benchmarks/bench_capture.py [--model SPEC] [--prompts-per-class N] [--dtype D]

Ways compared:
  refusaldir       shared prefix once, suffixes by length, no logits, blocks only
  hf hooks         left-padded batches of 32 through the HF model with logits, hooks on each block
  transformer_lens `TransformerBridge.boot_transformers` + `run_with_cache`, batches of 32
Each way runs the same rendered prompts and keeps resid_pre of every layer at the same positions;
the largest relative difference to refusaldir's values is printed beside its time.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from refusaldir.capture import capture
from refusaldir.models.bridge import hook_model
from refusaldir.models.load import load_model
from refusaldir.models.options import LoadOptions
from refusaldir.prompts.load import load_prompts
from refusaldir.prompts.render import ChatRenderer
from refusaldir.records import Positions

BATCH = 32


def left_padded(sequences: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = torch.tensor(sequence)
        mask[row, longest - len(sequence) :] = 1
    return ids, mask


def obvious(model, sequences, positions: Positions, pad: int) -> np.ndarray:
    layers = model.get_decoder().layers
    offsets = list(positions.offsets)
    rows: list[torch.Tensor] = []
    kept: list[torch.Tensor] = []
    handles = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: kept.append(
                (args[0] if args else kwargs["hidden_states"])[:, offsets].clone()
            ),
            with_kwargs=True,
        )
        for layer in layers
    ]
    with torch.inference_mode():
        for start in range(0, len(sequences), BATCH):
            ids, mask = left_padded(sequences[start : start + BATCH], pad)
            kept.clear()
            model(input_ids=ids, attention_mask=mask)
            rows.append(torch.stack(kept, dim=1))
    for handle in handles:
        handle.remove()
    return torch.cat(rows).float().numpy()


def lens(bridge, sequences, positions: Positions, pad: int) -> np.ndarray:
    names = [f"blocks.{i}.hook_resid_pre" for i in range(bridge.cfg.n_layers)]
    offsets = list(positions.offsets)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(sequences), BATCH):
            ids, mask = left_padded(sequences[start : start + BATCH], pad)
            _, cache = bridge.run_with_cache(ids, attention_mask=mask, names_filter=names)
            rows.append(torch.stack([cache[name][:, offsets] for name in names], dim=1))
    return torch.cat(rows).float().numpy()


def ours(model, sequences, positions: Positions) -> np.ndarray:
    out = None
    for batch in capture(model, sequences, positions=positions):
        values = batch.values["resid_pre"]
        if values.dtype == np.uint16:
            values = torch.from_numpy(values).view(torch.bfloat16).float().numpy()
        if out is None:
            out = np.empty((len(sequences), *values.shape[1:]), np.float32)
        out[batch.indices] = values
    assert out is not None
    return out


def timed(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    began = time.perf_counter()
    values = run()
    return time.perf_counter() - began, values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m+aligned")
    parser.add_argument("--prompts-per-class", type=int, default=288)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--no-lens", action="store_true", help="leave TransformerLens out")
    args = parser.parse_args()

    loaded = load_model(args.model, LoadOptions(dtype=args.dtype, device="cpu"))
    renderer = ChatRenderer(loaded.tokenizer)
    rendered = renderer.render(load_prompts("contrast", limit=args.prompts_per_class))
    sequences, positions = rendered.ids, renderer.positions("post")
    pad = loaded.tokenizer.pad_token_id or 0
    tokens = sum(map(len, sequences))
    threads = torch.get_num_threads()
    print(f"{len(sequences)} prompts, {tokens} tokens, {args.dtype}, {threads} threads")

    # The obvious way first: hooking the model in place must not slow its rival down.
    seconds: dict[str, list[float]] = {"hf hooks": []}
    for _ in range(args.repeats):
        took, reference = timed(lambda: obvious(loaded.hf, sequences, positions, pad))
        seconds["hf hooks"].append(took)
    model = hook_model(loaded)
    seconds["refusaldir"] = []
    for _ in range(args.repeats):
        took, values = timed(lambda: ours(model, sequences, positions))
        seconds["refusaldir"].append(took)
    difference = {"hf hooks": relative(reference, values)}
    if not args.no_lens:
        from transformer_lens.model_bridge import TransformerBridge

        fresh = load_model(args.model, LoadOptions(dtype=args.dtype, device="cpu"))
        bridge = TransformerBridge.boot_transformers(
            fresh.hf.config._name_or_path or "llama",
            hf_model=fresh.hf,
            tokenizer=fresh.tokenizer,
            device="cpu",
            dtype=getattr(torch, args.dtype),
        )
        took, other = timed(lambda: lens(bridge, sequences, positions, pad))
        seconds["transformer_lens"] = [took]
        difference["transformer_lens"] = relative(other, values)

    best = min(seconds["refusaldir"])
    for name, took in seconds.items():
        line = f"{name:18s} {min(took):7.2f} s  {tokens / min(took):8.0f} prompt tokens/s"
        if name != "refusaldir":
            line += (
                f"  ratio {min(took) / best:4.2f}x  max relative difference {difference[name]:.1e}"
            )
        print(line)


def relative(reference: np.ndarray, values: np.ndarray) -> float:
    """Largest over layers of ‖difference‖ / ‖reference‖ (Frobenius)."""
    gap = np.square(reference.astype(np.float64) - values).sum(axis=(0, 2, 3))
    size = np.square(reference.astype(np.float64)).sum(axis=(0, 2, 3))
    return float(np.sqrt(gap / size).max())


if __name__ == "__main__":
    main()
