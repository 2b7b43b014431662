"""Drift against behaviour over several fine-tunes of one base, weight distance among the rivals.

One row a fine-tune (or a checkpoint): the change of its refusal rate beside what moved in it.
Checkpoints of one run lie on one path, so that any two things which grow along it go together;
their correlations stand without an interval. Fine-tunes made apart are independent rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from refusaldir.probes.link.mechanism import SUBJECTS
from refusaldir.probes.rank_correlation import Column, DriftCorrelation, drift_against_behaviour
from refusaldir.records import Estimate

_PATH = "no interval: checkpoints of one run lie on one path and are not independent"


@dataclass(frozen=True, kw_only=True)
class SeriesLink:
    """Drift against behaviour over the fine-tunes of one base.

    Attributes:
        rows: Names of the fine-tunes.
        independent: Whether they were made apart.
        axes: By axis of behaviour, the correlation of each measure; axes without rates are absent.
        measures: What each measure is, in words, by name.
        rivals: Names of those that know nothing of refusal.
        level: Nominal coverage.
    """

    rows: tuple[str, ...]
    independent: bool
    axes: Mapping[str, tuple[DriftCorrelation, ...]]
    measures: Mapping[str, str]
    rivals: tuple[str, ...]
    level: float

    @property
    def sentences(self) -> tuple[str, ...]:
        """What it says, in words."""
        said = []
        for axis, found in self.axes.items():
            known = [each for each in found if each.kendall.value is not None]
            if not known:
                continue
            named = ", ".join(each.words for each in known)
            what = "fine-tunes" if self.independent else "checkpoints of one run"
            said.append(
                f"Over {len(self.rows)} {what}, Kendall's τ-b with the change of {SUBJECTS[axis]}: "
                f"{named}."
            )
        return tuple(said)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "rows": list(self.rows),
            "independent": self.independent,
            "axes": {
                axis: [asdict(each) for each in self.axes[axis]] if axis in self.axes else None
                for axis in SUBJECTS
            },
            "measures": dict(self.measures),
            "rivals": list(self.rivals),
            "level": self.level,
            "sentences": list(self.sentences),
        }


def series_link(
    rows: Sequence[str],
    measures: Mapping[str, Column],
    behaviour: Mapping[str, Column],
    *,
    said: Mapping[str, str],
    rivals: Sequence[str],
    independent: bool,
    level: float = 0.95,
    seed: int = 0,
) -> SeriesLink:
    """Hold what moved in each fine-tune against the change of its refusal rates.

    Args:
        rows: Name of each fine-tune.
        measures: Name of a measure to its figure in each, None where there is none.
        behaviour: By axis, the change of the refusal rate of each; axes without one are left out.
        said: What each measure is, in words.
        rivals: Names of measures that know nothing of refusal.
        independent: Whether the fine-tunes were made apart, rather than in one run.
        level: Nominal coverage.
        seed: Seed of the draws.
    """
    known = {
        name: column for name, column in measures.items() if any(v is not None for v in column)
    }
    return SeriesLink(
        rows=tuple(rows),
        independent=independent,
        axes={
            axis: tuple(
                each if independent else _without_interval(each)
                for each in drift_against_behaviour(known, column, rows, level=level, seed=seed)
            )
            for axis, column in behaviour.items()
            if any(v is not None for v in column)
        },
        measures={name: said[name] for name in known},
        rivals=tuple(name for name in rivals if name in known),
        level=level,
    )


def _without_interval(each: DriftCorrelation) -> DriftCorrelation:
    def bare(estimate: Estimate) -> Estimate:
        if estimate.value is None:
            return estimate
        return replace(estimate, lower=None, upper=None, method="", note=_PATH)

    return replace(each, kendall=bare(each.kendall), spearman=bare(each.spearman))
