"""Checkpoints of one fine-tune against one base: when drift sets in, with bands over all of them.

Every checkpoint is compared with the same base on the same prompts, so the errors of neighbouring
checkpoints are nearly the same error, and a band over all of them (max-statistic) is hardly wider
than the single intervals.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from refusaldir.drift.floors import FLOOR_COSINE
from refusaldir.drift.layer_result import ByClass
from refusaldir.drift.ranking import ends
from refusaldir.drift.rotation import angle
from refusaldir.records import Estimate, Site
from refusaldir.statistics import Deviations, simultaneous_bands


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """One checkpoint against base, at base's site.

    Attributes:
        name: Its name.
        step: Its training step, where the name says so.
        rotation: Corrected cosine of base's and its direction.
        angle: The angle of that, degrees.
        shrinkage: Its norm over base's.
        translation: Shift of each class mean along the base direction, in base SDs.
        d_prime_change: Change of held-out d′ along the base direction.
        detected: Kinds of the findings at the site that are detected, with intervals that hold
            together for this checkpoint.
        deviations: What the variance of the corrected cosine is made of, or None.
    """

    name: str
    step: int | None
    rotation: Estimate
    angle: Estimate
    shrinkage: Estimate
    translation: ByClass
    d_prime_change: Estimate
    detected: tuple[str, ...]
    deviations: Deviations | None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, without the deviations."""
        estimates = ("rotation", "angle", "shrinkage", "translation", "d_prime_change")
        return {
            "name": self.name,
            "step": self.step,
            **{name: asdict(getattr(self, name)) for name in estimates},
            "detected": list(self.detected),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """Drift over a series of checkpoints.

    Attributes:
        site: Where all of them were compared, chosen on base.
        checkpoints: In order.
        bands: Corrected cosine of each with an interval that holds over all checkpoints at once;
            None where it has none.
        angle_bands: The same as angles, degrees.
        first_rotation: Index of the first checkpoint whose band leaves out "no rotation".
        first_drift: Index of the first checkpoint with any finding detected, each checkpoint
            taken by itself.
        level: Nominal coverage of intervals and bands.
    """

    site: Site
    checkpoints: tuple[Checkpoint, ...]
    bands: tuple[Estimate | None, ...]
    angle_bands: tuple[Estimate | None, ...]
    first_rotation: int | None
    first_drift: int | None
    level: float

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the series says, in words."""
        return (_rotation(self), _drift(self), _last(self))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary (no NaN or infinity)."""
        return {
            "site": asdict(self.site),
            "checkpoints": [
                {
                    **point.to_dict(),
                    "rotation_band": None if band is None else band.to_dict(),
                    "angle_band": None if turned is None else turned.to_dict(),
                }
                for point, band, turned in zip(
                    self.checkpoints, self.bands, self.angle_bands, strict=True
                )
            ],
            "first_rotation": self.first_rotation,
            "first_drift": self.first_drift,
            "sentences": list(self.sentences),
            "level": self.level,
        }


def trajectory(
    site: Site,
    checkpoints: Sequence[Checkpoint],
    *,
    level: float = 0.95,
    seed: int = 0,
    draws: int = 2000,
) -> Trajectory:
    """Join the comparisons of several checkpoints with one base.

    Args:
        site: Where all of them were compared.
        checkpoints: In order, all on the same prompts.
        level: Nominal coverage of the bands over all checkpoints.
        seed: Seed of the multiplier bootstrap.
        draws: Number of draws.
    """
    usable = [
        (i, point.rotation.value, ends(point.rotation), point.deviations)
        for i, point in enumerate(checkpoints)
        if point.rotation.value is not None
        and point.deviations is not None
        and point.deviations.finite
    ]
    found = simultaneous_bands(
        [value for _, value, _, _ in usable],
        [own for _, _, _, own in usable],
        over=f"over {len(usable)} checkpoints",
        at_least=[alone for _, _, alone, _ in usable],
        level=level,
        seed=seed,
        draws=draws,
    )
    bands: list[Estimate | None] = [None] * len(checkpoints)
    for (i, _, _, _), band in zip(usable, found, strict=True):
        bands[i] = band
    turned = [
        i
        for i, band in enumerate(bands)
        if band is not None and band.upper is not None and band.upper < 1 - FLOOR_COSINE
    ]
    drifted = [i for i, point in enumerate(checkpoints) if point.detected]
    return Trajectory(
        site=site,
        checkpoints=tuple(checkpoints),
        bands=tuple(bands),
        angle_bands=tuple(None if band is None else angle(band) for band in bands),
        first_rotation=turned[0] if turned else None,
        first_drift=drifted[0] if drifted else None,
        level=level,
    )


_KINDS = {
    "rotation": "rotation",
    "norm": "norm",
    "translation_harmful": "shift of harmful prompts",
    "translation_harmless": "shift of harmless prompts",
    "separability": "separability",
    "separability_base_direction": "separability along the base direction",
}


def _over(found: Trajectory) -> str:
    known = sum(band is not None for band in found.bands)
    return f"{100 * found.level:.3g} % band over {_count(known)}"


def _count(n: int) -> str:
    return f"{n} checkpoint" if n == 1 else f"{n} checkpoints"


def _rotation(found: Trajectory) -> str:
    """Since when the direction is rotated."""
    if not any(found.bands):
        return f"Rotation at {found.site} cannot be estimated at any checkpoint."
    if found.first_rotation is None:
        unseen = max(
            band.upper for band in found.angle_bands if band is not None and band.upper is not None
        )
        return (
            f"At no checkpoint is a rotation of the refusal direction at {found.site} detected "
            f"({_over(found)}); up to {unseen:.1f}° would have gone unseen."
        )
    first = found.checkpoints[found.first_rotation]
    band = found.angle_bands[found.first_rotation]
    assert band is not None and band.value is not None
    return (
        f"The refusal direction at {found.site} is first found rotated at {first.name}, by "
        f"{band.value:.1f}° ({band.lower:.1f}° to {band.upper:.1f}°, {_over(found)})."
    )


def _drift(found: Trajectory) -> str:
    """Since when anything at the site has changed."""
    alone = "each checkpoint taken by itself"
    if found.first_drift is None:
        return f"At no checkpoint is any drift at the site detected ({alone})."
    first = found.checkpoints[found.first_drift]
    what = ", ".join(_KINDS[kind] for kind in first.detected)
    return f"The first checkpoint with any drift at the site is {first.name}: {what} ({alone})."


def _last(found: Trajectory) -> str:
    """Where it has come to."""
    last = found.checkpoints[-1]
    turned, norm = last.angle.value, last.shrinkage.value
    if turned is None or norm is None:
        return f"At the last, {last.name}, the rotation cannot be estimated."
    shifts = [_shift(e.value) for e in (last.translation.harmful, last.translation.harmless)]
    return (
        f"At the last, {last.name}, the direction is rotated by {turned:.1f}° with {norm:.3f} of "
        f"base's norm; harmful prompts are shifted by {shifts[0]} base SDs, harmless ones by "
        f"{shifts[1]}."
    )


def _shift(value: float | None) -> str:
    """A shift with its sign; what rounds to zero has none."""
    if value is None:
        return "an unknown number of"
    text = f"{value:+.2f}".replace("-", "−")
    return "0.00" if text.strip("+−") == "0.00" else text
