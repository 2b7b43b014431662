"""Drift against behaviour, category by category: does one order the categories as the other does.

One row a category and axis: the change of its refusal rate beside the shift of its prompts along
the direction and, where the activations are known, beside what else happened to them (`Measure`):
drift of the category's own direction, and the rivals CKA and relative change, which know nothing
of refusal. Rank correlations with intervals over the categories (`rank_correlation`).

Weight distance is one number a pair. It cannot order the categories of one pair: whether it goes
with behaviour, only several fine-tunes can tell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from refusaldir.probes.link.mechanism import AXES, LinkParts
from refusaldir.probes.rank_correlation import DriftCorrelation, drift_against_behaviour
from refusaldir.records import Estimate

#: Said beside the correlations.
LIMIT = (
    "weight distance is one number for the pair and orders no categories; only several fine-tunes "
    "of one base can tell whether it goes with behaviour"
)

SHIFT = "projection shift"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What happened to the activations of each category.

    Attributes:
        name: Of the measure.
        said: What it is, in words.
        rival: Whether it knows nothing of refusal.
        axes: By axis, and then by category, the figure.
    """

    name: str
    said: str
    rival: bool
    axes: Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True, kw_only=True)
class CategoryRow:
    """One category on one axis.

    Attributes:
        category: Its name.
        n: Prompts behind the behaviour.
        behaviour: Change of its refusal rate, tuned − base.
        measures: Figure of each measure that has one, by name.
    """

    category: str
    n: int
    behaviour: Estimate
    measures: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class CategoryLink:
    """Drift against behaviour over the categories of one axis.

    Attributes:
        axis: ``"refusal"`` or ``"over_refusal"``.
        rows: One a category.
        measures: What each measure is, in words, by name.
        rivals: Names of those that know nothing of refusal.
        correlations: Of each measure with the change of the refusal rate.
    """

    axis: str
    rows: tuple[CategoryRow, ...]
    measures: Mapping[str, str]
    rivals: tuple[str, ...]
    correlations: tuple[DriftCorrelation, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def category_links(
    groups: Sequence[LinkParts],
    measures: Sequence[Measure] = (),
    *,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[CategoryLink, ...]:
    """Hold the change of every category's refusal rate against what moved in it.

    Args:
        groups: The parts of every category on either axis, from `link_to_mechanism`.
        measures: What happened to the activations; each is held against both axes it has.
        level: Nominal coverage.
        seed: Seed of the draws.

    Returns:
        One for each axis with more than one category.
    """
    found = []
    for axis, _ in AXES:
        own = [parts for parts in groups if parts.axis == axis and parts.group is not None]
        if len(own) < 2:
            continue
        names = [str(parts.group) for parts in own]
        columns = {SHIFT: {name: parts.shift for name, parts in zip(names, own, strict=True)}}
        columns |= {measure.name: dict(measure.axes.get(axis, {})) for measure in measures}
        columns = {name: column for name, column in columns.items() if set(column) & set(names)}
        said = {SHIFT: "mean shift of its prompts along the base direction, residual norm"}
        said |= {m.name: m.said for m in measures if m.name in columns}
        found.append(
            CategoryLink(
                axis=axis,
                rows=tuple(
                    CategoryRow(
                        category=name,
                        n=parts.n,
                        behaviour=parts.observed,
                        measures={key: col[name] for key, col in columns.items() if name in col},
                    )
                    for name, parts in zip(names, own, strict=True)
                ),
                measures=said,
                rivals=tuple(m.name for m in measures if m.rival and m.name in columns),
                correlations=drift_against_behaviour(
                    {
                        key: [column[name].value if name in column else None for name in names]
                        for key, column in columns.items()
                    },
                    [parts.observed.value for parts in own],
                    names,
                    level=level,
                    seed=seed,
                ),
            )
        )
    return tuple(found)
