"""Draws of the next token: each row at a temperature and with noise of its own.

A token is drawn from ``softmax(z / T)`` over the whole vocabulary, without top-p or top-k, as

    argmax_k  z_k + T·g_k,      g_k = −ln(−ln(1 − v_k)),

with independent standard Gumbel noise ``g`` (Gumbel-max; Maddison et al. 2014, arXiv 1411.0030).
``T → 0`` is greedy decoding. The noise of a token is a function of the row's seed, the step and
the token's id alone, by the counter-based generator SplitMix64 (Steele et al. 2014,
doi:10.1145/2660193.2660195), 31 bits a token. So a draw depends neither on the other rows nor on
the order of draws nor on the device, and where two models put the same logits they draw the same
token: replies with equal seeds differ as little as the distributions they come from. Rounding of
the logits changes a draw only where the two best scores are as close as the rounding; from the
inverse of the cumulative distribution it would change far more.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Noise computed at a time, in elements: on a CPU what stays in its cache.
CHUNK = {"cpu": 2**18, "mps": 2**22, "cuda": 2**25}

_BITS = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
#: Shift and multiplier of each of SplitMix64's three rounds; the last only shifts.
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def draw(
    logits: Float[Tensor, "batch vocab"],
    temperatures: Sequence[float],
    seeds: Sequence[int | None],
    step: int,
) -> Int[Tensor, " batch"]:
    """Draw one token a row.

    Args:
        logits: Any float dtype; computed in float32.
        temperatures: One a row; 0 takes the largest logit.
        seeds: One a row, at least 0; not looked at where the temperature is 0.
        step: Number of tokens drawn before in these rows.

    Returns:
        Token ids, on the logits' device.
    """
    if not any(temperatures):
        return logits.argmax(dim=-1)
    device, vocab = logits.device, logits.shape[-1]
    scale = torch.tensor(temperatures, dtype=torch.float32, device=device)[:, None]
    # Greedy rows get noise times 0; their seed may be None.
    states = torch.tensor([_state(seed or 0, step) for seed in seeds], device=device)[:, None]
    counter = torch.arange(1, (vocab + 1) // 2 + 1, device=device) * _signed(_GAMMA)
    rows = max(1, CHUNK.get(device.type, CHUNK["cpu"]) // vocab)
    chosen = []
    for start in range(0, len(seeds), rows):
        part = slice(start, start + rows)
        noise = _gumbel(states[part] + counter, vocab)
        chosen.append(noise.mul_(scale[part]).add_(logits[part]).argmax(dim=-1))
    return torch.cat(chosen)


def _gumbel(counter: Int[Tensor, "batch half"], vocab: int) -> Float[Tensor, "batch vocab"]:
    """Standard Gumbel noise, two values from each counter, which is overwritten."""
    for shift, multiplier in _ROUNDS:
        # The shift of a signed number drags its sign along; SplitMix64 shifts zeros in.
        shifted = (counter >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        counter.bitwise_xor_(shifted)
        if multiplier != 1:
            counter.mul_(_signed(multiplier))
    # v = (|x| + ½)·2⁻³¹ of 32 signed bits x: exact where it matters, near v = 0 (large noise).
    v = counter.view(torch.int32)[:, :vocab].float().abs_().add_(0.5).mul_(2.0**-31)
    # At v = 1 the exponential is infinite and 0·∞ not a number; nothing so unlikely is drawn.
    exponential = v.neg_().log1p_().neg_().clamp_(max=32.0)
    return exponential.log_().neg_()


def _state(seed: int, step: int) -> int:
    """Where the counters of a row's step begin, as a signed 64-bit number."""
    return _signed(_mixed(_mixed(seed + _GAMMA) + (step + 1) * _GAMMA))


def _mixed(z: int) -> int:
    for shift, multiplier in _ROUNDS:
        z &= _BITS
        z = (z ^ (z >> shift)) * multiplier
    return z & _BITS


def _signed(z: int) -> int:
    """The same 64 bits read as a signed number; torch has no unsigned arithmetic."""
    z &= _BITS
    return z - (1 << 64) if z >> 63 else z
