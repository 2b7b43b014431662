"""What a user would look at today: cosines, weight distance and CKA, layer by layer.

All are taken from captures of both models on the same prompts, at the last token, or from the
weights. A layer's score is taken at its output (``resid_post``), so that a layer that disturbs can
show it; the increment is what the layer adds to the figure before it.
"""

import numpy as np

from refusaldir.capture import capture
from refusaldir.directions.mean_diff import mean_diff
from refusaldir.drift.disturbance import linear_cka
from refusaldir.geometry import unit
from refusaldir.layers.weights.alignment import weight_alignment
from refusaldir.models.resolve import resolve
from refusaldir.models.spec import ModelSpec
from refusaldir.records import Positions
from refusaldir.statistics import Clusters

from .score import LayerScores

RIVALS = ("cosine drift", "cosine increments", "relative weight change", "CKA", "CKA increments")


def activations(model, sequences):
    """``[layer, prompt, d_model]`` at the output of every block and the last token, float64."""
    out = np.empty((model.n_layers, len(sequences), model.d_model))
    last = Positions(offsets=(-1,), labels=("last",))
    for batch in capture(model, sequences, hooks=("resid_post",), positions=last):
        out[:, batch.indices] = batch.values["resid_post"][:, :, 0].swapaxes(0, 1)
    return out


def activation_rivals(base, tuned, labels, intents):
    """Cosine drift of the mean difference, and 1 − CKA, each with its increments.

    Args:
        base: Activations ``[layer, prompt, d_model]``.
        tuned: The same prompts in tuned.
        labels: 0 harmless, 1 harmful.
        intents: Cluster of each prompt.
    """
    clusters = Clusters.of(intents, labels)
    cosine, cka = [], []
    for before, after in zip(base, tuned, strict=True):
        r, q = mean_diff(before, labels), mean_diff(after, labels)
        cosine.append(1 - float(r @ q / np.linalg.norm(r) / np.linalg.norm(q)))
        similarity = linear_cka(before, after, clusters).value
        cka.append(np.nan if similarity is None else 1 - similarity)
    return {
        "cosine drift": LayerScores(scores=tuple(cosine)),
        "cosine increments": LayerScores(scores=_increments(cosine)),
        "CKA": LayerScores(scores=tuple(cka)),
        "CKA increments": LayerScores(scores=_increments(cka)),
    }


def _increments(values):
    return tuple(np.diff(np.asarray(values, dtype=np.float64), prepend=0.0).tolist())


def weight_rival(base, tuned, n_layers, direction):
    """``√(Σ‖ΔW‖² / Σ‖W‖²)`` over the matrices of each layer that changed."""
    found = weight_alignment(
        resolve(ModelSpec.parse(base)), resolve(ModelSpec.parse(tuned)), unit(direction)
    )
    change, whole = np.zeros(n_layers), np.zeros(n_layers)
    for matrix in found.matrices:
        change[matrix.layer] += matrix.change_norm**2
        whole[matrix.layer] += matrix.base_norm**2
    relative = np.sqrt(np.divide(change, whole, out=np.zeros(n_layers), where=whole > 0))
    return {"relative weight change": LayerScores(scores=tuple(relative.tolist()))}
