"""Changes of the weights that refusal does not feel, at least as large as those that it does.

*Rotation*: exact. Every value head is rotated by R, and what reads it by Rᵀ (in a group of query
heads that share a value head, each); some rows of ``up_proj`` are multiplied by c and the columns
of ``down_proj`` that read them divided by it. The function stays what it was, although every
layer's weights differ. Both are of low rank, so that they are LoRA adapters like any other.

*Text*: a fine-tune on unrelated text, of which the layers outside the band are kept, scaled. Every
activation behind it moves; whether refusal does is measured.
"""

from collections.abc import Collection, Mapping

import numpy as np
from scipy.linalg import block_diag
from scipy.optimize import brentq

from .factors import Change, component_of, layer_norms, relative_norms, scaled, values

#: The largest decoy layer over the largest true one, in norm and in relative norm.
LOUDER = 1.25
#: Planes turned in each value head, and neurons scaled in each MLP.
PLANES, NEURONS = 4, 32
#: Where a fine-tune on text moves refusal: how many layers stay loud, how much quieter the others.
LOUD_LAYERS, QUIETER = 3, 0.7
#: The largest factor of a neuron.
LARGEST_FACTOR = 8.0


def norm_profile(layers: Collection[int], largest: float, seed: int) -> dict[int, float]:
    """A norm for every layer, uneven, the largest as given."""
    raw = np.random.default_rng(seed).uniform(0.4, 1.0, len(layers))
    return dict(zip(layers, (largest * raw / raw.max()).tolist(), strict=True))


def rotation(hf, norms: Mapping[int, float], components: Collection[str], seed: int) -> Change:
    """Turn value heads and rescale neurons so that each layer changes by a given norm.

    Args:
        hf: A llama.
        norms: Frobenius norm of the change by layer; shared evenly (in squares) by components.
        components: ``"attn"``, ``"mlp"`` or both.
        seed: Of the planes and neurons.

    Raises:
        ValueError: No rotation in that many planes, or no moderate factor, is so large.
    """
    rng = np.random.default_rng(seed)
    change: Change = {}
    for layer, size in norms.items():
        share = size / np.sqrt(len(components))
        for component, make in (("attn", _turn_heads), ("mlp", _scale_neurons)):
            if component in components:
                pairs = make(hf, layer, share, rng)
                change.update({(layer, matrix): factors for matrix, factors in pairs.items()})
    return change


def _turn_heads(hf, layer, size, rng):
    config = hf.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    planes = min(PLANES, width // 2)
    bases = [np.linalg.qr(rng.standard_normal((width, 2 * planes)))[0] for _ in range(groups)]
    v, o = values(hf, layer, "v_proj"), values(hf, layer, "o_proj")
    # One block per head, so that ΔW = blocks @ read and write @ blocks.
    own = [bases[head * groups // heads] for head in range(heads)]
    by_group, by_head = block_diag(*bases), block_diag(*own)
    read, write = by_group.T @ v, o @ by_head
    reach = 2 * np.sqrt((read**2).sum() + (write**2).sum())
    if size > reach:
        raise ValueError(f"layer {layer}: no rotation changes it by {size:.3g}, only {reach:.3g}")
    angle = 2 * np.arcsin(size / reach)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) - np.eye(2)
    return {
        "v_proj": (by_group @ np.kron(np.eye(groups * planes), turn), read),
        "o_proj": (write @ np.kron(np.eye(heads * planes), turn.T), by_head.T),
    }


def _scale_neurons(hf, layer, size, rng):
    up, down = values(hf, layer, "up_proj"), values(hf, layer, "down_proj")
    n = up.shape[0]
    chosen = rng.choice(n, min(NEURONS, n), replace=False)
    rows, columns = up[chosen], down[:, chosen]
    read, written = (rows**2).sum(), (columns**2).sum()

    def excess(factor):
        return np.sqrt((factor - 1) ** 2 * read + (1 / factor - 1) ** 2 * written) - size

    if excess(LARGEST_FACTOR) < 0:
        raise ValueError(
            f"layer {layer}: no factor up to {LARGEST_FACTOR} changes it by {size:.3g}"
        )
    factor = brentq(excess, 1.0, LARGEST_FACTOR)
    unit = np.eye(n)[chosen]
    return {
        "up_proj": (unit.T, (factor - 1) * rows),
        "down_proj": ((1 / factor - 1) * columns, unit),
    }


def kept(change: Mapping, layers: Collection[int], matrices: Collection[str]) -> Change:
    """The part of a change that lies in some layers and matrices."""
    return {
        (layer, matrix): factors
        for (layer, matrix), factors in change.items()
        if layer in layers and matrix in matrices
    }


def shortfall(hf, decoy: Mapping, true: Mapping) -> float:
    """What the decoy's norms lack to be `LOUDER`, as a factor; at most 1 if nothing.

    By norm and by relative norm its largest layer must exceed the largest true one, and its
    total norm must not be below the true one.
    """
    ratios = [_total(true) / _total(decoy)]
    for of in (layer_norms, lambda change: relative_norms(hf, change)):
        ratios.append(LOUDER * max(of(true).values()) / max(of(decoy).values()))
    return max(ratios)


def _total(change):
    return float(np.linalg.norm(list(layer_norms(change).values())))


def rotation_decoy(hf, true: Mapping, outside: Collection[int], seed: int) -> Change:
    """A rotation over the layers outside a band that is louder than the true change."""
    components = {component_of(matrix) for _, matrix in true}
    profile = norm_profile(outside, max(layer_norms(true).values()), seed)
    while True:
        decoy = rotation(hf, profile, components, seed)
        missing = shortfall(hf, decoy, true)
        if missing <= 1:
            return decoy
        profile = {layer: 1.001 * missing * size for layer, size in profile.items()}


def text_decoy(
    hf, text: Mapping, true: Mapping, outside: Collection[int], quieter: int = 0, seed: int = 0
) -> Change:
    """The part of a fine-tune on text outside a band, scaled to be louder than the true change.

    Args:
        hf: The model.
        text: The fine-tune on text.
        true: The true change.
        outside: Layers outside the band.
        quieter: 0 scales all layers alike; else all but `LOUD_LAYERS` are taken down by so many
            steps of `QUIETER`.
        seed: Of which layers stay loud.
    """
    decoy = kept(text, outside, {matrix for _, matrix in true})
    count = min(LOUD_LAYERS, len(outside))
    loud = np.random.default_rng(seed).choice(list(outside), count, replace=False).tolist()
    decoy = {
        (layer, matrix): (b if layer in loud else QUIETER**quieter * b, a)
        for (layer, matrix), (b, a) in decoy.items()
    }
    return scaled(decoy, 1.001 * shortfall(hf, decoy, true))
