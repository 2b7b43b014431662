"""Base once more in tuned's precision, and what precision alone does to the direction.

Another dtype or quantization moves activations by itself. So that models are compared like with
like, base is captured once more as tuned was; the difference between base and that capture is what
precision alone explains.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from refusaldir.errors import (
    CaptureMismatchError,
    MissingExtraError,
    ModelLoadError,
    ModelSpecError,
    PromptError,
    TemplateError,
)
from refusaldir.pipeline.arm import Arm, Terms
from refusaldir.pipeline.progress import ProgressFn
from refusaldir.records import Estimate, Site
from refusaldir.store import Capture

#: What keeps a model from being opened as tuned was: a reason, and no end of the comparison.
_CANNOT = (
    CaptureMismatchError,
    MissingExtraError,
    ModelLoadError,
    ModelSpecError,
    PromptError,
    TemplateError,
)


def require_allowed(base: Arm, tuned: Arm) -> None:
    """Refuse to compare models of unlike precision.

    Raises:
        CaptureMismatchError: Their dtype or quantization differs.
    """
    if base.precision != tuned.precision:
        raise CaptureMismatchError(
            "Base and tuned differ in dtype or quantization, which by itself moves activations",
            expected=f"{base.precision} as in base",
            got=f"{tuned.precision} in tuned",
            where=f"{base.opening.spec.name} and {tuned.opening.spec.name}",
            next_step="Extract both with one --dtype and --quantize, or add "
            f"--allow-dtype-mismatch: base is then captured once more in {tuned.precision}, and "
            "what precision alone does is told apart",
        )


@dataclass(frozen=True, kw_only=True)
class Alike:
    """Base in tuned's precision.

    Attributes:
        arm: Its capture, made or planned; None where it cannot be had.
        reason: Why not.
    """

    arm: Arm | None
    reason: str = ""

    @classmethod
    def find(
        cls, base: Arm, tuned: Arm, terms: Terms, batch_size: int | None, store: str | Path | None
    ) -> "Alike | None":
        """Look for it in the store, else plan it; None where both have one precision."""
        if base.precision == tuned.precision:
            return None
        own, wanted = base.provenance, tuned.provenance.model
        try:
            options = replace(
                base.opening.options, dtype=wanted.dtype, quantize=wanted.quantization
            )
            opening = replace(base.opening, options=options)
            plan = terms.plan(opening, batch_size)
        except _CANNOT as error:
            return cls(arm=None, reason=str(error))
        found = plan.provenance
        if found.model.weights_hash != own.model.weights_hash:
            return cls(arm=None, reason="The model has changed since it was captured.")
        if found.rendered_hash != own.rendered_hash:
            return cls(arm=None, reason="The prompts of the capture give other tokens now.")
        return cls(arm=Arm.of_plan(base.role, opening, plan, store))

    def made(self, base: Arm, progress: ProgressFn) -> "Alike":
        """Make its capture and that of base in its own precision, as far as there are none.

        Raises:
            RefusaldirError: Base cannot be captured in its own precision.
        """
        arm = self.arm
        if arm is None:
            return self
        try:
            arm.make(f"Capture base in {arm.precision}", progress)
        except _CANNOT as error:
            return Alike(arm=None, reason=str(error))
        base.make(f"Capture base in {base.precision}", progress)
        return Alike(arm=arm.now)


def precision_document(
    base: Arm, alike: Alike, tuned: Arm, site: Site, *, level: float, seed: int
) -> dict[str, Any]:
    """The document's ``precision``.

    Args:
        base: Base in its own precision, captured.
        alike: Base in tuned's.
        tuned: Tuned.
        site: Where.
        level: Nominal coverage of the intervals.
        seed: Seed of the folds.
    """
    from refusaldir.drift.at_site import drift_at

    names = {"base": base.precision, "tuned": tuned.precision}
    figures: dict[str, Any] = dict.fromkeys(("rotation", "angle", "shrinkage", "translation"))
    if alike.arm is None:
        sentence = (
            f"Base is in {base.precision} and tuned in {tuned.precision}, and base could not be "
            f"captured in {tuned.precision}, so part of any drift may be precision. {alike.reason}"
        )
        return {**names, "like_with_like": False, **figures, "sentence": sentence}
    with Capture.open(base.path) as own, Capture.open(alike.arm.path) as other:
        row, _ = drift_at(own, other, site, level=level, seed=seed, allow_dtype_mismatch=True)
    figures = {name: asdict(getattr(row, name)) for name in figures}
    shifts = row.translation
    sentence = (
        f"Precision alone: in {tuned.precision} instead of {base.precision}, base's own direction "
        f"is rotated by {_said(row.angle, '{:.2f}°'.format)} and has "
        f"{_said(row.shrinkage, '{:.3f}'.format)} of its norm; harmful prompts are shifted by "
        f"{_said(shifts.harmful, _signed)} base SDs, harmless ones by "
        f"{_said(shifts.harmless, _signed)}. Both models are compared in {tuned.precision}, so "
        "this is no part of the drift."
    )
    return {**names, "like_with_like": True, **figures, "sentence": sentence}


def _said(e: Estimate, form: Callable[[float], str]) -> str:
    if e.value is None:
        return "an unknown amount"
    if e.lower is None or e.upper is None:
        return form(e.value)
    return f"{form(e.value)} ({100 * e.level:.3g} % interval {form(e.lower)} to {form(e.upper)})"


def _signed(value: float) -> str:
    text = f"{value:+.3f}".replace("-", "−")
    return "0.000" if text.strip("+−") == "0.000" else text
