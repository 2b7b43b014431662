"""Does a measure of drift order the categories as their behaviour does?

One row a category (or a category in one framing): the change of its refusal rate beside several
measures of what happened inside, such as the shift of the projection and its rivals, weight
distance and CKA. Rank correlations say whether one orders the rows as the other does; the
interval draws whole clusters of rows with replacement, all columns at once.

Ten categories say little: at that number the interval of no correlation spans about ±0.6. The rows
are taken as they are; noise in them draws a correlation towards 0 and never makes one.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats

from refusaldir.errors import ProbeError
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, critical_value, kendall, spearman

FloatArray = NDArray[np.float64]
Method = Literal["kendall", "spearman"]
Column = Sequence[float | None]

#: Fewest rows for an order to be compared.
FEWEST_ROWS = 5

_NAMES = {"kendall": "Kendall's τ-b", "spearman": "Spearman's ρ"}


@dataclass(frozen=True, kw_only=True)
class DriftCorrelation:
    """One measure of drift against behaviour.

    Attributes:
        measure: Name of the column.
        kendall: Kendall's τ-b with the change of behaviour, over the rows that have both.
        spearman: Spearman's ρ, likewise.
        rows: Names of the rows that have both.
    """

    measure: str
    kendall: Estimate
    spearman: Estimate
    rows: tuple[str, ...]

    @property
    def words(self) -> str:
        """The measure with its τ-b and interval, e.g. ``CKA +0.53 (−0.20 to +0.93)``."""
        text = f"{self.measure} {self.kendall.value:+.2f}"
        if self.kendall.lower is not None and self.kendall.upper is not None:
            text += f" ({self.kendall.lower:+.2f} to {self.kendall.upper:+.2f})"
        return text.replace("-", "−")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def drift_against_behaviour(
    measures: Mapping[str, Column],
    behaviour: Column,
    rows: Sequence[str],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    seed: int = 0,
    draws: int = 2000,
) -> tuple[DriftCorrelation, ...]:
    """Correlate each measure of drift with the change of behaviour.

    All measures meet the same draws, so that a measure and its rivals differ only in themselves.

    Args:
        measures: Name to one figure a row, in any unit, each with its own sign; None where it
            cannot be estimated.
        behaviour: Change of behaviour of each row, e.g. of the refusal rate.
        rows: Name of each row, e.g. the category.
        clusters: Which rows are not independent, e.g. the category of a row that is a category in
            one framing; None takes each by itself.
        level: Nominal coverage.
        seed: Seed of the draws.
        draws: Number of draws.

    Raises:
        ProbeError: A column has another number of rows.
    """
    of = list(rows) if clusters is None else list(clusters)
    settings: dict[str, Any] = {"clusters": of, "level": level, "seed": seed, "draws": draws}
    return tuple(
        DriftCorrelation(
            measure=name,
            kendall=rank_correlation(column, behaviour, method="kendall", **settings),
            spearman=rank_correlation(column, behaviour, method="spearman", **settings),
            rows=tuple(
                row
                for row, a, b in zip(rows, column, behaviour, strict=True)
                if a is not None and b is not None
            ),
        )
        for name, column in measures.items()
    )


def rank_correlation(
    x: Column,
    y: Column,
    *,
    method: Method = "kendall",
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    seed: int = 0,
    draws: int = 2000,
) -> Estimate:
    """Rank correlation of two columns with an interval by cluster bootstrap.

    Percentile interval, its tails widened to Student's t for few clusters (the expanded
    percentile interval of Hesterberg 2015, §5.3). Draws in which a column is constant have no
    order and are left out.

    Args:
        x: One figure a row, or None.
        y: The same of the other column; rows where either is None are left out.
        method: ``"kendall"`` (τ-b) or ``"spearman"``.
        clusters: Name of each row's cluster; None takes each row by itself.
        level: Nominal coverage.
        seed: Seed of the draws.
        draws: Number of draws.

    Raises:
        ProbeError: The columns differ in length or hold a figure that is not finite.
    """
    critical_value(level)
    a, b, groups = _complete(x, y, list(range(len(x))) if clusters is None else clusters)
    n = 0 if groups is None else groups.n
    name = _NAMES[method]
    if groups is None or len(a) < FEWEST_ROWS or n < FEWEST_ROWS:
        note = f"not estimable: {n} independent rows, {FEWEST_ROWS} are the fewest for an order"
        return Estimate(value=None, n=n, level=level, note=note)
    value = float(_correlate(a[None], b[None], method)[0])
    if not np.isfinite(value):
        note = "not estimable: a column has the same value in every row"
        return Estimate(value=None, n=n, level=level, note=note)
    found = _bootstrap(a, b, groups, method, seed, draws)
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * critical_value(level, float(n - 1)))
    lower, upper = np.quantile(found, [tail, 1 - tail])
    return Estimate(
        value=value,
        lower=float(min(lower, value)),
        upper=float(max(upper, value)),
        n=n,
        level=level,
        method=f"{name}, cluster bootstrap, expanded percentile",
    )


def _complete(
    x: Column, y: Column, clusters: Sequence[Hashable]
) -> tuple[FloatArray, FloatArray, Clusters | None]:
    """Rows that have both figures, and their clusters; None without such rows."""
    if not len(x) == len(y) == len(clusters):
        raise ProbeError(
            "each row needs one figure in every column",
            expected=f"{len(y)} rows, as there are changes of behaviour",
            got=f"{len(x)} figures and {len(clusters)} names",
        )
    kept = [i for i, pair in enumerate(zip(x, y, strict=True)) if None not in pair]
    a, b = (np.array([column[i] for i in kept], dtype=np.float64) for column in (x, y))
    if not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
        raise ProbeError(
            "a column holds a figure that is not finite",
            next_step="Give None where a figure cannot be estimated",
        )
    return a, b, Clusters.of([clusters[i] for i in kept]) if kept else None


def _bootstrap(
    a: FloatArray, b: FloatArray, groups: Clusters, method: Method, seed: int, draws: int
) -> FloatArray:
    """Correlations over resampled clusters."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups.codes == c) for c in range(groups.n)]
    picked = rng.integers(groups.n, size=(draws, groups.n))
    if len(a) == groups.n:
        rows = np.concatenate(members)[picked]
        found = _correlate(a[rows], b[rows], method)
    else:  # draws differ in how many rows they hold
        found = np.empty(draws)
        for i, draw in enumerate(picked):
            rows = np.concatenate([members[c] for c in draw])
            found[i] = _correlate(a[rows][None], b[rows][None], method)[0]
    kept: FloatArray = found[np.isfinite(found)]
    return kept


def _correlate(
    x: Float[np.ndarray, "draw row"], y: Float[np.ndarray, "draw row"], method: Method
) -> Float[np.ndarray, " draw"]:
    """Correlation of each draw; NaN where a column is constant."""
    return kendall(x, y) if method == "kendall" else spearman(x, y)
