"""Both models' activations in one plane: harmful and harmless prompts, before and after.

The plane is made from base alone and holds the activations of both models, so that what moves in
it moved in the model:

* ``"direction"``: along base's mean difference (harmful − harmless), against the first principal
  component of what is left of base across it;
* ``"pca"``: the first two principal components of base;
* ``"umap"``: a UMAP embedding of base (McInnes, Healy & Melville 2018, arXiv 1802.03426) into which
  tuned is put; only neighbourhoods mean something there, neither distances nor directions.

A plane shows little of a space of thousands of dimensions: `ViewAxis` says what share of the
variance, and of the change from base to tuned, lies along each axis. The direction is fitted on the
prompts that are shown, so the classes lie a little further apart than on new prompts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import linalg

from refusaldir.directions.mean_diff import class_means
from refusaldir.directions.site import has_signal
from refusaldir.errors import DirectionError, MissingExtraError
from refusaldir.geometry import unit
from refusaldir.records import HARMFUL, HARMLESS, Site

FloatArray = NDArray[np.float64]
Method = Literal["direction", "pca", "umap"]

METHODS: tuple[Method, ...] = ("direction", "pca", "umap")

#: Most prompts of a class that are drawn.
PER_CLASS = 100

#: A component whose share along the direction is below this has no harmful side.
_NO_SIDE = 1e-6

_SIDES = (("harmful", HARMFUL), ("harmless", HARMLESS))


@dataclass(frozen=True, kw_only=True)
class ViewAxis:
    """One axis of the plane.

    Attributes:
        label: What it is.
        share_base: Share of base's variance along it; None where the axis is no direction.
        share_tuned: Share of tuned's variance.
        share_change: Share of the squared change from base to tuned; None too where nothing
            changed.
    """

    label: str
    share_base: float | None
    share_tuned: float | None
    share_change: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class GeometryView:
    """Places of the prompts in a plane, in base and in tuned, residual norm.

    Attributes:
        site: Where the activations come from.
        method: How the plane was made.
        axes: The two axes; prompts lie further along the first the more harmful they look.
        ids: Prompts drawn, as many of each class as there are, `PER_CLASS` at most.
        labels: Their labels, harmless 0, harmful 1.
        base: Their places in base, ``[prompt, 2]``.
        tuned: Their places in tuned.
        means: Mean place by class and then by model, of all prompts.
        n: All prompts.
        note: What the plane does not show.
    """

    site: Site
    method: Method
    axes: tuple[ViewAxis, ViewAxis]
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    base: Float[np.ndarray, "prompt 2"]
    tuned: Float[np.ndarray, "prompt 2"]
    means: dict[str, dict[str, Float[np.ndarray, " 2"]]]
    n: int
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; places have four significant digits."""
        return {
            "site": asdict(self.site),
            "method": self.method,
            "axes": [asdict(axis) for axis in self.axes],
            "points": {
                "id": list(self.ids),
                "label": list(self.labels),
                "base": [_rounded(place) for place in self.base],
                "tuned": [_rounded(place) for place in self.tuned],
            },
            "means": {
                side: {model: _rounded(place) for model, place in both.items()}
                for side, both in self.means.items()
            },
            "n": self.n,
            "n_drawn": len(self.ids),
            "note": self.note,
        }


