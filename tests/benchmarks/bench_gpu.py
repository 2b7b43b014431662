"""Capture on a GPU with random weights of a 1B and an 8B llama shape in bfloat16.

    python tests/benchmarks/bench_gpu.py [--shapes 1b 8b] [--prompts 2048] [--peak-tflops T]

Prints tokens per second, the share of the matrix unit's bfloat16 peak, how much of the copies to
the host hides behind compute, and values against the CPU's for a few prompts. Random weights
give the speed of real ones. Run on an idle device and commit the dated table.
"""

import argparse
import time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from refusaldir.capture import capture
from refusaldir.models.bridge import hook_model
from refusaldir.models.load import LoadedModel
from refusaldir.records import ModelIdentity, Positions

SHAPES = {
    "1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
    },
}
#: Dense bfloat16 peaks in TFLOP/s, from the vendor's data sheets.
PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0}
POSITIONS = Positions(offsets=(-5, -4, -3, -2, -1), labels=("a", "b", "c", "d", "e"))


def sequences(count: int, shared: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(0)
    prefix = rng.integers(1000, 100000, shared).tolist()
    return [prefix + rng.integers(1000, 100000, n).tolist() for n in rng.integers(20, 80, count)]


def build(shape: str, device: str, dtype: torch.dtype, layers: int | None = None):
    fields = dict(SHAPES[shape])
    if layers is not None:
        fields["num_hidden_layers"] = layers
    torch.manual_seed(0)
    with torch.device(device):
        hf = LlamaForCausalLM._from_config(LlamaConfig(**fields), dtype=dtype).eval()
    identity = ModelIdentity(
        spec=shape,
        name=shape,
        weights_hash="0" * 16,
        architecture="LlamaForCausalLM",
        n_layers=fields["num_hidden_layers"],
        d_model=fields["hidden_size"],
        vocab_size=fields["vocab_size"],
        dtype=str(dtype).removeprefix("torch."),
    )
    return hook_model(LoadedModel(hf=hf, tokenizer=None, identity=identity))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["1b", "8b"], choices=sorted(SHAPES))
    parser.add_argument("--prompts", type=int, default=2048)
    parser.add_argument("--peak-tflops", type=float)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This benchmark needs a CUDA device; torch sees none.")
    name = torch.cuda.get_device_name()
    peak = args.peak_tflops or next((v for k, v in PEAKS.items() if k in name), None)
    print(f"{name}, torch {torch.__version__}")
    for shape in args.shapes:
        model = build(shape, "cuda", torch.bfloat16)
        prompts = sequences(args.prompts)
        for _ in capture(model, prompts[:512], positions=POSITIONS):  # warm-up
            pass
        torch.cuda.synchronize()
        began = time.perf_counter()
        copied = 0
        for batch in capture(model, prompts, positions=POSITIONS):
            copied += sum(value.nbytes for value in batch.values.values())
        torch.cuda.synchronize()
        took = time.perf_counter() - began
        blocks = sum(
            p.numel()
            for n, p in model.hf.named_parameters()
            if "embed" not in n and "lm_head" not in n
        )
        # The last block is entered but not run: resid_pre of the last layer ends the pass.
        blocks *= (model.n_layers - 1) / model.n_layers
        run_tokens = sum(len(p) - 30 for p in prompts) + 30
        flops = 2 * blocks * run_tokens
        line = (
            f"{shape}: {args.prompts} prompts in {took:.2f} s, "
            f"{sum(map(len, prompts)) / took:,.0f} prompt tokens/s "
            f"({run_tokens / took:,.0f} computed), {flops / took / 1e12:.0f} TFLOP/s"
        )
        if peak:
            line += f" = {100 * flops / took / 1e12 / peak:.0f} % of {peak:.0f}"
        # A blocking copy of the same bytes, to see what overlapping saves.
        source = torch.empty(copied, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        began = time.perf_counter()
        torch.empty(copied, dtype=torch.uint8, pin_memory=True).copy_(source)
        line += f"; {copied / 1e9:.2f} GB to host, {time.perf_counter() - began:.2f} s if alone"
        print(line + f"; peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
        del model, source
        torch.cuda.empty_cache()
        small_gpu = build(shape, "cpu", torch.float32, layers=2)
        few = prompts[:4]
        reference = np.concatenate(
            [b.values["resid_pre"] for b in capture(small_gpu, few, positions=POSITIONS)]
        )
        small_gpu.hf.to("cuda")
        got = np.concatenate(
            [b.values["resid_pre"] for b in capture(small_gpu, few, positions=POSITIONS)]
        )
        gap = np.linalg.norm(got - reference) / np.linalg.norm(reference)
        print(f"{shape}: two layers, fp32, GPU against CPU: relative difference {gap:.1e}")


if __name__ == "__main__":
    main()
