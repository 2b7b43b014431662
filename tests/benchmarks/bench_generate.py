"""Generation against Hugging Face `generate`, same prompts, same batches, same run, turns taken.

    python tests/benchmarks/bench_generate.py [--parts alike mixed sampled] [--model SPEC]
        [--prompts N] [--tokens N] [--rounds N] [--samples N]

Parts:
  alike    prompts of one turn, greedy
  mixed    half of them conversations of three turns and more, greedy
  sampled  prompts of one turn, several samples each at temperature 0.7

Ways compared:
  refusaldir   shared prefix once, no padding run, finished rows leave the batch
  hf           `generate` on left-padded batches of the same rows, longest first; with
               ``num_return_sequences`` where it samples
The ratio is the median over rounds of (hf / refusaldir); above 1, refusaldir is faster. Greedy
tokens of both are compared as well; draws come from different noise.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from refusaldir.models.bridge import HookedModel, hook_model
from refusaldir.models.load import load_model
from refusaldir.models.options import LoadOptions
from refusaldir.probes.generation.generate import DEFAULT_ROWS, generate, stop_ids
from refusaldir.prompts.load import load_prompts
from refusaldir.prompts.render import ChatRenderer
from refusaldir.prompts.schema import PromptSet

Tokens = list[tuple[int, ...]]
TEMPERATURE = 0.7


def hugging_face(
    hf,
    sequences: Sequence[Sequence[int]],
    tokens: int,
    stops: Sequence[int],
    rows: int,
    samples: int = 0,
) -> Tokens:
    """`generate` on left-padded batches, in the order given; greedy without samples."""
    out: Tokens = []
    asked = (
        {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0}
        if samples
        else {"do_sample": False}
    )
    step = max(1, rows // max(samples, 1))
    for start in range(0, len(sequences), step):
        batch = sequences[start : start + step]
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
            repetition_penalty=1.0,
            num_return_sequences=max(samples, 1),
            eos_token_id=list(stops),
            pad_token_id=stops[0],
            **asked,
        )
        for new in full[:, longest:].tolist():
            end = next((i for i, token in enumerate(new) if token in stops), len(new))
            out.append(tuple(new[:end]))
    return out


def prompts_of(part: str, n: int) -> PromptSet:
    """Prompts of a part."""
    plain = load_prompts("contrast")
    if part == "mixed":
        talks = load_prompts("escalations")
        return PromptSet("mixed", tuple(plain)[: n - n // 2] + tuple(talks)[: n // 2])
    return plain[:n]


def ways_of(
    part: str, model: HookedModel, ids: Sequence[Sequence[int]], options: argparse.Namespace
) -> dict[str, Callable[[], Tokens]]:
    """The two ways of a part; tokens longest prompt first."""
    stops, rows = stop_ids(model), options.rows or DEFAULT_ROWS[model.device.type]
    samples = options.samples if part == "sampled" else 0
    # Hugging Face gets its rows sorted too, so that the difference is not in the order.
    ordered = sorted(ids, key=len, reverse=True)
    copies = [row for row in ordered for _ in range(max(samples, 1))]

    def ours() -> Tokens:
        said = generate(
            model,
            copies,
            max_new_tokens=options.tokens,
            temperatures=[TEMPERATURE] * len(copies) if samples else None,
            seeds=range(len(copies)) if samples else None,
            batch_size=options.rows,
        )
        return [response.ids for response in said]

    return {
        "refusaldir": ours,
        "hf": lambda: hugging_face(model.hf, ordered, options.tokens, stops, rows, samples),
    }


def now(model: HookedModel) -> float:
    """Seconds: of CPU time on a CPU, which other processes do not lengthen."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if model.device.type == "cpu" else time.perf_counter()


def compare(part: str, model: HookedModel, options: argparse.Namespace) -> None:
    """Time both ways in turn and print them."""
    rendered = ChatRenderer(model.tokenizer).render(prompts_of(part, options.prompts))
    ways = ways_of(part, model, rendered.ids, options)
    print(
        f"\n{part}: {len(rendered)} prompts of {min(rendered.lengths)} to "
        f"{max(rendered.lengths)} tokens, at most {options.tokens} new tokens"
    )
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, Tokens] = {}
    for round_ in range(options.rounds + 1):
        for name in list(ways) if round_ % 2 else list(ways)[::-1]:
            began = now(model)
            tokens[name] = ways[name]()
            if round_:  # The first round warms up.
                seconds[name].append(now(model) - began)
    for name in ways:
        middle, said = statistics.median(seconds[name]), sum(map(len, tokens[name]))
        print(f"  {name:12s}{middle:7.2f} s {said / middle:8.0f} tokens/s")
    if part != "sampled":
        same = sum(a == b for a, b in zip(tokens["hf"], tokens["refusaldir"], strict=True))
        print(f"  {same} of {len(rendered)} responses identical")
    ratio = [b / a for a, b in zip(seconds["refusaldir"], seconds["hf"], strict=True)]
    rounds = ", ".join(f"{r:.2f}" for r in ratio)
    print(f"  hf / refusaldir: {statistics.median(ratio):.2f}x (rounds: {rounds})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["alike", "mixed", "sampled"])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--rows", type=int, default=None, help="rows a batch, for both ways")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    model = hook_model(
        load_model(options.model, LoadOptions(dtype=options.dtype, device=options.device)),
        "torch_hooks",
    )
    print(
        f"{time.strftime('%Y-%m-%d')}: {model.identity.name} {model.identity.dtype} on "
        f"{model.device}, {torch.get_num_threads()} threads, "
        f"{options.rows or DEFAULT_ROWS[model.device.type]} rows a batch"
    )
    for part in options.parts:
        compare(part, model, options)


if __name__ == "__main__":
    main()
