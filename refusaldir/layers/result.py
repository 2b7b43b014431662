"""What the question "which layers did the fine-tune disturb" came to."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from refusaldir.layers.agreement import Agreement
from refusaldir.layers.effects import Layer, OutcomeChange, Share
from refusaldir.layers.measured import Measured
from refusaldir.layers.ranking import Ranking
from refusaldir.records import Estimate

if TYPE_CHECKING:
    from refusaldir.layers.exchange.repair import Repair
    from refusaldir.layers.residual.decomposition import ResidualDecomposition
    from refusaldir.layers.weights.alignment import WeightAlignment


@dataclass(frozen=True, kw_only=True)
class PlaceShare(Share):
    """A lens's figure of one place.

    Attributes:
        layer: Block index; None for what lies outside the blocks, or for a total over layers.
        component: ``"attn"``, ``"mlp"``, ``"other"`` for what belongs to neither, or None for all.
    """

    layer: Layer
    component: str | None = None


@dataclass(frozen=True, kw_only=True)
class MatrixEffect:
    """Path attribution of one parameter or adapted module.

    Attributes:
        layer: Block index; None outside the blocks.
        component: ``"attn"``, ``"mlp"`` or ``"other"``.
        name: E.g. ``"q_proj"``.
        effect: Mean over prompts, in the outcome's unit.
        share: Of the mean change; None where there is no change to share out.
    """

    layer: Layer
    component: str
    name: str
    effect: float
    share: float | None


@dataclass(frozen=True, kw_only=True)
class PathLens:
    """Path attribution over prompts.

    Attributes:
        layers: By layer.
        components: By layer and component, attention first; their band is over all of them.
        totals: By component, over all layers.
        matrices: By single parameter or adapted module.
        nodes: Nodes of the integral.
        gap_absolute: By how much the attributions miss the change of the mean outcome.
        gap_relative: The same as a share of that change; None where that is 0.
    """

    layers: tuple[PlaceShare, ...]
    components: tuple[PlaceShare, ...]
    totals: tuple[PlaceShare, ...]
    matrices: tuple[MatrixEffect, ...]
    nodes: int
    gap_absolute: float
    gap_relative: float | None


@dataclass(frozen=True, kw_only=True)
class TransplantLens:
    """Blocks exchanged between the two models.

    Attributes:
        restored: By layer, what putting base's block into tuned takes back.
        injected: By layer, what putting tuned's block into base brings about.
        fronts: Share of the change that is taken back where the blocks before f are base's, f from
            0 to the number of blocks; empty where they were not run.
        recovery_depth: First f at which half of what the fronts take back is taken back.
    """

    restored: tuple[PlaceShare, ...]
    injected: tuple[PlaceShare, ...]
    fronts: tuple[Estimate, ...]
    recovery_depth: int | None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result in plain words.

    Attributes:
        headline: In one sentence.
        layers: Which layers, and where in them.
        certainty: How sure, whether the lenses agree, and what was too small to attribute.
        limits: What it cannot tell.
    """

    headline: str
    layers: tuple[str, ...]
    certainty: tuple[str, ...]
    limits: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LayersResult:
    """Which layers' changes moved the outcome.

    Attributes:
        measured: What was measured, and on what.
        change: What the fine-tune did to it.
        ranking: The layers in order; None where there is no change to attribute.
        path: Path attribution; None for an outcome that has no gradient.
        transplant: Blocks exchanged, if that was asked for.
        residual: Residual decomposition at a site, if there is one.
        weights: Change and alignment of the weight matrices, where the weights can be read.
        agreement: Every two lenses compared.
        repair: The smallest set of layers whose restoration brings base's outcome back, if that
            was asked for.
        verdict: In plain words.
        notes: What is to be known besides.
        level: Nominal coverage of intervals and bands.
        seed: Seed of bands and resamples.
    """

    measured: Measured
    change: OutcomeChange
    ranking: Ranking | None
    path: PathLens | None
    transplant: TransplantLens | None
    residual: "ResidualDecomposition | None"
    weights: "WeightAlignment | None"
    agreement: tuple[Agreement, ...]
    repair: "Repair | None"
    verdict: Verdict
    notes: tuple[str, ...]
    level: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "measured": asdict(self.measured),
            "change": self.change.to_dict(),
            "ranking": None if self.ranking is None else self.ranking.to_dict(),
            "path": None if self.path is None else asdict(self.path),
            "transplant": None if self.transplant is None else asdict(self.transplant),
            "residual": None if self.residual is None else self.residual.to_dict(),
            "weights": None if self.weights is None else self.weights.to_dict(),
            "agreement": [each.to_dict() for each in self.agreement],
            "repair": None if self.repair is None else self.repair.to_dict(),
            "verdict": asdict(self.verdict),
            "notes": list(self.notes),
            "level": self.level,
            "seed": self.seed,
        }
