"""Harmfulness and refusal apart: the last instruction token beside the tokens that follow.

Models encode whether a request is harmful at the last token of the instruction, and whether they
will refuse it at the template's tokens after it; the two directions differ and can be moved one
without the other (Zhao et al. 2025, arXiv 2507.11878). A fine-tune that turns the second and
leaves the first still knows what is harmful and answers all the same.
"""

from dataclasses import asdict, dataclass
from typing import Any

from refusaldir.drift.layer_result import LayerDrift
from refusaldir.records import Estimate, Site
from refusaldir.statistics import Deviations


@dataclass(frozen=True, kw_only=True)
class HarmfulnessDrift:
    """Drift of the harmfulness direction, and how it lies to the refusal direction.

    Attributes:
        site: The layer, at the last instruction token, where base separates best.
        drift: All drift figures there.
        cosine_base: Corrected cosine in base of the directions at the last instruction token
            and at the refusal site, both at the refusal site's layer.
        cosine_tuned: The same in tuned.
        difference: Corrected cosine (base to tuned) of the harmfulness direction minus that of
            the refusal direction: above 0 when refusal turned more.
        sentence: What that says in words.
    """

    site: Site
    drift: LayerDrift
    cosine_base: Estimate
    cosine_tuned: Estimate
    difference: Estimate
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "site": asdict(self.site),
            "drift": self.drift.to_dict(),
            "cosine_base": self.cosine_base.to_dict(),
            "cosine_tuned": self.cosine_tuned.to_dict(),
            "difference": self.difference.to_dict(),
            "sentence": self.sentence,
        }


def harmfulness_drift(
    harmfulness: LayerDrift,
    refusal: LayerDrift,
    deviations: tuple[Deviations | None, Deviations | None],
    cosines: tuple[Estimate, Estimate],
    *,
    level: float = 0.95,
) -> HarmfulnessDrift:
    """Set the two directions' drift side by side.

    Args:
        harmfulness: Drift at the last instruction token.
        refusal: Drift at the refusal site.
        deviations: Of the corrected cosines of the two, in that order; None where they are not
            estimable.
        cosines: Corrected cosine of the two directions in base and in tuned.
        level: Nominal coverage of the difference.
    """
    difference = _difference(harmfulness.rotation, refusal.rotation, deviations, level)
    return HarmfulnessDrift(
        site=harmfulness.site,
        drift=harmfulness,
        cosine_base=cosines[0],
        cosine_tuned=cosines[1],
        difference=difference,
        sentence=_sentence(harmfulness, refusal, difference),
    )


def _difference(
    harmfulness: Estimate,
    refusal: Estimate,
    deviations: tuple[Deviations | None, Deviations | None],
    level: float,
) -> Estimate:
    first, second = deviations
    if harmfulness.value is None or refusal.value is None or first is None or second is None:
        note = harmfulness.note if harmfulness.value is None else refusal.note
        return Estimate(value=None, n=refusal.n, level=level, note=note)
    return (first - second).interval(harmfulness.value - refusal.value, level=level)


def _sentence(harmfulness: LayerDrift, refusal: LayerDrift, difference: Estimate) -> str:
    at = f"At the last instruction token ({harmfulness.site}), where harmfulness is encoded,"
    turned, other = harmfulness.angle.value, refusal.angle.value
    if turned is None or other is None or difference.lower is None or difference.upper is None:
        return f"{at} the direction cannot be compared with refusal's ({difference.note})."
    both = f"the direction turned by {turned:.1f}°, against {other:.1f}° at {refusal.site}"
    if difference.lower > 0:
        verdict = "refusal moved more than harmfulness"
    elif difference.upper < 0:
        verdict = "harmfulness moved more than refusal"
    else:
        verdict = "that the two differ is not shown"
    area = harmfulness.auroc
    values = [e.value for e in (area.base_direction_on_base, area.tuned_direction_on_tuned)]
    read = ""
    if None not in values:
        read = f"; harmfulness is read there with AUROC {values[0]:.3f} → {values[1]:.3f}"
    gap = (
        f"difference of corrected cosines {difference.value:+.3f}, "
        f"{difference.lower:+.3f} to {difference.upper:+.3f}"
    ).replace("-", "−")
    return f"{at} {both}: {verdict} ({gap}){read}."
