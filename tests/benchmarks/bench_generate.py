"""Greedy generation against Hugging Face `generate`, same prompts, same run, turns taken.

    python tests/benchmarks/bench_generate.py [--model SPEC] [--prompts N] [--tokens N] [--rounds N]

Ways compared:
  refusaldir   shared prefix once, batches by length, finished rows leave the batch
  hf batched   `generate` on left-padded batches of the same number of rows
  hf alone     `generate` on one prompt at a time (with --alone)
The ratio is the median over rounds of (hf batched / refusaldir); above 1, refusaldir is faster.
Tokens of all ways are compared as well.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from refusaldir.models.bridge import hook_model
from refusaldir.models.load import load_model
from refusaldir.models.options import LoadOptions
from refusaldir.probes.generate import DEFAULT_ROWS, generate, stop_ids
from refusaldir.prompts.load import load_prompts
from refusaldir.prompts.render import ChatRenderer

Tokens = list[tuple[int, ...]]


def hugging_face(
    hf, sequences: Sequence[Sequence[int]], tokens: int, stops: Sequence[int], rows: int
) -> Tokens:
    """`generate` on left-padded batches, in the order given."""
    out: Tokens = []
    for start in range(0, len(sequences), rows):
        batch = sequences[start : start + rows]
        longest = max(map(len, batch))
        ids = torch.full((len(batch), longest), stops[0])
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(batch):
            ids[row, longest - len(sequence) :] = torch.tensor(sequence)
            mask[row, longest - len(sequence) :] = 1
        full = hf.generate(
            ids.to(hf.device),
            attention_mask=mask.to(hf.device),
            max_new_tokens=tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=list(stops),
            pad_token_id=stops[0],
        )
        for new in full[:, longest:].tolist():
            end = next((i for i, token in enumerate(new) if token in stops), len(new))
            out.append(tuple(new[:end]))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, default=None, help="rows a batch, for both ways")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--alone", action="store_true", help="also one prompt at a time")
    options = parser.parse_args()

    model = hook_model(
        load_model(options.model, LoadOptions(dtype=options.dtype, device=options.device)),
        "torch_hooks",
    )
    prompts = load_prompts("contrast")[: options.prompts]
    rendered = ChatRenderer(model.tokenizer).render(prompts)
    stops = stop_ids(model)
    rows = options.rows or DEFAULT_ROWS[model.device.type]
    # Hugging Face gets its rows sorted too, so that the difference is not in the padding.
    order = sorted(range(len(rendered)), key=lambda i: -len(rendered.ids[i]))
    ordered = [rendered.ids[i] for i in order]

    def ours() -> Tokens:
        responses = generate(
            model, rendered.ids, max_new_tokens=options.tokens, batch_size=options.rows
        )
        return [responses[i].ids for i in order]

    ways: dict[str, Callable[[], Tokens]] = {
        "refusaldir": ours,
        "hf batched": lambda: hugging_face(model.hf, ordered, options.tokens, stops, rows),
    }
    if options.alone:
        ways["hf alone"] = lambda: hugging_face(model.hf, ordered, options.tokens, stops, 1)
    print(
        f"{model.identity.name} {model.identity.dtype} on {model.device}, {torch.get_num_threads()}"
        f" threads; {len(rendered)} prompts, {options.tokens} new tokens, {rows} rows a batch"
    )
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, Tokens] = {}
    for round_ in range(options.rounds + 1):
        for name in list(ways) if round_ % 2 else list(ways)[::-1]:
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            tokens[name] = ways[name]()
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            if round_:  # The first round warms up.
                seconds[name].append(time.perf_counter() - began)
    said = sum(map(len, tokens["refusaldir"]))
    for name in ways:
        same = sum(a == b for a, b in zip(tokens[name], tokens["refusaldir"], strict=True))
        print(
            f"{name:12s} {statistics.median(seconds[name]):7.2f} s "
            f"{said / statistics.median(seconds[name]):8.0f} tokens/s   "
            f"{same}/{len(rendered)} responses identical to refusaldir's"
        )
    for name in list(ways)[1:]:
        ratio = [b / a for a, b in zip(seconds["refusaldir"], seconds[name], strict=True)]
        print(
            f"{name} / refusaldir: {statistics.median(ratio):.2f}x (rounds: "
            + ", ".join(f"{r:.2f}" for r in ratio)
            + ")"
        )


if __name__ == "__main__":
    main()
