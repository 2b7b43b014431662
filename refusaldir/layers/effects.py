"""How much of what a fine-tune did to an outcome each layer's change accounts for.

An *effect* is what the change of one layer did to the outcome of one prompt, in the outcome's
unit. A *share* is its mean over prompts as a part of the whole fine-tune's::

    share = mean(effect) / mean(s_tuned − s_base)

Its sign is the same for every lens: positive means that the layer's change moved the outcome the
way the whole fine-tune did. Shares of path attribution sum to 1; those of transplants need not,
since layers may do the same thing twice (both restored shares small) or only together.

The interval of a share is the delete-one-cluster jackknife of the ratio, so the error of the
denominator is in it; the band holds over all layers at once, and it is the band that says
whether a layer disturbs the outcome. Where the outcome itself did not change there is nothing to
share out: a ratio to noise would be large and mean nothing.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from refusaldir.errors import RefusaldirError
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, jackknife, mean, simultaneous_critical

FloatArray = NDArray[np.float64]

#: A block's index; None for all that lies outside the blocks.
Layer = int | None

#: A change of the mean outcome below so many SDs of base over prompts is too small to share out.
LEAST_SDS = 0.1

#: Smallest share of a layer that disturbs.
LEAST_SHARE = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class Effects:
    """What one lens says that each layer's change did, prompt by prompt.

    Attributes:
        lens: Which one.
        layers: Layers whose weights changed, ascending, what lies outside the blocks last.
        values: Effects in the outcome's unit; positive raises it.
    """

    lens: str
    layers: tuple[Layer, ...]
    values: Float[np.ndarray, "prompt layer"]

    def __post_init__(self) -> None:
        """Refuse values that are not one a prompt and layer, or not finite."""
        if self.values.ndim != 2 or self.values.shape[1] != len(self.layers):
            raise RefusaldirError(
                "A lens needs one effect a prompt and layer",
                expected=f"[prompt, {len(self.layers)}]",
                got=f"shape {self.values.shape}",
                where=self.lens,
            )
        if not np.isfinite(self.values).all():
            raise RefusaldirError("An effect is not finite", where=self.lens)


@dataclass(frozen=True, kw_only=True)
class OutcomeChange:
    """What the fine-tune did to the outcome.

    Attributes:
        base: Mean outcome of base.
        tuned: Mean outcome of tuned.
        change: Mean of tuned less base, paired by prompt.
        floor: Smallest change that is shared out: `LEAST_SDS` of base's SD over prompts.
    """

    base: Estimate
    tuned: Estimate
    change: Estimate
    floor: float

    @property
    def attributable(self) -> bool:
        """Whether there is a change to share out: outside its noise, and not below the floor."""
        value, lower, upper = self.change.value, self.change.lower, self.change.upper
        if value is None or lower is None or upper is None:
            return False
        return (lower > 0 or upper < 0) and abs(value) >= max(self.floor, np.finfo(float).tiny)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, with ``attributable`` added."""
        return {**asdict(self), "attributable": self.attributable}


@dataclass(frozen=True, kw_only=True)
class Share:
    """One figure of a lens as a part of the whole change.

    Attributes:
        effect: Mean effect, in the outcome's unit.
        share: Of the mean change; pointwise interval. Without a value where there is no change to
            share out.
        band: The same, in a band that holds over all figures of the lens at once.
    """

    effect: Estimate
    share: Estimate
    band: Estimate

    @property
    def told(self) -> bool:
        """Whether the band leaves out 0."""
        lower, upper = self.band.lower, self.band.upper
        return lower is not None and upper is not None and (lower > 0 or upper < 0)

    @property
    def disturbs(self) -> bool:
        """Whether the band leaves out 0 and the share is not below `LEAST_SHARE`."""
        return self.told and abs(self.band.value or 0.0) >= LEAST_SHARE


def effects_alone(
    effects: Float[np.ndarray, "prompt figure"], clusters: Clusters, *, level: float = 0.95
) -> list[Share]:
    """Effects where there is no change to share out.

    Args:
        effects: Per prompt, in the outcome's unit.
        clusters: The prompts' independent clusters.
        level: Nominal coverage.
    """
    none = Estimate(value=None, n=clusters.n, level=level, note="no change to attribute")
    return [
        Share(effect=mean(column, clusters, level=level), share=none, band=none)
        for column in effects.T
    ]


def outcome_change(
    base: Float[np.ndarray, " prompt"],
    tuned: Float[np.ndarray, " prompt"],
    clusters: Clusters,
    *,
    level: float = 0.95,
) -> OutcomeChange:
    """Compare the outcome of base and tuned over prompts.

    Args:
        base: Outcome of base.
        tuned: Outcome of tuned, same prompts.
        clusters: The prompts' independent clusters, e.g. by intent.
        level: Nominal coverage.
    """
    spread = float(np.std(base, ddof=1)) if len(base) > 1 else 0.0
    return OutcomeChange(
        base=mean(base, clusters, level=level),
        tuned=mean(tuned, clusters, level=level),
        change=mean(tuned - base, clusters, level=level),
        floor=LEAST_SDS * spread,
    )


def shares(
    effects: Float[np.ndarray, "prompt figure"],
    change: Float[np.ndarray, " prompt"],
    clusters: Clusters,
    *,
    over: str,
    level: float = 0.95,
    seed: int = 0,
) -> list[Share]:
    """Effects as shares of the change, with intervals and a band over all of them.

    Args:
        effects: Per prompt, in the outcome's unit.
        change: Outcome of tuned less base, per prompt; its mean is not 0.
        clusters: The prompts' independent clusters.
        over: What the figures are, for `Estimate.method`, e.g. ``"over 30 layers"``.
        level: Nominal coverage of each interval, and of the band as a whole.
        seed: Seed of the band's multiplier bootstrap.
    """
    parts, whole = clusters.sums(effects), clusters.sums(change)
    values = parts.sum(axis=0) / whole.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        left = (parts.sum(axis=0) - parts) / (whole.sum() - whole)[:, None]
    finite = clusters.n > 1 and bool(np.isfinite(left).all())
    deviations = clusters.centre(left) if finite else np.full_like(left, np.nan)
    critical = simultaneous_critical(deviations, level=level, df=clusters.df, seed=seed)
    found = []
    for value, own, spread, column in zip(values, left.T, deviations.T, effects.T, strict=True):
        point = jackknife(float(value), own, clusters, level=level)
        half = critical * float(np.sqrt(np.sum(spread**2)))
        band = Estimate(
            value=point.value,
            lower=float(value - half) if finite else None,
            upper=float(value + half) if finite else None,
            n=clusters.n,
            level=level,
            method=f"cluster jackknife of the ratio, max-statistic band {over}",
            note=point.note,
        )
        found.append(Share(effect=mean(column, clusters, level=level), share=point, band=band))
    return found
