"""How far a fine-tune moved the weights, in one number: the rival of every finer measure."""

import math

import numpy as np

from refusaldir.layers.weights.lora import LowRank
from refusaldir.layers.weights.tensors import matrix_changes
from refusaldir.models.resolve import Resolved


def weight_distance(base: Resolved, tuned: Resolved) -> float:
    """Frobenius norm ``√Σ‖ΔW‖²`` of the change of all matrices of the blocks, from files.

    Not relative to the weights, so that fine-tunes of one base compare whichever matrices they
    changed. Embeddings, gains and biases are not counted.

    Args:
        base: Local directories of base.
        tuned: Local directories of tuned.

    Raises:
        ModelSpecError: The architecture is unknown, or the two cannot be compared.
        ModelLoadError: A file is damaged or quantised.
    """
    squares = []
    for change in matrix_changes(base, tuned):
        delta = change.delta.core() if isinstance(change.delta, LowRank) else change.delta
        squares.append(float(np.vdot(delta, delta)))
    return math.sqrt(math.fsum(squares))
