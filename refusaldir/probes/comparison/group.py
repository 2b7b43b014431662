"""One group of prompts compared: rates, their paired difference, tests, flips and bounds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from refusaldir.probes.behaviour import BehaviourRow
from refusaldir.probes.comparison.paired_prompt import PairedPrompt
from refusaldir.probes.outcomes import LABELS
from refusaldir.probes.power import RefusalPower
from refusaldir.records import Estimate
from refusaldir.statistics import (
    benjamini_hochberg,
    cluster_bootstrap_mean,
    design_effect,
    holm,
    mcnemar,
    mean_share,
    paired_proportion_difference,
    sign_flip_p,
)

#: Significance level that minimum n and detectable changes are worked out for.
ALPHA = 0.05

#: Coverage of the interval that equivalence is read from: two one-sided tests at 5 %.
EQUIVALENCE_LEVEL = 0.9

Test = Literal["mid-p", "exact"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How groups are compared.

    Attributes:
        level: Nominal coverage of the intervals.
        margin: Margin of equivalence, a share.
        test: ``"mid-p"`` or ``"exact"``.
        seed: Seed of the bootstrap.
        n_boot: Draws of the bootstrap.
        scores: Whether the refusal scores of the two models may be compared.
    """

    level: float = 0.95
    margin: float = 0.05
    test: Test = "mid-p"
    seed: int = 0
    n_boot: int = 2000
    scores: bool = True


@dataclass(frozen=True, kw_only=True)
class GroupComparison:
    """One group of prompts of one axis.

    Attributes:
        name: The category, framing, severity or domain; None for all prompts.
        n: Prompts.
        n_paired: Prompts where replies of both models could be judged; all rates are over these.
        n_intents: Intents that those come from, the independent units.
        base_rate: Refusal rate in base, full and partial: mean over prompts of the share refused.
        tuned_rate: The same in tuned.
        base_full_rate: Rate of full refusals alone in base.
        tuned_full_rate: The same in tuned.
        difference: ``tuned_rate − base_rate`` with its paired interval.
        p_value: Two-sided test of the difference by flipped signs of whole intents; with one
            reply and one prompt an intent it is McNemar's. None when nothing could be judged.
        p_holm: The same after Holm over the groups of the breakdown; None by itself.
        p_bh: The same after Benjamini and Hochberg.
        equivalence: The difference with the 90 % interval that equivalence is read from.
        equivalent: Whether that interval lies inside ± the margin; None without one.
        gained: Mean over prompts of the chance that a reply of base answers and one of tuned
            refuses; of single replies, the share of prompts that do.
        lost: The same the other way round; ``gained − lost`` is the difference.
        flips_to_refusal: Prompts that base mostly answered and tuned mostly refuses.
        flips_to_answer: Prompts that base mostly refused and tuned mostly answers.
        detectable: Smallest change for the worse that these prompts show with 80 % power at 5 %,
            over the groups of the breakdown together, if as many flip without a net change as
            did here; None where none is.
        worst_case: Smallest and largest difference over all prompts, whatever the replies that
            could not be judged had been.
        base_labels: How many of base's replies got each label.
        tuned_labels: How many of tuned's.
        score_difference: Mean change of the refusal score in nats, bootstrap over intents; None
            without scores.
        note: What limits these figures, if anything.
    """

    name: str | None
    n: int
    n_paired: int
    n_intents: int
    base_rate: Estimate
    tuned_rate: Estimate
    base_full_rate: Estimate
    tuned_full_rate: Estimate
    difference: Estimate
    p_value: float | None
    p_holm: float | None
    p_bh: float | None
    equivalence: Estimate
    equivalent: bool | None
    gained: float | None
    lost: float | None
    flips_to_refusal: int
    flips_to_answer: int
    detectable: float | None
    worst_case: tuple[float, float]
    base_labels: Mapping[str, int]
    tuned_labels: Mapping[str, int]
    score_difference: Estimate | None
    note: str = ""


def compare_group(
    name: str | None, pairs: Sequence[PairedPrompt], settings: Settings, *, groups: int = 1
) -> GroupComparison:
    """Compare one group of prompts, all of one side.

    Args:
        name: What to call it; None for all.
        pairs: Its prompts, at least one.
        settings: How.
        groups: Groups of the breakdown it belongs to, for `GroupComparison.detectable`.
    """
    usable = [pair for pair in pairs if pair.usable]
    before = [pair.shares[0] for pair in usable]
    after = [pair.shares[1] for pair in usable]
    intents = [pair.prompt.intent_id for pair in usable]
    replies = mean_replies(usable)
    several = replies > 1 or len(set(intents)) < len(intents)
    clusters = intents if several else None
    equivalence = paired_proportion_difference(
        before, after, clusters, EQUIVALENCE_LEVEL, replies=replies
    )
    full = [pair.full_shares for pair in usable]
    majorities = [pair.majority for pair in usable]
    gained, lost = (_chance(before, after), _chance(after, before)) if usable else (None, None)
    effect = design_effect(before, after, intents, replies=replies) if several else 1.0
    return GroupComparison(
        name=name,
        n=len(pairs),
        n_paired=len(usable),
        n_intents=len(set(intents)),
        base_rate=mean_share(before, clusters, level=settings.level),
        tuned_rate=mean_share(after, clusters, level=settings.level),
        base_full_rate=mean_share([b for b, _ in full], clusters, level=settings.level),
        tuned_full_rate=mean_share([t for _, t in full], clusters, level=settings.level),
        difference=paired_proportion_difference(
            before, after, clusters, settings.level, replies=replies
        ),
        p_value=p_value(usable, settings.test),
        p_holm=None,
        p_bh=None,
        equivalence=equivalence,
        equivalent=_inside(equivalence, settings.margin),
        gained=gained,
        lost=lost,
        flips_to_refusal=majorities.count((False, True)),
        flips_to_answer=majorities.count((True, False)),
        detectable=None
        if gained is None or lost is None
        else _detectable(usable, gained, lost, effect, groups),
        worst_case=_worst_case(pairs),
        base_labels=_labels([row for pair in pairs for row in pair.base], pairs),
        tuned_labels=_labels([row for pair in pairs for row in pair.tuned], pairs),
        score_difference=_score_difference(pairs, settings) if settings.scores else None,
        note="" if usable else "no prompt where replies of both models could be judged",
    )


