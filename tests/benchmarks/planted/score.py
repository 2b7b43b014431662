"""How well a lens puts the layers that disturb refusal before those that do not.

A lens gives each layer one score, larger for more blame (lenses with a sign are turned so that
positive goes the way the whole change went), and may name the layers that it calls disturbed.
The band's k layers are the truth. Where scores are equal, figures are those expected of any order
among them, and a hit needs all the largest to be in the band: a lens that says nothing gains
nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats
from sklearn.metrics import roc_auc_score

from refusaldir.statistics import proportion

#: Kinds of pairs in which a second, larger change lies outside the band.
DECOYED = ("decoy-rotation", "decoy-text", "edit-decoy")
UNCHANGED = ("none-rotation", "none-text")


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """What a lens says of one pair.

    Attributes:
        scores: One a layer, from 0; NaN where the lens says nothing, which counts as least.
        flagged: Layers it calls disturbed; None of a lens that calls none by itself.
    """

    scores: tuple[float, ...]
    flagged: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Hit:
    """How one lens did on one pair with a band.

    Attributes:
        top: Whether the largest score is in the band.
        mass: Share of the positive scores inside the band; None where nothing is positive.
        precision: Share of the k largest scores that are in the band.
        spearman: Rank correlation of scores and membership in the band; None of a constant.
        auc: Probability that a layer of the band scores above another one.
        flagged_inside: Share of the flagged layers that are in the band; None of none.
        found: Whether a layer of the band is flagged; None where the lens flags none by itself.
    """

    top: bool
    mass: float | None
    precision: float
    spearman: float | None
    auc: float
    flagged_inside: float | None
    found: bool | None

    def to_dict(self):
        return asdict(self)


def score(lens: LayerScores, band: Collection[int]) -> Hit:
    """Compare one lens with the true band.

    Args:
        lens: Its scores.
        band: The layers that were changed so that refusal feels it: some, not all.
    """
    x = np.asarray(lens.scores, dtype=np.float64)
    inside = np.isin(np.arange(len(x)), list(band))
    if not 0 < inside.sum() < len(x):
        raise ValueError("a band holds some of the layers, not none and not all")
    positive = np.nan_to_num(x, nan=0.0).clip(min=0)
    x = np.where(np.isnan(x), -np.inf, x)
    ranks = stats.rankdata(x)
    flagged = lens.flagged
    return Hit(
        top=bool(inside[x == x.max()].all()),
        mass=float(positive[inside].sum() / positive.sum()) if positive.any() else None,
        precision=_precision(x, inside),
        spearman=None if len(set(ranks)) == 1 else float(stats.spearmanr(ranks, inside).statistic),
        auc=float(roc_auc_score(inside, ranks)),
        flagged_inside=float(np.mean([k in band for k in flagged])) if flagged else None,
        found=None if flagged is None else any(k in band for k in flagged),
    )


def _precision(x, inside):
    k = int(inside.sum())
    cut = np.sort(x)[-k]
    above, level = x > cut, x == cut
    expected = inside[above].sum() + (k - above.sum()) * inside[level].mean()
    return float(expected / k)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One lens over the pairs of one kind.

    Attributes:
        lens: Its name.
        kind: Of pairs.
        n: Pairs with a band.
        top: Share with a hit, Wilson's 95 % interval.
        mass: Mean share of positive scores inside the band, 0 where nothing is positive.
        precision: Mean precision at k.
        spearman: Mean rank correlation, 0 of a constant.
        auc: Mean.
        found: Share in which a layer of the band is flagged; None of a lens that flags none.
    """

    lens: str
    kind: str
    n: int
    top: tuple[float, float, float]
    mass: float
    precision: float
    spearman: float
    auc: float
    found: float | None


def summarise(lens: str, kind: str, hits: Sequence[Hit]) -> Summary:
    """Pool the pairs of one kind."""
    found = [hit.found for hit in hits if hit.found is not None]
    return Summary(
        lens=lens,
        kind=kind,
        n=len(hits),
        top=_share(sum(hit.top for hit in hits), len(hits)),
        mass=float(np.mean([hit.mass or 0.0 for hit in hits])),
        precision=float(np.mean([hit.precision for hit in hits])),
        spearman=float(np.mean([hit.spearman or 0.0 for hit in hits])),
        auc=float(np.mean([hit.auc for hit in hits])),
        found=float(np.mean(found)) if found else None,
    )


