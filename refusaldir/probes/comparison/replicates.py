"""Several tuned models, trained alike from different seeds, against one base.

The training seed is the replicate: what training does differs from seed to seed, and prompts
are a sample too. With z the change of one intent in one tuned model, both are random::

    z[intent, seed] = δ + intent + seed + rest

a two-way layout without replication. Its mean squares give the variance between seeds and the
error of the mean change, which counts seeds and intents alike (Searle, Casella & McCulloch 1992,
ch. 4), with the degrees of freedom of both, each weighing as much as it adds to the error. A seed
variance below 0 adds nothing to the error, and its degrees of freedom count all the same, so
that few seeds that happen to agree do not make the interval short.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from refusaldir.errors import ProbeError
from refusaldir.probes.comparison.group import mean_replies
from refusaldir.probes.comparison.paired_prompt import PairedPrompt
from refusaldir.probes.comparison.pairing import Allowed, pair_rows
from refusaldir.probes.run import ProbeRun
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, paired_proportion_difference, student_interval

#: Fewest replicates that have a spread.
FEWEST = 2


@dataclass(frozen=True, kw_only=True)
class ReplicatedChange:
    """Change of the refusal rate over several tuned models.

    Attributes:
        name: The category; None for all prompts of the axis.
        n: Prompts that could be judged in base and in every tuned model.
        changes: Tuned − base of each tuned model, in the order given.
        mean: Mean change with the interval for another training seed's and other prompts'
            expectation.
        between: Variance of the change between training seeds, share²; an estimate below 0 is
            left as it is.
    """

    name: str | None
    n: int
    changes: tuple[Estimate, ...]
    mean: Estimate
    between: Estimate


@dataclass(frozen=True, kw_only=True)
class ReplicatedAxis:
    """One axis.

    Attributes:
        axis: ``"refusal"`` or ``"over_refusal"``.
        overall: All prompts.
        categories: Each category, by name.
    """

    axis: str
    overall: ReplicatedChange
    categories: tuple[ReplicatedChange, ...]


@dataclass(frozen=True, kw_only=True)
class ReplicateComparison:
    """Base against several tuned models.

    Attributes:
        base: Short name of base.
        tuned: Short names of the tuned models.
        axes: The axes that have prompts, refusal first.
        level: Nominal coverage of the intervals.
        notes: What a reader should know before using the figures.
    """

    base: str
    tuned: tuple[str, ...]
    axes: tuple[ReplicatedAxis, ...]
    level: float
    notes: tuple[str, ...]

    def axis(self, name: str) -> ReplicatedAxis | None:
        """The axis of that name, or None when there were no such prompts."""
        return next((axis for axis in self.axes if axis.axis == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def compare_replicates(
    base: ProbeRun,
    tuned: Sequence[ProbeRun],
    *,
    level: float = 0.95,
    allow: Sequence[str] = (),
) -> ReplicateComparison:
    """Compare base with tuned models that differ in nothing but their training seed.

    Args:
        base: Base's run.
        tuned: One run for each training seed, at least two, of the same single prompts.
        level: Nominal coverage of the intervals.
        allow: What may differ all the same, as in `compare_runs`.

    Raises:
        ProbeError: There are fewer than two tuned models, a run has no single prompts, or two of
            them may not be compared.
    """
    if len(tuned) < FEWEST:
        raise ProbeError(
            "a variance between training seeds needs several tuned models",
            expected=f"at least {FEWEST}",
            got=len(tuned),
            next_step="Compare one tuned model with compare_runs",
        )
    allowed = Allowed.of(allow)
    runs = [run.single for run in (base, *tuned)]
    first, *others = (run for run in runs if run is not None)
    if None in runs:
        raise ProbeError("replicates are compared on single prompts, and a run has none")
    paired = [pair_rows(first, other, allowed) for other in others]
    rows = list(zip(*paired, strict=True))
    axes = []
    for name, harmful in (("refusal", True), ("over_refusal", False)):
        side = [row for row in rows if row[0].prompt.harmful == harmful]
        if not side:
            continue
        categories = sorted({row[0].prompt.category for row in side})
        axes.append(
            ReplicatedAxis(
                axis=name,
                overall=_change(None, side, level),
                categories=tuple(
                    _change(
                        category, [row for row in side if row[0].prompt.category == category], level
                    )
                    for category in categories
                ),
            )
        )
    return ReplicateComparison(
        base=first.provenance.model.name,
        tuned=tuple(other.provenance.model.name for other in others),
        axes=tuple(axes),
        level=level,
        notes=tuple(allowed.notes()),
    )


def _change(
    name: str | None, rows: Sequence[tuple[PairedPrompt, ...]], level: float
) -> ReplicatedChange:
    usable = [row for row in rows if all(pair.usable for pair in row)]
    replicates = len(rows[0])
    if not usable:
        nothing = Estimate(value=None, n=0, level=level, note="no prompt judged in all models")
        return ReplicatedChange(
            name=name, n=0, changes=(nothing,) * replicates, mean=nothing, between=nothing
        )
    intents = [row[0].prompt.intent_id for row in usable]
    shares = np.array([[pair.shares for pair in row] for row in usable])  # [prompt, seed, arm]
    changes = tuple(
        paired_proportion_difference(
            shares[:, r, 0], shares[:, r, 1], intents, level,
            replies=mean_replies([row[r] for row in usable]),
        )
        for r in range(replicates)
    )  # fmt: skip
    clusters = Clusters.of(intents)
    # An intent's part of the mean over prompts, so that the mean over intents is that mean.
    z = clusters.sums(shares[:, :, 1] - shares[:, :, 0]) * clusters.n / len(usable)
    mean, between = two_way_mean(z, level)
    return ReplicatedChange(name=name, n=len(usable), changes=changes, mean=mean, between=between)


def two_way_mean(z: Float[np.ndarray, "intent seed"], level: float) -> tuple[Estimate, Estimate]:
    """Mean of a table whose rows and columns are both random, and the variance of its columns.

    Args:
        z: Change of each intent in each tuned model.
        level: Nominal coverage.

    Returns:
        The mean, and the variance between columns with Tukey and Williams' interval (Williams
        1962, Biometrika 49:278).
    """
    intents, seeds = z.shape
    mean = float(z.mean())
    if intents < 2:
        note = "no interval: one intent only"
        return (
            Estimate(value=mean, n=seeds, level=level, note=note),
            Estimate(value=None, n=seeds, level=level, note=note),
        )
    row, column = z.mean(axis=1), z.mean(axis=0)
    rest = z - row[:, None] - column[None, :] + mean
    of_intents = seeds * float(np.sum((row - mean) ** 2)) / (intents - 1)
    of_seeds = intents * float(np.sum((column - mean) ** 2)) / (seeds - 1)
    of_rest = float(np.sum(rest**2)) / ((intents - 1) * (seeds - 1))
    counted = max(of_seeds, of_rest)
    total = counted + of_intents - of_rest
    # Weighed by what each contributes: Satterthwaite's own covers too seldom with few seeds.
    weight = min(counted / total, 1.0) if total > 0 else 0.0
    df = 1 / (weight / (seeds - 1) + (1 - weight) / (intents - 1))
    interval = student_interval(
        mean,
        float(np.sqrt(max(total, 0.0) / (intents * seeds))),
        df,
        n=seeds,
        level=level,
        bounds=(-1.0, 1.0),
        method="two-way layout, intents and training seeds random",
    )
    tail = (1 - level) / 2
    low, high = (
        max(((seeds - 1) * of_seeds / stats.chi2.ppf(q, seeds - 1) - of_rest) / intents, 0.0)
        for q in (1 - tail, tail)
    )
    between = Estimate(
        value=(of_seeds - of_rest) / intents,
        lower=low,
        upper=high,
        n=seeds,
        level=level,
        method="mean squares; Tukey and Williams",
        note="below 0: no more than chance would give" if of_seeds < of_rest else "",
    )
    return interval, between
