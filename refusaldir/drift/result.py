"""What a comparison of two captures returns."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from refusaldir.directions.site import SiteChoice
from refusaldir.drift.layer_result import LayerDrift
from refusaldir.records import Estimate, Provenance, Site

if TYPE_CHECKING:
    from refusaldir.drift.context import Context
    from refusaldir.drift.geometry_view import GeometryView
    from refusaldir.drift.harmfulness import HarmfulnessDrift
    from refusaldir.statistics import Deviations


@dataclass(frozen=True, kw_only=True)
class SiteRotation:
    """Rotation and shrinkage at one site of the layer × position grid."""

    site: Site
    rotation: Estimate
    shrinkage: Estimate


@dataclass(frozen=True, kw_only=True)
class RankedLayer:
    """A layer's place among the layers where the direction drifted.

    Attributes:
        rank: 1 for the first.
        layer: Block index.
        drift: ``1 − cos*`` with an interval that holds over all layers at once.
        increment: What this layer adds to the previous one's drift, likewise; None for the
            first layer with signal.
    """

    rank: int
    layer: int
    drift: Estimate
    increment: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Margins:
    """Changes up to these are small: the margins of equivalence.

    Attributes:
        rotation: Angle, degrees.
        norm: Change of the norm ratio from 1, either way.
        translation: Shift of a class mean, base SDs.
        separability: Change of d′.
    """

    rotation: float = 10.0
    norm: float = 0.1
    translation: float = 0.25
    separability: float = 0.5


#: The margins used where none are given.
MARGINS = Margins()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One question asked at the chosen site, and its answer.

    Attributes:
        kind: ``rotation``, ``norm``, ``translation_harmful``, ``translation_harmless``,
            ``separability`` or ``separability_base_direction``.
        detected: Whether the interval leaves out "no change"; None when it cannot be told.
        small: Whether the whole interval lies within the margin; None when it cannot be told.
        sentence: The answer in words.
        estimate: The figure, with an interval at the level that makes all questions hold
            together.
    """

    kind: str
    detected: bool | None
    small: bool | None
    sentence: str
    estimate: Estimate


@dataclass(frozen=True, kw_only=True, eq=False)
class DriftResult:
    """Drift of the refusal direction between two captures.

    Attributes:
        hook: Hook point compared.
        site: The site chosen on the base model, with the table behind the choice.
        layers: Drift per layer at the chosen position.
        grid: Rotation and shrinkage at every captured position.
        ranking: Layers, most drifted first.
        ranking_rule: What the ranking means, in words.
        findings: Answers at the chosen site.
        verdict: The findings and the ranking as sentences.
        notes: Warnings: tolerated mismatches, few prompts.
        n_prompts: Number of prompts.
        n_harmful: Number of harmful prompts.
        n_harmless: Number of harmless prompts.
        n_clusters: Number of intents, the independent units.
        level: Nominal coverage of single intervals.
        seed: Seed of folds and bands.
        base: Provenance of the base capture.
        tuned: Provenance of the tuned capture.
        methods: What each figure of a layer is, in words.
        margins: Changes that count as small.
        harmfulness: The last instruction token beside the refusal site; None where it was not
            captured or carries no signal.
        context: What the figures are to be held against.
        views: Both models' prompts in a plane, at the chosen site.
        deviations: What the variance of the corrected cosine at the site is made of, for bands
            over several comparisons; None when it is not estimable. Not part of the document.
    """

    hook: str
    site: SiteChoice
    layers: tuple[LayerDrift, ...]
    grid: tuple[SiteRotation, ...]
    ranking: tuple[RankedLayer, ...]
    ranking_rule: str
    findings: tuple[Finding, ...]
    verdict: tuple[str, ...]
    notes: tuple[str, ...] = ()
    n_prompts: int
    n_harmful: int
    n_harmless: int
    n_clusters: int
    level: float
    seed: int
    base: Provenance
    tuned: Provenance
    methods: Mapping[str, str] = field(default_factory=dict)
    margins: Margins = MARGINS
    harmfulness: "HarmfulnessDrift | None" = None
    context: "Context | None" = None
    views: "tuple[GeometryView, ...]" = ()
    deviations: "Deviations | None" = None

    @property
    def at_site(self) -> LayerDrift:
        """The drift at the chosen site."""
        return next(row for row in self.layers if row.site == self.site.site)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary (no NaN or infinity)."""
        return {
            "hook": self.hook,
            "site": self.site.to_dict(),
            "layers": [row.to_dict() for row in self.layers],
            "grid": [asdict(cell) for cell in self.grid],
            "ranking": [asdict(entry) for entry in self.ranking],
            "ranking_rule": self.ranking_rule,
            "findings": [asdict(finding) for finding in self.findings],
            "verdict": list(self.verdict),
            "notes": list(self.notes),
            "methods": dict(self.methods),
            "margins": asdict(self.margins),
            "context": None if self.context is None else self.context.to_dict(),
            "harmfulness": None if self.harmfulness is None else self.harmfulness.to_dict(),
            "views": [view.to_dict() for view in self.views],
            "n_prompts": self.n_prompts,
            "n_harmful": self.n_harmful,
            "n_harmless": self.n_harmless,
            "n_clusters": self.n_clusters,
            "level": self.level,
            "seed": self.seed,
            "base": self.base.to_dict(),
            "tuned": self.tuned.to_dict(),
        }
