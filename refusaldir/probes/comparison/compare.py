"""Two models' runs compared: single prompts on both axes, and escalations in either mode."""

from collections.abc import Sequence

from refusaldir.errors import ProbeError
from refusaldir.probes.behaviour import Behaviour
from refusaldir.probes.comparison.axis import compare_axis
from refusaldir.probes.comparison.escalations import EscalationComparison, compare_escalations
from refusaldir.probes.comparison.group import Settings, Test
from refusaldir.probes.comparison.pairing import Allowed, pair_rows
from refusaldir.probes.comparison.result import AxisComparison, BehaviourComparison, Described
from refusaldir.probes.outcomes import is_authoritative
from refusaldir.probes.run import FILES, ProbeRun
from refusaldir.statistics import critical_value

#: What a run's parts are called in sentences.
_PARTS = {
    "single": "single prompts",
    "frozen": "frozen escalations",
    "live": "live escalations",
}


def compare_runs(
    base: ProbeRun,
    tuned: ProbeRun,
    *,
    level: float = 0.95,
    margin: float = 0.05,
    test: Test = "mid-p",
    seed: int = 0,
    n_boot: int = 2000,
    allow: Sequence[str] = (),
    link: Described | None = None,
) -> BehaviourComparison:
    """Compare two models prompt by prompt, and turn by turn where there are escalations.

    Intervals: Wilson for a rate and Tango for a paired difference, at the effective number of
    intents; bootstrap over intents for the score. Tests flip the signs of whole intents; Holm
    and, beside it, Benjamini and Hochberg adjust over the groups of each breakdown of each axis.

    Args:
        base: Base's run.
        tuned: Tuned's, with the same prompts, rendering, sampling, budget, judge and tokens.
        level: Nominal coverage of the intervals.
        margin: Differences smaller than this either way count as equivalent.
        test: ``"mid-p"``, close to its level, or ``"exact"``, never above it.
        seed: Seed of the bootstrap.
        n_boot: Number of draws.
        allow: What may differ all the same, of `ALLOWANCES`; a note says what did.
        link: How the change goes through the direction, to be kept beside.

    Raises:
        ProbeError: The runs differ in something that must be equal, or have no part in common;
            the message names it.
    """
    critical_value(level)
    if not 0 < margin < 1:
        raise ProbeError("an equivalence margin lies between 0 and 1", got=margin)
    allowed = Allowed.of(allow)
    parts = {name: (getattr(base, name), getattr(tuned, name)) for name in FILES}
    common = [name for name, pair in parts.items() if None not in pair]
    if not common:
        raise ProbeError(
            "base and tuned have nothing in common that was asked of both",
            expected=", ".join(_PARTS[name] for name, _ in base.parts()) or "responses",
            got=", ".join(_PARTS[name] for name, _ in tuned.parts()) or "no responses",
            next_step="Probe both models with the same prompts",
        )
    axes: tuple[AxisComparison, ...] = ()
    escalations: dict[str, EscalationComparison | None] = {"frozen": None, "live": None}
    notes: list[str] = []
    for name in common:
        pair: tuple[Behaviour, Behaviour] = parts[name]
        scores = pair[0].refusal_tokens.ids == pair[1].refusal_tokens.ids
        settings = Settings(
            level=level, margin=margin, test=test, seed=seed, n_boot=n_boot, scores=scores
        )
        if name == "single":
            axes = _axes(*pair, allowed, settings)
        else:
            escalations[name] = compare_escalations(*pair, allowed, settings)
        notes += _notes(*pair, "" if name == common[0] else f"{_PARTS[name]}: ")
    first = parts[common[0]]
    return BehaviourComparison(
        base=first[0].provenance,
        tuned=first[1].provenance,
        axes=axes,
        **escalations,
        link=link,
        refusal_tokens=first[0].refusal_tokens.texts,
        test=test,
        margin=margin,
        level=level,
        allowed=tuple(allowed.used),
        notes=tuple(
            dict.fromkeys([*allowed.notes(), *notes, *_alone(base, tuned, common), *_advice(first)])
        ),
    )


def _axes(
    base: Behaviour, tuned: Behaviour, allowed: Allowed, settings: Settings
) -> tuple[AxisComparison, ...]:
    pairs = pair_rows(base, tuned, allowed)
    judges = [base.provenance.judge, *base.provenance.judges[1:]]
    if base.provenance.judge != tuned.provenance.judge:
        judges[0] = f"{base.provenance.judge} / {tuned.provenance.judge}"
    scorers = dict(base.provenance.scorers.items() & tuned.provenance.scorers.items())
    return tuple(
        compare_axis(name, side, judges, scorers, settings)
        for name, harmful in (("refusal", True), ("over_refusal", False))
        if (side := [pair for pair in pairs if pair.prompt.harmful == harmful])
    )


def _notes(base: Behaviour, tuned: Behaviour, part: str) -> list[str]:
    b, t = base.provenance.model, tuned.provenance.model
    notes = []
    for what, field in (("dtype", "dtype"), ("quantisation", "quantization")):
        # Of a model behind a server neither is known.
        of_base, of_tuned = getattr(b, field, None), getattr(t, field, None)
        if of_base != of_tuned:
            notes.append(f"{what} differs: {of_base} in base, {of_tuned} in tuned")
    if base.refusal_tokens.ids != tuned.refusal_tokens.ids:
        notes.append("no refusal score: the two models' refusal tokens differ")
    elif not base.refusal_tokens:
        notes.append(f"no refusal score: {base.refusal_tokens.note or 'no refusal tokens'}")
    rows = (*base.rows, *tuned.rows)
    for judge in dict.fromkeys((*base.provenance.judges[1:], *tuned.provenance.judges[1:])):
        labelled = sum(judge in row.others for row in rows)
        if labelled < len(rows):
            notes.append(
                f"{part}{judge} labelled {labelled} of {len(rows)} responses and is left out"
            )
    scorers = base.provenance.scorers, tuned.provenance.scorers
    for name in sorted(scorers[0].keys() & scorers[1].keys()):
        of_base, of_tuned = (of_arm[name] for of_arm in scorers)
        if of_base != of_tuned:
            notes.append(
                f"{part}{name} is not compared: by {of_base} in base, by {of_tuned} in tuned"
            )
    for name, arm in (("base", base), ("tuned", tuned)):
        cut = sum(not row.finished for row in arm.rows)
        if cut:
            notes.append(
                f"{part}{cut} of {len(arm.rows)} responses of {name} were cut off at "
                f"{arm.provenance.max_new_tokens} tokens; a refusal after that is not seen"
            )
    return notes


def _alone(base: ProbeRun, tuned: ProbeRun, common: Sequence[str]) -> list[str]:
    """Parts that only one of the runs has."""
    return [
        f"{_PARTS[name]} were asked of {arm} alone and are not compared"
        for arm, run in (("base", base), ("tuned", tuned))
        for name, _ in run.parts()
        if name not in common
    ]


def _advice(pair: Sequence[Behaviour]) -> list[str]:
    judge = pair[0].provenance.judge
    if is_authoritative(judge):
        return []
    return [
        f"the labels are those of {judge}, which is quick and not authoritative: hold a verdict "
        "that matters against a judge that reads the whole response"
    ]
