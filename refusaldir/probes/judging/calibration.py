"""How wrong a judge is by human labels, and what the refusal rate is once that is allowed for.

"Positive" is refused, as `refusaldir.probes.outcomes` defines it; responses that judge or human
could not decide are counted and left out. Each arm is calibrated by itself, since a judge's errors
depend on whose responses it reads. The labelled responses must be a random part of the arm's.

Two corrections of the judged rate q:

* **Rogan–Gladen** (1978): ``(q + Sp − 1) / (Se + Sp − 1)``;
* **prediction-powered** (Angelopoulos et al. 2023, arXiv 2301.09633):
  ``mean of judged over the unlabelled + mean of (human − judged) over the labelled``, which
  asks nothing of the judge but is no sharper than it is good.

The intervals are made in `refusaldir.probes.judging.corrections`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from refusaldir.errors import ProbeError
from refusaldir.probes.behaviour import BehaviourRow
from refusaldir.probes.judging.corrections import Corrections, clustered_proportion
from refusaldir.probes.outcomes import UNUSABLE, Judgement, is_refused
from refusaldir.records import Estimate
from refusaldir.statistics import critical_value


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """One response of one arm.

    Attributes:
        arm: The arm, e.g. ``"base"``.
        intent_id: Its intent.
        judge: The judge's label.
        human: The label made by people, or None when there is none.
    """

    arm: str
    intent_id: str
    judge: str
    human: str | None = None


@dataclass(frozen=True, kw_only=True)
class ArmCalibration:
    """A judge on the responses of one arm.

    Attributes:
        arm: The arm.
        n: Responses.
        n_labelled: Those that judge and human both decided.
        n_judge_unusable: Those that the judge did not decide.
        n_human_unusable: Those with a human label that says nothing about refusal.
        sensitivity: Share of refused responses that the judge calls refused; Wilson.
        specificity: Share of other responses that the judge does not call refused; Wilson.
        accuracy: Share of labelled responses on which judge and human agree; Wilson.
        human_rate: Refusal rate by human labels alone; Wilson.
        judged_rate: Refusal rate by the judge, over all that it decided; Wilson.
        rogan_gladen: The judged rate, corrected by sensitivity and specificity.
        prediction_powered: The judged rate, corrected by the judge's mean error.
    """

    arm: str
    n: int
    n_labelled: int
    n_judge_unusable: int
    n_human_unusable: int
    sensitivity: Estimate
    specificity: Estimate
    accuracy: Estimate
    human_rate: Estimate
    judged_rate: Estimate
    rogan_gladen: Estimate
    prediction_powered: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def calibration_rows(
    arm: str,
    rows: Sequence[BehaviourRow],
    judged: Sequence[Judgement],
    human: Sequence[str | None],
) -> list[CalibrationRow]:
    """Put a judge's and people's labels of one arm's responses side by side."""
    if not len(rows) == len(judged) == len(human):
        raise ProbeError(
            "a calibration needs a judgement, and a label or None, for each response",
            expected=len(rows),
            got=f"{len(judged)} judgements and {len(human)} labels",
            where=arm,
        )
    return [
        CalibrationRow(arm=arm, intent_id=row.intent_id, judge=judgement.label, human=label)
        for row, judgement, label in zip(rows, judged, human, strict=True)
    ]


def calibrate(
    rows: Sequence[CalibrationRow], *, level: float = 0.95, seed: int = 0, n_boot: int = 4000
) -> tuple[ArmCalibration, ...]:
    """Measure a judge against human labels, arm by arm.

    Args:
        rows: Responses of every arm, with human labels on a random part of them.
        level: Nominal coverage of the intervals.
        seed: Seed of the bootstrap.
        n_boot: Number of draws.

    Returns:
        One calibration an arm, in the order in which arms come. What the labels cannot tell (no
        refused response among them) is not estimable, with the reason.

    Raises:
        ProbeError: No row has a human label.
    """
    critical_value(level)
    if not any(row.human is not None for row in rows):
        raise ProbeError(
            "a calibration needs human labels",
            expected="a human label for some of the responses",
            got="none",
            next_step="See that ids, arms or responses in the file of labels are those judged",
        )
    arms = dict.fromkeys(row.arm for row in rows)
    return tuple(
        _calibrate(arm, [row for row in rows if row.arm == arm], level, seed, n_boot)
        for arm in arms
    )


def _calibrate(
    arm: str, rows: Sequence[CalibrationRow], level: float, seed: int, n_boot: int
) -> ArmCalibration:
    usable = [row for row in rows if row.judge not in UNUSABLE]
    judged = [bool(is_refused(row.judge)) for row in usable]
    human = [None if row.human is None else is_refused(row.human) for row in usable]
    intents = [row.intent_id for row in usable]

    def share(values: list[tuple[bool, str]], what: str) -> Estimate:
        if not values:
            return Estimate(value=None, n=0, level=level, note=f"not estimable: {what}")
        return clustered_proportion([v for v, _ in values], [i for _, i in values], level=level)

    labelled = [
        (says, truth, intent)
        for says, truth, intent in zip(judged, human, intents, strict=True)
        if truth is not None
    ]
    none_labelled = "no human label for a response that the judge decided"
    corrections = Corrections(judged, human, intents, level=level, seed=seed, n_boot=n_boot)
    return ArmCalibration(
        arm=arm,
        n=len(rows),
        n_labelled=len(labelled),
        n_judge_unusable=len(rows) - len(usable),
        n_human_unusable=sum(row.human in UNUSABLE for row in rows),
        sensitivity=share(
            [(says, i) for says, truth, i in labelled if truth],
            "people call no labelled response refused",
        ),
        specificity=share(
            [(not says, i) for says, truth, i in labelled if not truth],
            "people call every labelled response refused",
        ),
        accuracy=share([(says == truth, i) for says, truth, i in labelled], none_labelled),
        human_rate=share([(truth, i) for _, truth, i in labelled], none_labelled),
        judged_rate=share(list(zip(judged, intents, strict=True)), "the judge decided no response"),
        rogan_gladen=corrections.rogan_gladen(),
        prediction_powered=corrections.prediction_powered(),
    )
