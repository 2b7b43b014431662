"""The smallest changes that one comparison would have shown, beside what it found."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from refusaldir.drift.contrasts import Contrasts
from refusaldir.drift.power.noise import measure_noise
from refusaldir.drift.power.power import Power, least_translation
from refusaldir.drift.power.shift_noise import measure_shift_noise
from refusaldir.errors import DirectionError
from refusaldir.records import HARMFUL, HARMLESS
from refusaldir.statistics import critical_value


@dataclass(frozen=True, kw_only=True)
class MinimumDetectable:
    """The smallest changes that one comparison would have shown.

    Attributes:
        rotation: Rotation, in degrees; None when not even a right angle, or not estimable.
        norm: Share by which the norm would have had to shrink; None likewise.
        translation_harmful: Shift of harmful prompts along base's direction, in base SDs.
        translation_harmless: Shift of harmless prompts.
        n: Number of intents.
        level: Nominal coverage of each interval.
        power: Chance with which these would have been shown.
        note: Why a figure is missing, if one is.
    """

    rotation: float | None
    norm: float | None
    translation_harmful: float | None
    translation_harmless: float | None
    n: int
    level: float
    power: float
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """The figures in words."""
        parts = [
            text
            for value, text in (
                (self.rotation, f"a rotation of {self.rotation or 0:.1f}°"),
                (self.norm, f"a norm {100 * (self.norm or 0):.1f} % shorter"),
                (
                    self.translation_harmful,
                    f"a shift of {self.translation_harmful or 0:.2f} base SDs of harmful prompts",
                ),
                (
                    self.translation_harmless,
                    f"one of {self.translation_harmless or 0:.2f} of harmless prompts",
                ),
            )
            if value is not None
        ]
        if not parts:
            return f"What would have been detected cannot be told: {self.note}."
        listed = ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]
        end = f" ({self.note})" if self.note else ""
        return (
            f"With {self.n} intents this comparison had {100 * self.power:.0f} % power to detect "
            f"{listed}{end}."
        )


def minimum_detectable(
    contrasts: Contrasts,
    base: Float[np.ndarray, "prompt d_model"],
    *,
    level: float = 0.95,
    power: float = 0.8,
) -> MinimumDetectable:
    """The smallest rotation, norm change and translations that a comparison would have shown.

    It is about the noise of these captures, not about what was found in them: how much each
    figure would have had to differ from "no change", each change by itself.

    Args:
        contrasts: Both models at the site.
        base: Activations of base there, float64.
        level: Nominal coverage of each interval.
        power: Chance with which a change is to be seen.
    """
    clusters = contrasts.design.clusters
    n = clusters.n
    figures: dict[str, float | None] = dict.fromkeys(
        ("rotation", "norm", "translation_harmful", "translation_harmless")
    )
    note = ""
    try:
        if contrasts.identical:
            raise DirectionError("the activations are identical")
        shift = measure_shift_noise(contrasts, base)
        critical = critical_value(level, clusters.df)
        for name, label in (("harmful", HARMFUL), ("harmless", HARMLESS)):
            figures[f"translation_{name}"] = least_translation(shift, n, label, critical, power)
        p = Power(noise=measure_noise(contrasts, base), level=level, power=power)
        figures |= {"rotation": p.least_rotation(n), "norm": p.least_norm(n)}
    except DirectionError as error:
        note = error.what
    else:
        if None in figures.values():
            note = "the others are beyond what so few prompts can show"
    return MinimumDetectable(**figures, n=n, level=level, power=power, note=note)
