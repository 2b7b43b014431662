"""What selectivity says, per site and over the layers; see `refusaldir.drift.selectivity`."""

from dataclasses import dataclass
from typing import Any

from refusaldir.records import Estimate, Site

_ANSWERS = {
    "singled out": "refusal singled out",
    "spared": "refusal spared",
    "alike": "everything moved, refusal as any direction of its variance",
    "unknown": "whether refusal was singled out cannot be told",
    "unchanged": "nothing moved",
}


@dataclass(frozen=True, kw_only=True)
class Selectivity:
    """Energy inside the refusal subspace against random subspaces.

    Attributes:
        ratio: Energy inside the refusal subspace over its mean in random subspaces.
        share: Share of the energy inside the refusal subspace.
        expected: Mean share in the random subspaces.
        null: Quantiles 2.5 %, 50 % and 97.5 % of the random subspaces' own ratios.
        p_value: Two-sided: how often a random subspace comes as far out on its side.
        p_adjusted: The same with each draw taking its own most extreme layer.
        answer: ``"singled out"``, ``"spared"``, ``"alike"``, ``"unknown"`` or ``"unchanged"``.
    """

    ratio: Estimate
    share: float | None = None
    expected: float | None = None
    null: tuple[float, float, float] | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    answer: str = "unknown"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "ratio": self.ratio.to_dict(),
            "share": self.share,
            "expected": self.expected,
            "null": None if self.null is None else list(self.null),
            "p_value": self.p_value,
            "p_adjusted": self.p_adjusted,
            "answer": self.answer,
        }


@dataclass(frozen=True, kw_only=True)
class LayerSelectivity:
    """Selectivity at one site.

    Attributes:
        site: The site.
        prompts: Of the prompts' changes.
        means: Of the class means' changes.
        variance: Share of base's within-class variance inside the refusal subspace, held out.
        variance_random: The same, expected in the random subspaces.
        matched: Whether the two agree; where refusal varies more or less than any random
            subspace here, they come as near as they can.
    """

    site: Site
    prompts: Selectivity
    means: Selectivity
    variance: float | None = None
    variance_random: float | None = None
    matched: bool = False

    @property
    def sentence(self) -> str:
        """The answer for the prompts' changes, in words."""
        kept, e = self.prompts, self.prompts.ratio
        text = _ANSWERS[kept.answer]
        if e.value is None:
            return f"At {self.site} {text} ({e.note})."
        figures = f"{e.value:.2f} times the energy of random directions that vary as much"
        if e.lower is not None and e.upper is not None:
            figures += f", {100 * e.level:.3g} % interval {e.lower:.2f} to {e.upper:.2f}"
        if kept.p_value is not None:
            figures += f", p = {kept.p_value:.3g}"
        return f"At {self.site} {text} ({figures})."

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "site": {"hook": self.site.hook, "layer": self.site.layer,
                     "position": self.site.position},
            "prompts": self.prompts.to_dict(),
            "means": self.means.to_dict(),
            "variance": self.variance,
            "variance_random": self.variance_random,
            "matched": self.matched,
            "sentence": self.sentence,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SelectivityResult:
    """Selectivity layer by layer.

    Attributes:
        layers: One entry per site, in the order they were added.
        k: Dimensions of the subspace.
        draws: Number of random subspaces.
        n: Number of intents.
        level: Nominal coverage of the intervals; 1 − level is the level of the tests.
        seed: Seed of the draws.
    """

    layers: tuple[LayerSelectivity, ...]
    k: int
    draws: int
    n: int
    level: float
    seed: int

    @property
    def sentence(self) -> str:
        """Where refusal was singled out or spared, all layers together."""
        tested = [row for row in self.layers if row.prompts.p_adjusted is not None]
        if not tested:
            return "Whether refusal was singled out cannot be told at any layer."
        said = []
        for answer in ("singled out", "spared"):
            found = [
                str(row.site.layer)
                for row in tested
                if row.prompts.answer == answer and (row.prompts.p_adjusted or 0) <= 1 - self.level
            ]
            if found:
                plural = "s" if len(found) > 1 else ""
                said.append(f"{answer} at layer{plural} {', '.join(found)}")
        over = f"p ≤ {1 - self.level:.2g} over {len(tested)} layers together"
        if said:
            return f"Refusal was {' and '.join(said)} ({over})."
        alike = sum(row.prompts.answer == "alike" for row in tested)
        return (
            f"At no layer was refusal singled out or spared beyond what random directions show "
            f"({over}); at {alike} of {len(tested)} it moved as any direction of its variance."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "layers": [row.to_dict() for row in self.layers],
            "k": self.k,
            "draws": self.draws,
            "n": self.n,
            "level": self.level,
            "seed": self.seed,
            "sentence": self.sentence,
        }
