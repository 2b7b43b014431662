"""One measurement of a model in training: drift at the site, and the first-token refusal score."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from refusaldir.drift.layer_result import ByClass
from refusaldir.drift.trajectory import Checkpoint
from refusaldir.records import Estimate

_DRIFT = ("rotation", "angle", "shrinkage", "d_prime_change")


@dataclass(frozen=True, kw_only=True)
class ScoreChange:
    """Refusal score of one class of prompts.

    Attributes:
        value: Its mean, nats.
        change: Mean change since the first measurement, paired over prompts, nats.
    """

    value: Estimate
    change: Estimate


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingPoint:
    """One measurement.

    Attributes:
        step: Training step.
        epoch: Epochs trained, or None.
        drift: Figures against base at the site.
        harmful: Refusal score of harmful prompts; None without refusal tokens.
        harmless: The same of harmless prompts.
    """

    step: int
    epoch: float | None
    drift: Checkpoint
    harmful: ScoreChange | None
    harmless: ScoreChange | None

    def figures(self) -> dict[str, Estimate]:
        """Every figure by name; scores only where there are any."""
        drift = self.drift
        found = {
            "rotation_degrees": drift.angle,
            "norm_ratio": drift.shrinkage,
            "shift_harmful_sd": drift.translation.harmful,
            "shift_harmless_sd": drift.translation.harmless,
            "d_prime_change": drift.d_prime_change,
        }
        for side, score in (("harmful", self.harmful), ("harmless", self.harmless)):
            if score is not None:
                found |= {f"score_{side}": score.value, f"score_change_{side}": score.change}
        return found

    @property
    def headline(self) -> str:
        """What it says, in one sentence."""
        angle = self.drift.angle
        if angle.value is None:
            said = f"Step {self.step}: the rotation is {angle.note or 'not estimable'}"
        else:
            said = (
                f"Step {self.step}: the refusal direction is rotated by "
                f"{spanned(angle, '.1f', '°')}"
            )
        if self.harmful is not None and self.harmful.change.value is not None:
            said += (
                "; the refusal score of harmful prompts has changed by "
                f"{spanned(self.harmful.change, '+.2f')} nats"
            )
        return f"{said}."

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "drift": self.drift.to_dict(),
            "harmful": None if self.harmful is None else asdict(self.harmful),
            "harmless": None if self.harmless is None else asdict(self.harmless),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TrainingPoint":
        """Rebuild from `to_dict`; the deviations are lost, so that no band holds over it."""
        drift = dict(data["drift"])
        shifts = {side: Estimate(**cell) for side, cell in drift["translation"].items()}
        drift |= {name: Estimate(**drift[name]) for name in _DRIFT}
        drift |= {"translation": ByClass(**shifts), "detected": tuple(drift["detected"])}
        scores: dict[str, ScoreChange | None] = {}
        for side in ("harmful", "harmless"):
            cells = data[side]
            scores[side] = (
                None
                if cells is None
                else ScoreChange(**{name: Estimate(**cell) for name, cell in cells.items()})
            )
        return cls(
            step=data["step"],
            epoch=data["epoch"],
            drift=Checkpoint(**drift, deviations=None),
            harmful=scores["harmful"],
            harmless=scores["harmless"],
        )


def spanned(estimate: Estimate, form: str, unit: str = "") -> str:
    """A figure with its interval in brackets, where it has one, as text."""

    def text(value: float) -> str:
        digits = f"{value:{form}}"
        if not float(digits):  # what rounds to zero has no sign
            digits = digits.lstrip("+-")
        return f"{digits}{unit}".replace("-", "−")

    said = "unknown" if estimate.value is None else text(estimate.value)
    if estimate.lower is None or estimate.upper is None:
        return said
    return f"{said} ({text(estimate.lower)} to {text(estimate.upper)})"
