"""Records of the pairs on disk, and the specs by which they are opened."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refusaldir.models.cache import cache_root

from .bands import BASE


def root() -> Path:
    """Where adapters, records and results are kept: ``planted/`` in the cache."""
    return cache_root() / "planted"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One pair with a known answer; tuned is base with the adapters stacked on it.

    Attributes:
        name: Unique.
        kind: ``plain``, ``decoy-rotation``, ``decoy-text``, ``edit``, ``edit-decoy``,
            ``none-rotation`` or ``none-text``.
        band: Layers whose change refusal feels, ascending; empty of a pair without a change.
        components: ``attn``, ``mlp`` or ``both``; of the band, or of the decoy without one.
        adapters: Folders under `root`, in the order they are stacked.
        seeds: Of every random choice, and whatever else it takes to make the pair again.
        norms: ``"band"`` and ``"decoy"``: norm of the change by layer.
        relative: The same over the norm of the matrices that changed.
        scores: Refusal score of the held-out harmful prompts with 95 % interval: ``"base"``,
            ``"tuned"``, and alone ``"band"`` and ``"decoy"``; ``"decoy shift"`` is the paired
            difference of the decoy alone from base.
        checks: What has to hold for the pair to be what it is said to be.
    """

    name: str
    kind: str
    band: tuple[int, ...]
    components: str
    adapters: tuple[str, ...]
    seeds: dict[str, Any]
    norms: dict[str, dict[int, float]]
    relative: dict[str, dict[int, float]]
    scores: dict[str, dict[str, float]]
    checks: dict[str, bool]

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(self.checks.values())

    @property
    def tuned(self) -> str:
        """Spec of the tuned model."""
        return "+".join([BASE, *(str(root() / name) for name in self.adapters)])

    def write(self):
        """Write the record; it is there whole or not at all."""
        path = record_path(self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def record_path(name: str) -> Path:
    """Where a pair's record lies once it is made."""
    return root() / "pairs" / f"{name}.json"


def read_pair(name: str) -> Pair:
    """Read one record."""
    data = json.loads(record_path(name).read_text(encoding="utf-8"))
    for field in ("norms", "relative"):
        data[field] = {
            which: {int(layer): value for layer, value in by_layer.items()}
            for which, by_layer in data[field].items()
        }
    data["band"], data["adapters"] = tuple(data["band"]), tuple(data["adapters"])
    return Pair(**data)


def read_pairs() -> list[Pair]:
    """All records, by name."""
    return [read_pair(path.stem) for path in sorted((root() / "pairs").glob("*.json"))]
