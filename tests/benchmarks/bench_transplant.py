"""Restoring and injecting every block against the obvious way, same models, same run.

    python tests/benchmarks/bench_transplant.py [--layers 16] [--prompts 64] [--prefix 24]

The obvious way copies a block's weights and runs the whole model: 2 passes and 2 for every block,
in left-padded batches of 32 through Hugging Face with full logits, no prefix shared. Both models
are one random llama and the same with every parameter changed, so nothing is skipped for being
equal. Printed: forward-pass equivalents, counted as tokens that went through a block over all
tokens of the prompts times blocks; times and their ratio (CPU time too, for a busy machine); the
largest difference of refusal scores.
"""

import argparse
import time
from copy import deepcopy

import numpy as np
import torch
from bench_capture import left_padded
from transformers import AutoModelForCausalLM, LlamaConfig

from refusaldir.layers.exchange.transplant import transplant
from refusaldir.layers.outcomes import RefusalScore
from refusaldir.layers.switches import tensor_switches
from refusaldir.layers.weight_pair import WeightPair
from refusaldir.models.bridge import hook_model
from refusaldir.models.hookpoints import find_blocks
from refusaldir.models.load import LoadedModel
from refusaldir.records import ModelIdentity
from refusaldir.refusal_score import refusal_scores, score_of_logits

BATCH, VOCAB, REFUSAL = 32, 4000, (5, 6, 7)


def models(layers):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=4, intermediate_size=704, max_position_embeddings=512,
        initializer_range=0.05,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    tuned = deepcopy(base)
    for name, parameter in tuned.named_parameters():
        if ".layers." in name:
            parameter += 0.02 * torch.randn_like(parameter)
    return base, tuned


def paired(base, tuned):
    identity = ModelIdentity(
        spec="random", name="random", weights_hash="0", architecture=type(base).__name__,
        n_layers=base.config.num_hidden_layers, d_model=base.config.hidden_size,
        vocab_size=VOCAB, dtype="float32",
    )  # fmt: skip
    # Switched by pointer, so the two models stay as they are.
    hf, other = deepcopy(base), deepcopy(tuned)
    switches = tensor_switches(hf, other, where="random")
    model = hook_model(LoadedModel(hf=hf, tokenizer=None, identity=identity))
    return WeightPair(model, identity, identity, switches)


class Counter:
    """Tokens that go through blocks."""

    def __init__(self, blocks):
        self.tokens = 0
        for block in blocks:
            block.self_attn.q_proj.register_forward_pre_hook(self._count)

    def _count(self, module, args):
        self.tokens += args[0].shape[0] * args[0].shape[1]


@torch.inference_mode()
def scores(hf, sequences):
    parts = []
    for start in range(0, len(sequences), BATCH):
        ids, mask = left_padded(sequences[start : start + BATCH], 0)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = hf(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        parts.append(score_of_logits(logits, REFUSAL))
    return torch.cat(parts).numpy()


def obvious(base, tuned, sequences):
    """Base, tuned, restored and injected, ``[2 + 2 layers, prompt]``."""
    rows = [scores(base, sequences), scores(tuned, sequences)]
    for into, origin in ((tuned, base), (base, tuned)):
        for theirs, mine in zip(origin.model.layers, into.model.layers, strict=True):
            own = {name: value.clone() for name, value in mine.state_dict().items()}
            mine.load_state_dict(theirs.state_dict())
            rows.append(scores(into, sequences))
            mine.load_state_dict(own)
    return np.stack(rows)


def clock():
    """Wall time and CPU time of all threads, which other processes do not disturb."""
    return np.array([time.perf_counter(), time.process_time()])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--prefix", type=int, default=24, help="tokens that all prompts share")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    prefix = rng.integers(8, VOCAB, args.prefix).tolist()
    own = rng.integers(12, 40, args.prompts)
    sequences = [prefix + rng.integers(8, VOCAB, n).tolist() for n in own]
    base, tuned = models(args.layers)
    pair = paired(base, tuned)
    whole = sum(map(len, sequences)) * args.layers

    counters = {
        "obvious": Counter([*base.model.layers, *tuned.model.layers]),
        "refusaldir": Counter(find_blocks(pair.model.hf)),
    }
    scores(base, sequences[:BATCH])  # warm up
    refusal_scores(pair.model, sequences[:BATCH], REFUSAL)
    for counter in counters.values():
        counter.tokens = 0
    began = clock()
    slow_values = obvious(base, tuned, sequences)
    slow = clock() - began
    began = clock()
    found = transplant(pair, sequences, RefusalScore(REFUSAL), fronts=False)
    fast = clock() - began
    values = np.stack([found.base, found.tuned, *found.restored.T, *found.injected.T])
    mean = sum(map(len, sequences)) / args.prompts
    print(
        f"{args.layers} layers, {args.prompts} prompts of {mean:.0f} tokens, {args.prefix} shared"
    )
    forwards = {name: counter.tokens / whole for name, counter in counters.items()}
    for name, (wall, cpu) in (("obvious", slow), ("refusaldir", fast)):
        passes = f"{forwards[name]:6.1f} forward passes"
        print(f"{name:11}{passes} {wall:8.1f} s wall {cpu:8.1f} s CPU")
    ratio = forwards["obvious"] / forwards["refusaldir"]
    wall, cpu = slow / fast
    print(f"ratio      {ratio:6.1f}x{wall:24.1f}x{cpu:13.1f}x")
    full = 2 + 2 * args.layers
    print(f"blocks alone, without padding and prefix: {found.forwards:.1f} of {full} passes")
    gap = np.abs(values - slow_values).max()
    effect = np.abs(found.restoring).mean()
    print(f"largest difference of scores: {gap:.1e}, mean effect of restoring {effect:.2f}")


if __name__ == "__main__":
    main()