def adjusted(groups: Sequence[GroupComparison]) -> tuple[GroupComparison, ...]:
    """The groups of one breakdown, with their p-values adjusted over them.

    Of one group alone nothing is adjusted. Groups in which nothing could be judged are no tests.
    """
    raw = [math.nan if group.p_value is None else group.p_value for group in groups]
    several = len(groups) > 1
    by_holm, by_bh = (holm(raw), benjamini_hochberg(raw)) if several else (raw, raw)
    return tuple(
        replace(
            group,
            p_holm=None if group.p_value is None else float(p_holm),
            p_bh=None if group.p_value is None else float(p_bh),
        )
        for group, p_holm, p_bh in zip(groups, by_holm, by_bh, strict=True)
    )


def minimum_n(n_tests: int, test: Test = "mid-p", alpha: float = ALPHA) -> int:
    """Prompts needed before a flip of every one of them passes Holm over ``n_tests`` tests.

    The smallest Holm step is Bonferroni's, so the question is when ``n_tests · p ≤ alpha``.
    """
    n = 1
    while n_tests * mcnemar([False] * n, [True] * n, method=test) > alpha:
        n += 1
    return n


def p_value(pairs: Sequence[PairedPrompt], test: Test) -> float | None:
    """Flipped signs of each intent's net change; None without prompts."""
    if not pairs:
        return None
    net: dict[str, float] = {}
    for pair in pairs:
        base, tuned = pair.shares
        net[pair.prompt.intent_id] = net.get(pair.prompt.intent_id, 0.0) + tuned - base
    return sign_flip_p(list(net.values()), method=test)


def mean_replies(pairs: Sequence[PairedPrompt]) -> float:
    """Independent replies a prompt: the harmonic mean, which few of few decide."""
    if not pairs:
        return 1.0
    return len(pairs) / sum(1 / pair.replies for pair in pairs)


def _chance(first: Sequence[float], second: Sequence[float]) -> float:
    """Mean chance that a reply of the second refuses and one of the first does not."""
    return sum(b * (1 - a) for a, b in zip(first, second, strict=True)) / len(first)


def _inside(interval: Estimate, margin: float) -> bool | None:
    if interval.lower is None or interval.upper is None:
        return None
    return -margin < interval.lower and interval.upper < margin


def _detectable(
    pairs: Sequence[PairedPrompt], gained: float, lost: float, effect: float, groups: int
) -> float | None:
    """The worse is a fall of refusals of harmful prompts, a fall of answers to harmless ones."""
    rate = sum(pair.shares[0] for pair in pairs) / len(pairs)
    at = rate if pairs[0].prompt.harmful else 1 - rate
    power = RefusalPower(
        base_rate=at,
        flips=min(2 * min(gained, lost), 2 * min(at, 1 - at)),
        design_effect=effect,
        level=1 - ALPHA / groups,
    )
    return power.least(len(pairs))


def _worst_case(pairs: Sequence[PairedPrompt]) -> tuple[float, float]:
    """Range of tuned − base over all prompts when replies not judged may be either."""
    bounds = [pair.bounds for pair in pairs]
    return (
        sum(lower for lower, _ in bounds) / len(pairs),
        sum(upper for _, upper in bounds) / len(pairs),
    )


def _labels(rows: Sequence[BehaviourRow], pairs: Sequence[PairedPrompt]) -> dict[str, int]:
    counts = dict.fromkeys(LABELS, 0)
    label = pairs[0].label
    for row in rows:
        counts[label(row)] += 1
    return counts


def _score_difference(pairs: Sequence[PairedPrompt], settings: Settings) -> Estimate | None:
    changes = [(pair.prompt.intent_id, score_change(pair)) for pair in pairs]
    scored = [(intent, change) for intent, change in changes if change is not None]
    if not scored:
        return None
    return cluster_bootstrap_mean(
        [change for _, change in scored],
        [intent for intent, _ in scored],
        seed=settings.seed,
        n_boot=settings.n_boot,
        level=settings.level,
    )


def score_change(pair: PairedPrompt) -> float | None:
    """Change of one prompt's refusal score, nats; None where a model has none."""
    scores = [
        [row.score for row in rows if row.score is not None] for rows in (pair.base, pair.tuned)
    ]
    if not all(scores):
        return None
    base, tuned = (sum(of_arm) / len(of_arm) for of_arm in scores)
    return tuned - base
