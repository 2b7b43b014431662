"""Do different instruments tell the same story of the same responses?

A judge by phrases, a classifier, a model as judge and the refusal score each give one change a
category. They agree when they order the categories alike (Kendall's τ) and say of each which way
it went (sign). The sign of a change that is all noise is a coin's: two instruments that see nothing
then have mixed signs in half the categories, which is no fault of theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from refusaldir.errors import ProbeError
from refusaldir.probes.rank_correlation import Column, rank_correlation
from refusaldir.records import Estimate
from refusaldir.statistics import proportion


@dataclass(frozen=True, kw_only=True)
class InstrumentPair:
    """Two instruments.

    Attributes:
        first: An instrument.
        second: Another.
        tau: Kendall's τ-b of their changes over the categories that both measured.
    """

    first: str
    second: str
    tau: Estimate


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """Several instruments on the same categories.

    Attributes:
        instruments: Their names.
        pairs: Every two of them.
        mixed: Share of the categories in which one instrument saw a rise and another a fall,
            among those that at least two measured; Wilson interval.
        mixed_categories: Which ones.
        n_categories: Categories that at least two instruments measured.
        notes: What was left out.
    """

    instruments: tuple[str, ...]
    pairs: tuple[InstrumentPair, ...]
    mixed: Estimate
    mixed_categories: tuple[str, ...]
    n_categories: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def disagreement(
    changes: Mapping[str, Column],
    categories: Sequence[str],
    *,
    level: float = 0.95,
    seed: int = 0,
    draws: int = 2000,
) -> Disagreement:
    """Compare what instruments say of each category.

    Args:
        changes: Instrument to its change in each category, tuned − base, in its own unit; all
            with the sign of refusal (up: more refusals). None where it measured nothing.
        categories: Name of each category.
        level: Nominal coverage.
        seed: Seed of the bootstrap behind τ, over categories.
        draws: Number of draws.

    Raises:
        ProbeError: There are fewer than two instruments, or a column has another length.
    """
    names = tuple(changes)
    if len(names) < 2:
        raise ProbeError(
            "instruments can disagree only where there are two",
            expected="at least two columns of changes",
            got=", ".join(names) or "none",
        )
    for name, column in changes.items():
        if len(column) != len(categories):
            raise ProbeError(
                "each category needs one change from every instrument, or None",
                expected=f"{len(categories)} changes",
                got=len(column),
                where=name,
            )
    pairs = tuple(
        InstrumentPair(
            first=a,
            second=b,
            tau=rank_correlation(
                changes[a], changes[b], clusters=categories, level=level, seed=seed, draws=draws
            ),
        )
        for a, b in combinations(names, 2)
    )
    measured = 0
    mixed = []
    for i, category in enumerate(categories):
        seen = [value for column in changes.values() if (value := column[i]) is not None]
        if len(seen) < 2:
            continue
        measured += 1
        if min(seen) < 0 < max(seen):
            mixed.append(category)
    left_out = len(categories) - measured
    return Disagreement(
        instruments=names,
        pairs=pairs,
        mixed=proportion(len(mixed), measured, level=level),
        mixed_categories=tuple(mixed),
        n_categories=measured,
        notes=(
            (f"{left_out} of {len(categories)} categories were measured by fewer than two",)
            if left_out
            else ()
        ),
    )
