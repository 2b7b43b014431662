"""Agreement between judges on refused-or-not, corrected for chance.

Cohen's κ for two judges, Krippendorff's α for any number of them with gaps. Intervals are
delete-one-intent jackknifes. Agreement is no accuracy: judges can share a mistake.
"""

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from refusaldir.errors import ProbeError
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, jackknife

_T = TypeVar("_T")


def cohen_kappa(
    first: Sequence[bool | None],
    second: Sequence[bool | None],
    intents: Sequence[Hashable],
    *,
    level: float = 0.95,
) -> Estimate:
    """Cohen's κ of two judges over the responses that both could judge (Cohen 1960).

    Args:
        first: Refused or not by the first judge, None where it could not say.
        second: The same by the second.
        intents: Intent of each response.
        level: Nominal coverage.

    Returns:
        The estimate; not estimable when both judges always say the same one thing.

    Raises:
        ProbeError: The sequences differ in length.
    """
    from sklearn.metrics import cohen_kappa_score

    _same_length(len(intents), first, second)
    both = [i for i in range(len(intents)) if first[i] is not None and second[i] is not None]
    a = np.asarray([int(bool(first[i])) for i in both], dtype=np.int64)
    b = np.asarray([int(bool(second[i])) for i in both], dtype=np.int64)
    if len(both) == 0 or len({*a.tolist(), *b.tolist()}) < 2:
        return _undefined(len({intents[i] for i in both}), level)

    def kappa(table: Float[np.ndarray, " cell"]) -> float:
        none, one_only, other_only, all_ = table
        if one_only + other_only == 0 and 0 in (none, all_):
            return float("nan")
        return float(cohen_kappa_score([0, 0, 1, 1], [0, 1, 0, 1], sample_weight=table))

    clusters = Clusters.of([intents[i] for i in both])
    tables = clusters.sums(np.eye(4)[2 * a + b])
    total = tables.sum(axis=0)
    # Most intents are alike, and leave the same table behind.
    alike, which = np.unique(total - tables, axis=0, return_inverse=True)
    left = np.asarray([kappa(table) for table in alike])[which.reshape(-1)]
    return jackknife(kappa(total), left, clusters, level=level, bounds=(-1.0, 1.0))


def krippendorff_alpha(
    judges: Sequence[Sequence[_T | None]],
    intents: Sequence[Hashable],
    *,
    level: float = 0.95,
) -> Estimate:
    """Krippendorff's α for nominal labels (Krippendorff 2011, section C).

    ``α = 1 − (n − 1) · Σ_{c≠k} o_ck / Σ_{c≠k} n_c n_k`` over the coincidences
    ``o_ck = Σ_u (ordered pairs of c and k within response u) / (m_u − 1)``; responses with fewer
    than two labels carry no information.

    Args:
        judges: For each judge the label of each response, None where it could not say.
        intents: Intent of each response.
        level: Nominal coverage.

    Returns:
        The estimate; not estimable when only one label occurs.

    Raises:
        ProbeError: The sequences differ in length.
    """
    _same_length(len(intents), *judges)
    values = sorted({v for judge in judges for v in judge if v is not None}, key=str)
    counts = np.zeros((len(intents), len(values)))
    for judge in judges:
        for unit, label in enumerate(judge):
            if label is not None:
                counts[unit, values.index(label)] += 1
    used = counts.sum(axis=1) >= 2
    counts = counts[used]
    names = [intent for intent, is_used in zip(intents, used, strict=True) if is_used]
    if len(names) == 0:
        return _undefined(0, level)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(values))
    coincidences = pairs / (counts.sum(axis=1) - 1)[:, None, None]
    clusters = Clusters.of(names)
    total = coincidences.sum(axis=0)
    value = _alpha(total)
    if not np.isfinite(value):
        return _undefined(clusters.n, level)
    left = np.asarray([_alpha(total - one) for one in clusters.sums(coincidences)])
    return jackknife(value, left, clusters, level=level, bounds=(-1.0, 1.0))


def _alpha(coincidences: Float[np.ndarray, "value value"]) -> float:
    margins = coincidences.sum(axis=0)
    n = margins.sum()
    expected = n**2 - np.sum(margins**2)
    # Differences of counts: zero but for rounding means that one value is left.
    if expected <= 1e-9 * max(n**2, 1.0):
        return float("nan")
    return float(1 - (n - 1) * (n - np.trace(coincidences)) / expected)


def _undefined(n: int, level: float) -> Estimate:
    note = "not estimable: every label is the same" if n else "no response judged by two judges"
    return Estimate(value=None, n=n, level=level, note=note)


def _same_length(n: int, *judges: Sequence[object]) -> None:
    for judge in judges:
        if len(judge) != n:
            raise ProbeError(
                "judges can be compared on the same responses only",
                expected=f"{n} labels",
                got=len(judge),
            )
