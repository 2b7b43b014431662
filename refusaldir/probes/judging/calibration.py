"""How wrong a judge is by human labels, and what the refusal rate is once that is allowed for.

"Positive" is refused, as `refusaldir.probes.outcomes` defines it; responses that judge or human
could not decide are counted and left out. Each arm is calibrated by itself, since a judge's errors
depend on whose responses it reads, and so is each axis, harmful and harmless prompts. The labelled
responses must be a random part of the arm's (`refusaldir.probes.judging.sample`).

Two corrections of the judged rate q:

* **Rogan–Gladen** (1978): ``(q + Sp − 1) / (Se + Sp − 1)``;
* **prediction-powered**, tuned (Angelopoulos et al. 2023, arXiv 2301.09633 and 2311.01453):
  ``mean of human + λ · (mean of judged over the unlabelled − the same over the labelled)`` with
  ``λ = cov(human, judged) / var(judged) · N / (N + n)`` for n labelled and N others, in 0 to 1. It
  asks nothing of the judge: a useless one leaves the labels alone, with a good one they go further.

The intervals are made in `refusaldir.probes.judging.corrections`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from refusaldir.errors import ProbeError
from refusaldir.probes.behaviour import BehaviourRow
from refusaldir.probes.judging.corrections import Corrections, change, clustered_proportion
from refusaldir.probes.outcomes import UNUSABLE, Judgement, is_refused
from refusaldir.records import Estimate
from refusaldir.statistics import critical_value

#: Axes of behaviour, harmful prompts first.
AXES = ("refusal", "over_refusal")


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """One response of one arm.

    Attributes:
        arm: The arm, e.g. ``"base"``.
        axis: ``"refusal"``, ``"over_refusal"``, or empty where prompts are not told apart.
        intent_id: Its intent.
        judge: The judge's label.
        human: The label made by people, or None when there is none.
    """

    arm: str
    axis: str = ""
    intent_id: str
    judge: str
    human: str | None = None


@dataclass(frozen=True, kw_only=True)
class ArmCalibration:
    """A judge on the responses of one arm to one kind of prompts.

    Attributes:
        arm: The arm.
        axis: The axis, as of the rows.
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
        prediction_powered: The rate by labels, moved by what the judge sees of the unlabelled.
    """

    arm: str
    axis: str
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


@dataclass(frozen=True, kw_only=True)
class ChangeCalibration:
    """The change of a refusal rate between two arms, as judged and corrected in each of them.

    Attributes:
        axis: The axis.
        base: The arm subtracted.
        tuned: The other.
        judged: Change as judged.
        rogan_gladen: Change of the rates corrected by sensitivity and specificity.
        prediction_powered: Change of the prediction-powered rates.
    """

    axis: str
    base: str
    tuned: str
    judged: Estimate
    rogan_gladen: Estimate
    prediction_powered: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A judge against human labels.

    Attributes:
        arms: One entry for each arm and axis, in the order in which they come.
        changes: The second arm minus the first, for each axis of both; empty unless there are two.
    """

    arms: tuple[ArmCalibration, ...]
    changes: tuple[ChangeCalibration, ...]

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
        CalibrationRow(
            arm=arm,
            axis=AXES[0] if row.harmful else AXES[1],
            intent_id=row.intent_id,
            judge=judgement.label,
            human=label,
        )
        for row, judgement, label in zip(rows, judged, human, strict=True)
    ]


def calibrate(
    rows: Sequence[CalibrationRow], *, level: float = 0.95, seed: int = 0, n_boot: int = 4000
) -> Calibration:
    """Measure a judge against human labels, arm by arm and axis by axis.

    Args:
        rows: Responses of every arm, with human labels on a random part of them.
        level: Nominal coverage of the intervals.
        seed: Seed of the bootstrap.
        n_boot: Number of draws.

    Returns:
        What the labels tell. What they cannot (no refused response among them) is not estimable,
        with the reason.

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
    groups: dict[tuple[str, str], _Group] = {}
    for key in dict.fromkeys((row.arm, row.axis) for row in rows):
        own = [row for row in rows if (row.arm, row.axis) == key]
        groups[key] = _Group(own, level=level, seed=seed, n_boot=n_boot)
    arms = tuple(dict.fromkeys(row.arm for row in rows))
    changes = []
    if len(arms) == 2:
        for axis in dict.fromkeys(row.axis for row in rows):
            if (arms[0], axis) in groups and (arms[1], axis) in groups:
                changes.append(groups[arms[0], axis].change(groups[arms[1], axis]))
    return Calibration(
        arms=tuple(group.calibration() for group in groups.values()), changes=tuple(changes)
    )


class _Group:
    """The responses of one arm on one axis."""

    def __init__(
        self, rows: Sequence[CalibrationRow], *, level: float, seed: int, n_boot: int
    ) -> None:
        self.rows, self.level = rows, level
        self.arm, self.axis = rows[0].arm, rows[0].axis
        self.usable = [row for row in rows if row.judge not in UNUSABLE]
        self.judged = [bool(is_refused(row.judge)) for row in self.usable]
        self.human = [None if row.human is None else is_refused(row.human) for row in self.usable]
        self.intents = [row.intent_id for row in self.usable]
        self.corrections = Corrections(
            self.judged,
            self.human,
            self.intents,
            arm=f"{self.arm}/{self.axis}",
            seed=seed,
            n_boot=n_boot,
        )

    def calibration(self) -> ArmCalibration:
        labelled = [
            (says, truth, intent)
            for says, truth, intent in zip(self.judged, self.human, self.intents, strict=True)
            if truth is not None
        ]
        right = [(says == truth, intent) for says, truth, intent in labelled]
        none_labelled = "no human label for a response that the judge decided"
        everything = list(zip(self.judged, self.intents, strict=True))
        return ArmCalibration(
            arm=self.arm,
            axis=self.axis,
            n=len(self.rows),
            n_labelled=len(labelled),
            n_judge_unusable=len(self.rows) - len(self.usable),
            n_human_unusable=sum(row.human in UNUSABLE for row in self.rows),
            sensitivity=self._share(
                [(says, i) for says, truth, i in labelled if truth],
                "people call no labelled response refused",
            ),
            specificity=self._share(
                [(not says, i) for says, truth, i in labelled if not truth],
                "people call every labelled response refused",
            ),
            accuracy=self._share(right, none_labelled),
            human_rate=self._share([(truth, i) for _, truth, i in labelled], none_labelled),
            judged_rate=self._share(everything, "the judge decided no response"),
            rogan_gladen=self.corrections.rogan_gladen.estimate(self.level),
            prediction_powered=self.corrections.prediction_powered.estimate(self.level),
        )

    def change(self, tuned: "_Group") -> ChangeCalibration:
        n = len({*self.intents, *tuned.intents})
        one, other = self.corrections, tuned.corrections
        return ChangeCalibration(
            axis=self.axis,
            base=self.arm,
            tuned=tuned.arm,
            judged=change(one.judged, other.judged, n=n, level=self.level),
            rogan_gladen=change(one.rogan_gladen, other.rogan_gladen, n=n, level=self.level),
            prediction_powered=change(
                one.prediction_powered, other.prediction_powered, n=n, level=self.level
            ),
        )

    def _share(self, values: list[tuple[bool, str]], what: str) -> Estimate:
        if not values:
            return Estimate(value=None, n=0, level=self.level, note=f"not estimable: {what}")
        return clustered_proportion(
            [value for value, _ in values], [intent for _, intent in values], level=self.level
        )