@dataclass(frozen=True, kw_only=True)
class FalseAlarms:
    """One lens over the pairs in which refusal was left alone.

    Attributes:
        lens: Its name.
        n: Pairs without a change of refusal.
        alarms: Share in which it flags a layer, with Wilson's interval; None of a lens that
            flags none by itself: it has layers to show whatever happened.
        told_apart: Probability that its largest score on a pair with a change exceeds that on
            one without: whether the size of what it shows says that there is something.
    """

    lens: str
    n: int
    alarms: tuple[float, float, float] | None
    told_apart: float


def false_alarms(
    lens: str, unchanged: Sequence[LayerScores], changed: Sequence[LayerScores]
) -> FalseAlarms:
    """Judge a lens on pairs without a change of refusal, beside those with one."""
    flags = [entry.flagged for entry in unchanged]
    said = [bool(flag) for flag in flags if flag is not None]
    largest = [_largest(entry) for entry in (*unchanged, *changed)]
    labels = [0] * len(unchanged) + [1] * len(changed)
    return FalseAlarms(
        lens=lens,
        n=len(unchanged),
        alarms=_share(sum(said), len(said)) if said else None,
        told_apart=float(roc_auc_score(labels, largest)),
    )


def _largest(entry):
    return float(np.nan_to_num(np.asarray(entry.scores, dtype=np.float64), nan=0.0).max())


def _share(successes, n):
    found = proportion(successes, n)
    return found.value, found.lower, found.upper


def table(
    scores: Mapping[str, Mapping[str, LayerScores]],
    kinds: Mapping[str, str],
    bands: Mapping[str, Collection[int]],
) -> str:
    """The result as Markdown.

    Args:
        scores: By lens, then by pair.
        kinds: Kind of each pair.
        bands: True layers of each pair; empty where there are none.
    """
    groups = {"all decoys": DECOYED, "plain": ("plain",), "decoy-rotation": ("decoy-rotation",)}
    groups |= {"decoy-text": ("decoy-text",), "edits": ("edit", "edit-decoy")}
    lines = []
    for title, members in groups.items():
        rows = []
        for lens, pairs in scores.items():
            hits = [score(pairs[p], bands[p]) for p in sorted(pairs) if kinds[p] in members]
            if hits:
                rows.append(summarise(lens, title, hits))
        if not rows:
            continue
        lines += [
            f"**{title}**",
            "",
            "| lens | n | band on top | [95 %] | mass inside | precision at k | Spearman | AUC |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in sorted(rows, key=lambda r: -r.top[0]):
            value, lower, upper = (100 * x for x in row.top)
            lines.append(
                f"| {row.lens} | {row.n} | {value:.0f} % | [{lower:.0f}, {upper:.0f}] | "
                f"{row.mass:.2f} | {row.precision:.2f} | {row.spearman:+.2f} | {row.auc:.2f} |"
            )
        lines.append("")
    lines += _alarm_lines(scores, kinds)
    return "\n".join(lines)


def _alarm_lines(scores, kinds):
    rows = []
    for lens, pairs in scores.items():
        unchanged = [pairs[p] for p in sorted(pairs) if kinds[p] in UNCHANGED]
        changed = [pairs[p] for p in sorted(pairs) if kinds[p] not in UNCHANGED]
        if unchanged and changed:
            rows.append(false_alarms(lens, unchanged, changed))
    if not rows:
        return []
    lines = [
        "**no change of refusal**",
        "",
        "| lens | n | layers flagged | largest score tells a change |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        alarms = "never says none" if row.alarms is None else f"{100 * row.alarms[0]:.0f} %"
        lines.append(f"| {row.lens} | {row.n} | {alarms} | {row.told_apart:.2f} |")
    return [*lines, ""]