def geometry_view(
    base: Float[np.ndarray, "prompt d_model"],
    tuned: Float[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    ids: Sequence[str],
    *,
    site: Site,
    method: Method = "direction",
    per_class: int = PER_CLASS,
    seed: int = 0,
) -> GeometryView:
    """Put both models' activations at one site into a plane made from base.

    Components have the sign with which harmful prompts lie higher; where they do not differ, the
    one that makes the largest coordinate positive. Nothing but UMAP depends on the seed.

    Args:
        base: Activations of base, float64.
        tuned: Activations of tuned on the same prompts, float64.
        labels: Harmless 0, harmful 1.
        ids: The prompts' ids.
        site: Where the activations come from.
        method: ``"direction"``, ``"pca"`` or ``"umap"``.
        per_class: Most prompts of a class whose places are kept, spread evenly over the class.
        seed: Seed of UMAP.

    Raises:
        DirectionError: The method is unknown, a class is empty, base's classes do not differ, or
            base has no spread for an axis.
        MissingExtraError: UMAP was asked for and is not installed.
    """
    if method not in METHODS:
        raise DirectionError("unknown kind of view", expected=" | ".join(METHODS), got=method)
    means = class_means(base, labels)
    if not has_signal(base, means[HARMFUL] - means[HARMLESS]):
        raise DirectionError(
            "there is no direction to look along: harmful and harmless activations are the same",
            where=site,
        )
    if method == "umap":
        places, axes, note = _umap(base, tuned, seed)
    else:
        places, axes, note = _plane(base, tuned, means, method)
    drawn = _spread(labels, per_class)
    return GeometryView(
        site=site,
        method=method,
        axes=axes,
        ids=tuple(ids[i] for i in drawn),
        labels=tuple(int(labels[i]) for i in drawn),
        base=places[0][drawn],
        tuned=places[1][drawn],
        means={
            name: {
                model: own[labels == label].mean(axis=0)
                for model, own in zip(("base", "tuned"), places, strict=True)
            }
            for name, label in _SIDES
        },
        n=len(labels),
        note=note,
    )


def _plane(
    base: FloatArray, tuned: FloatArray, means: FloatArray, method: Method
) -> tuple[tuple[FloatArray, FloatArray], tuple[ViewAxis, ViewAxis], str]:
    """Places along two directions at right angles, with the middle of base's classes at 0."""
    difference = means[HARMFUL] - means[HARMLESS]
    middle = means.mean(axis=0)
    centred = base - base.mean(axis=0)
    if method == "direction":
        first = unit(difference)
        second = _components(centred - np.outer(centred @ first, first), 1)[0]
        # Rounding leaves a trace of the first axis.
        second = unit(second - (second @ first) * first)
        labels = "along base's direction, harmless to harmful", "first component across it"
    else:
        first, second = _components(centred, 2)
        labels = "first component of base", "second component of base"
    basis = np.stack([_signed(axis, difference) for axis in (first, second)])
    change = tuned - base
    shares = [_shares(basis, x) for x in (centred, tuned - tuned.mean(axis=0), change)]
    axes = [
        ViewAxis(label=label, share_base=b, share_tuned=t, share_change=c)
        for label, b, t, c in zip(labels, *shares, strict=True)
    ]
    places = (base - middle) @ basis.T, (tuned - middle) @ basis.T
    moved = axes[0].share_change, axes[1].share_change
    note = "nothing changed from base to tuned"
    if None not in moved:
        share = sum(s for s in moved if s is not None)
        note = (
            f"{100 * share:.0f} % of the squared change from base to tuned lies in this plane; the "
            "rest is not seen"
        )
    return places, (axes[0], axes[1]), note


def _components(x: FloatArray, count: int) -> FloatArray:
    """First principal components of centred rows, norm 1, by the smaller Gram matrix."""
    wide = x.shape[0] < x.shape[1]
    gram = x @ x.T if wide else x.T @ x
    size = len(gram)
    values, vectors = linalg.eigh(gram, subset_by_index=(max(size - count, 0), size - 1))
    total = float(np.trace(gram))
    if len(values) < count or values[0] <= 1e-12 * total or total <= 0:
        raise DirectionError("base has no spread for a second axis", got=f"{len(x)} prompts")
    found = (vectors.T @ x if wide else vectors.T)[::-1]
    return np.stack([unit(row) for row in found])


def _signed(axis: FloatArray, difference: FloatArray) -> FloatArray:
    """The axis with its harmful side positive, else with its largest coordinate positive."""
    along = float(axis @ difference)
    if abs(along) > _NO_SIDE * float(np.linalg.norm(difference)):
        return axis if along > 0 else -axis
    return axis if axis[np.argmax(np.abs(axis))] > 0 else -axis


def _shares(basis: FloatArray, x: FloatArray) -> list[float | None]:
    """Share of the rows' squared norm along each axis; None where there is none."""
    whole = float(np.sum(x * x))
    if whole == 0:
        return [None] * len(basis)
    return [float(np.sum((x @ axis) ** 2)) / whole for axis in basis]


def _umap(
    base: FloatArray, tuned: FloatArray, seed: int
) -> tuple[tuple[FloatArray, FloatArray], tuple[ViewAxis, ViewAxis], str]:
    """Base embedded, tuned put into the same embedding."""
    try:
        import umap
    except ImportError:
        raise MissingExtraError("A UMAP view", "umap") from None
    neighbours = min(15, len(base) - 1)
    fitted = umap.UMAP(n_components=2, n_neighbors=neighbours, random_state=seed, n_jobs=1)
    places = [np.asarray(fitted.fit_transform(base), dtype=np.float64)]
    places.append(np.asarray(fitted.transform(tuned), dtype=np.float64))
    axes = [
        ViewAxis(label=f"UMAP {i}", share_base=None, share_tuned=None, share_change=None)
        for i in (1, 2)
    ]
    note = (
        "fitted on base, tuned put into it: only who is near whom means something, neither "
        "distances nor directions; what base never did has no place of its own"
    )
    return (places[0], places[1]), (axes[0], axes[1]), note


def _spread(labels: Int[np.ndarray, " prompt"], most: int) -> NDArray[np.int64]:
    """Rows of each class, evenly spread over it, in order."""
    rows = []
    for _, label in _SIDES:
        own = np.flatnonzero(labels == label)
        count = min(most, len(own))
        rows.append(own[np.linspace(0, len(own) - 1, count).round().astype(np.int64)])
    return np.sort(np.concatenate(rows))


def _rounded(place: FloatArray) -> list[float]:
    return [float(f"{value:.4g}") for value in place]
