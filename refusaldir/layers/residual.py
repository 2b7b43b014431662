"""Which attention and MLP outputs moved the projection on a direction: an exact decomposition.

The residual stream is a sum, so with u a fixed unit vector, b and t the base and the tuned model::

    u·(xᵗ − xᵇ) = u·Δembed + Σ_j u·Δattn_j + Σ_j u·Δmlp_j

over the layers before the readout site (direct contributions: Elhage et al. 2021, "A
Mathematical Framework for Transformer Circuits"). Averaged over harmful prompts, over harmless
prompts, and as the difference of the two, which is how much longer the difference of means has
become along u, and by which component.

It says where the change *enters* the stream, not where weights changed: a component whose weights
are as before answers to a changed input and contributes as well. Only what comes first is free
of that. Nor is it causal: a later component may undo what an earlier one wrote.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray

from refusaldir.errors import CaptureError, CaptureMismatchError, PromptError
from refusaldir.records import HARMFUL, HARMLESS, Estimate, Site
from refusaldir.statistics import Clusters, jackknife, simultaneous_critical

FloatArray = NDArray[np.float64]

#: Largest closing error, as a share of all that changed.
CLOSING = 1e-4

#: A closing error within so many SDs of the rounding of the stream is rounding.
_ROUNDING_SDS = 8.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Contributions:
    """What every component of one model adds to the projection on a direction, prompt by prompt.

    In residual norm. Attention is counted up to ``attn_layers`` and MLPs up to ``mlp_layers``,
    which differ by one where the readout lies between the two (``resid_mid``).

    Attributes:
        site: The readout; its hook is one of the stream itself.
        direction: The unit vector u, float64.
        rendered_hash: Hash of the prompts' token ids.
        embed: Projection of what enters the first block, position embeddings and all.
        attn: Projection of each layer's attention output.
        mlp: Projection of each layer's MLP output.
        resid: Projection of the stream at the readout, measured there and not summed.
        rounding: SD that rounding of the stream, in the model's dtype, may bring into ``resid``
            less the sum of the others.
    """

    site: Site
    direction: Float[np.ndarray, " d_model"]
    rendered_hash: str
    embed: Float[np.ndarray, " prompt"]
    attn: Float[np.ndarray, "prompt attn_layer"]
    mlp: Float[np.ndarray, "prompt mlp_layer"]
    resid: Float[np.ndarray, " prompt"]
    rounding: Float[np.ndarray, " prompt"]

    @property
    def names(self) -> tuple[tuple[str, int | None], ...]:
        """Component and layer of each column of `terms`: embedding, then as a block adds them."""
        each = [
            (name, layer)
            for layer in range(self.attn.shape[1])
            for name, array in (("attn", self.attn), ("mlp", self.mlp))
            if layer < array.shape[1]
        ]
        return (("embed", None), *each)

    @property
    def terms(self) -> Float[np.ndarray, "prompt component"]:
        """All that is summed, in the order of `names`."""
        columns = {"attn": self.attn, "mlp": self.mlp}
        each = [columns[name][:, layer] for name, layer in self.names if layer is not None]
        return np.stack([self.embed, *each], axis=1).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Banded:
    """A figure with its own interval and with one that holds for all figures of its kind at once.

    Attributes:
        pointwise: Cluster-jackknife interval.
        simultaneous: The same value in a max-statistic band.
    """

    pointwise: Estimate
    simultaneous: Estimate


@dataclass(frozen=True, kw_only=True)
class Term:
    """Mean change from base to tuned, in residual norm along u.

    Attributes:
        component: ``"embed"``, ``"attn"`` or ``"mlp"``; in the cumulative curve ``"resid_pre"``.
        layer: Block index; None for the embedding.
        harmful: Over harmful prompts.
        harmless: Over harmless prompts.
        difference: Harmful less harmless: what it adds to the direction along u.
    """

    component: str
    layer: int | None
    harmful: Banded
    harmless: Banded
    difference: Banded


@dataclass(frozen=True, kw_only=True)
class ByClass:
    """One figure by class, in residual norm along u."""

    harmful: Estimate
    harmless: Estimate
    difference: Estimate


@dataclass(frozen=True, kw_only=True)
class Closing:
    """By how much the parts miss the whole; the largest over prompts.

    Attributes:
        absolute: ``|u·Δx − Σ terms|``, in residual norm.
        relative: As a share of ``Σ |terms|`` of that prompt, or of ``|u·Δx|`` where that is more;
            0 where nothing changed.
        rounding: What rounding of the stream in the models' dtype may leave at most, in residual
            norm. Far above what changed, as it may be in bfloat16, it leaves ``relative`` alone
            to say how good the decomposition is.
    """

    absolute: float
    relative: float
    rounding: float


@dataclass(frozen=True, kw_only=True)
class ResidualDecomposition:
    """The change at the readout, taken apart.

    Attributes:
        site: The readout.
        terms: Every component's part, in the order of the forward pass.
        cumulative: Change of the stream at each block's input, the running sum of the terms; for
            ``resid_post`` up to the input of what follows.
        total: Change of the projection measured at the readout.
        base: The projection itself in base, to hold the changes against. Along a u made from
            these very prompts its difference is biased upwards.
        closing: By how much the terms miss the total.
        n_harmful: Number of harmful prompts.
        n_harmless: Number of harmless prompts.
        level: Nominal coverage, of each interval and of each band as a whole.
    """

    site: Site
    terms: tuple[Term, ...]
    cumulative: tuple[Term, ...]
    total: ByClass
    base: ByClass
    closing: Closing
    n_harmful: int
    n_harmless: int
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        out = asdict(self)
        return {**out, "terms": list(out["terms"]), "cumulative": list(out["cumulative"])}


def decompose(
    base: Contributions,
    tuned: Contributions,
    labels: ArrayLike,
    clusters: Clusters,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> ResidualDecomposition:
    """Take the change of a projection apart into what the components contribute.

    The direction is taken as given: its own noise is in no interval. Bands hold over the
    components (or over the layers of the cumulative curve) of one class or of the difference, not
    over these three together.

    Args:
        base: Of the base model.
        tuned: Of the tuned model, on the same prompts, direction and site.
        labels: 0 harmless, 1 harmful, ``[prompt]``.
        clusters: The prompts' independent clusters, e.g. by intent.
        level: Nominal coverage.
        seed: Seed of the bands' multiplier bootstrap.

    Raises:
        CaptureMismatchError: The two are not of the same prompts, direction and site, or labels
            or clusters are not those of the prompts.
        PromptError: A class has no prompt.
        CaptureError: The parts do not add up to the whole: the closing error is above `CLOSING`
            and above the rounding of the stream.
    """
    y = np.asarray(labels)
    _check(base, tuned, y, clusters)
    changes = tuned.terms - base.terms
    total = tuned.resid.astype(np.float64) - base.resid
    closing = _closing(base, tuned, changes, total)
    contrasts = _contrasts(y, clusters)
    # Column k of the running sum is the stream after the first k + 1 terms.
    inputs = [0, *(i for i, (name, _) in enumerate(base.names) if name == "mlp")]
    running = np.cumsum(changes, axis=1)[:, inputs]
    kinds = [("resid_pre", layer) for layer in range(len(inputs))]
    return ResidualDecomposition(
        site=base.site,
        terms=_terms(
            base.names, changes, contrasts, f"over {len(base.names)} components", level, seed
        ),
        cumulative=_terms(kinds, running, contrasts, f"over {len(kinds)} layers", level, seed),
        total=_by_class(total, contrasts, level),
        base=_by_class(base.resid.astype(np.float64), contrasts, level),
        closing=closing,
        n_harmful=int((y == HARMFUL).sum()),
        n_harmless=int((y == HARMLESS).sum()),
        level=level,
    )


def _check(base: Contributions, tuned: Contributions, y: NDArray[Any], clusters: Clusters) -> None:
    n = len(base.resid)
    for name, expected, got in (
        ("site", base.site, tuned.site),
        ("rendered prompts", base.rendered_hash, tuned.rendered_hash),
        ("number of prompts", n, len(tuned.resid)),
        ("number of components", len(base.names), len(tuned.names)),
        ("number of labels", (n,), y.shape),
        ("number of prompts in clusters", n, len(clusters.codes)),
    ):
        if expected != got:
            raise CaptureMismatchError(
                f"The contributions differ in the {name}",
                expected=expected,
                got=got,
                next_step="Collect both models' on the same prompts, in one order, at one site",
            )
    if not np.array_equal(base.direction, tuned.direction):
        raise CaptureMismatchError(
            "The contributions are projections on different directions",
            next_step="Use one direction for both models",
        )
    missing = [
        name
        for name, label in (("harmful", HARMFUL), ("harmless", HARMLESS))
        if not (y == label).any()
    ]
    if missing or not np.isin(y, (HARMLESS, HARMFUL)).all():
        raise PromptError(
            "A decomposition by class needs harmful and harmless prompts",
            expected=f"labels {HARMLESS} and {HARMFUL}",
            got=f"labels {np.unique(y).tolist()}",
        )


def _closing(
    base: Contributions, tuned: Contributions, changes: FloatArray, total: FloatArray
) -> Closing:
    error = np.abs(total - changes.sum(axis=1))
    moved = np.maximum(np.abs(changes).sum(axis=1), np.abs(total))
    relative = np.divide(error, moved, out=np.zeros_like(error), where=moved > 0)
    rounding = _ROUNDING_SDS * np.hypot(base.rounding, tuned.rounding)
    # Written so that NaN does not pass.
    open_ = ~((error <= CLOSING * moved) | (error <= rounding))
    if open_.any():
        worst = int(np.argmax(np.where(open_, np.nan_to_num(relative, nan=np.inf), -1.0)))
        raise CaptureError(
            "The contributions do not add up to the change of the residual stream",
            expected=f"a closing error of at most {CLOSING:g} of what changed",
            got=f"{relative[worst]:.2g}",
            where=f"{base.site}, prompt {worst}",
            next_step="The blocks of this model do something between their hook points; leave the "
            "decomposition out",
        )
    return Closing(
        absolute=float(error.max()),
        relative=float(relative.max()),
        rounding=float(rounding.max()),
    )


class _Contrast(NamedTuple):
    """A class's mean, or a difference of such means, as something to be jackknifed."""

    signs: tuple[tuple[int, int], ...]
    rows: NDArray[np.intp]
    labels: Int[np.ndarray, " row"]
    clusters: Clusters

    def of(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The figure of each column, and with one cluster left out at a time."""
        x = values[self.rows]
        value = np.zeros(x.shape[1])
        left = np.zeros((self.clusters.n, x.shape[1]))
        for label, sign in self.signs:
            here = (self.labels == label).astype(np.float64)[:, None]
            sums, counts = self.clusters.sums(x * here), self.clusters.sums(here)
            value += sign * sums.sum(axis=0) / counts.sum()
            # Identical models give exact zeros: 0 less 0 over a count.
            with np.errstate(invalid="ignore", divide="ignore"):
                left += sign * (sums.sum(axis=0) - sums) / (counts.sum() - counts)
        return value, left


def _contrasts(y: NDArray[Any], clusters: Clusters) -> dict[str, _Contrast]:
    """Of harmful, harmless and their difference.

    A class's mean has only its own clusters, so that its degrees of freedom do not count others.
    """
    out = {}
    for name, label in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        rows = np.flatnonzero(y == label)
        own = Clusters.of([clusters.names[c] for c in clusters.codes[rows]])
        out[name] = _Contrast(((label, 1),), rows, y[rows], own)
    both = ((HARMFUL, 1), (HARMLESS, -1))
    out["difference"] = _Contrast(both, np.arange(len(y)), y, clusters)
    return out


def _by_class(values: FloatArray, contrasts: dict[str, _Contrast], level: float) -> ByClass:
    found = {}
    for name, contrast in contrasts.items():
        value, left = contrast.of(values[:, None])
        found[name] = jackknife(float(value[0]), left[:, 0], contrast.clusters, level=level)
    return ByClass(**found)


def _terms(
    names: Sequence[tuple[str, int | None]],
    values: FloatArray,
    contrasts: dict[str, _Contrast],
    over: str,
    level: float,
    seed: int,
) -> tuple[Term, ...]:
    figures = {
        name: _banded(contrast, values, over, level, seed) for name, contrast in contrasts.items()
    }
    return tuple(
        Term(component=name, layer=layer, **{k: banded[i] for k, banded in figures.items()})
        for i, (name, layer) in enumerate(names)
    )


def _banded(
    contrast: _Contrast, values: FloatArray, over: str, level: float, seed: int
) -> list[Banded]:
    value, left = contrast.of(values)
    clusters = contrast.clusters
    points = [
        jackknife(float(v), column, clusters, level=level)
        for v, column in zip(value, left.T, strict=True)
    ]
    if clusters.n < 2 or not np.isfinite(left).all():
        return [Banded(pointwise=p, simultaneous=p) for p in points]
    deviations = clusters.centre(left)
    critical = simultaneous_critical(deviations, level=level, df=clusters.df, seed=seed)
    halves = critical * np.sqrt(np.sum(deviations**2, axis=0))
    return [
        Banded(
            pointwise=point,
            simultaneous=Estimate(
                value=point.value,
                lower=float(v - half),
                upper=float(v + half),
                n=clusters.n,
                level=level,
                method=f"cluster jackknife, max-statistic band {over}",
                note=point.note,
            ),
        )
        for point, v, half in zip(points, value, halves, strict=True)
    ]
