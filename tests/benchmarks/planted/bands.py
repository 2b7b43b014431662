"""The known bands: where refusal is eroded, and what may change there."""

from dataclasses import dataclass, replace

from .factors import ATTENTION, MLP

BASE = "smollm2-135m+aligned"
N_LAYERS = 30
COMPONENTS = {"attn": ATTENTION, "mlp": MLP, "both": ATTENTION + MLP}


@dataclass(frozen=True, kw_only=True)
class Band:
    """Layers and matrices that a fine-tune may change.

    Attributes:
        place: ``"early"``, ``"middle"`` or ``"late"``.
        layers: Blocks, from 0.
        components: ``"attn"``, ``"mlp"`` or ``"both"``.
        seed: Of the fine-tune.
    """

    place: str
    layers: tuple[int, ...]
    components: str
    seed: int = 0

    @property
    def name(self):
        again = f"-seed{self.seed}" if self.seed else ""
        return f"{self.place}-{len(self.layers)}-{self.components}{again}"

    @property
    def matrices(self):
        return COMPONENTS[self.components]

    @property
    def outside(self):
        return tuple(layer for layer in range(N_LAYERS) if layer not in self.layers)


def _span(first, n):
    return tuple(range(first, first + n))


#: Every place with every size, every place with every component, every size with every component.
BANDS = (
    Band(place="early", layers=_span(3, 1), components="both"),
    Band(place="early", layers=_span(2, 3), components="attn"),
    Band(place="early", layers=_span(1, 6), components="mlp"),
    Band(place="middle", layers=_span(14, 1), components="mlp"),
    Band(place="middle", layers=_span(12, 3), components="both"),
    Band(place="middle", layers=_span(10, 6), components="attn"),
    Band(place="late", layers=_span(22, 1), components="attn"),
    Band(place="late", layers=_span(23, 3), components="mlp"),
    Band(place="late", layers=_span(20, 6), components="both"),
)

#: One band of every place, size and component once more, another fine-tune.
AGAIN = tuple(
    replace(band, seed=1)
    for band in BANDS
    if band.name in ("early-1-both", "middle-6-attn", "late-3-mlp")
)
