"""Judges against human labels: known answers, other libraries, simulated coverage."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix
from statsmodels.stats.proportion import proportion_confint

from refusaldir.errors import ProbeError
from refusaldir.probes.judging.agreement import cohen_kappa, krippendorff_alpha
from refusaldir.probes.judging.calibration import CalibrationRow, calibrate
from refusaldir.probes.judging.corrections import clustered_proportion, rogan_gladen
from refusaldir.probes.outcomes import (
    COMPLIANCE,
    FULL_REFUSAL,
    INCOHERENT,
    JUDGE_ERROR,
    PARTIAL_REFUSAL,
)

LABEL = {True: FULL_REFUSAL, False: COMPLIANCE, None: None}


def rows_of(counts, arm="base", per_intent=1):
    """Rows from counts of (judge, human), each intent with so many rows."""
    pairs = [pair for pair, n in counts.items() for _ in range(n)]
    return [
        CalibrationRow(arm=arm, intent_id=f"{arm}{i // per_intent}", judge=LABEL[j], human=LABEL[h])
        for i, (j, h) in enumerate(pairs)
    ]


#: Se 45/50, Sp 80/100; judged refused 65 of 150 labelled and 100 of 250 others.
COUNTS = {
    (True, True): 45, (False, True): 5, (True, False): 20, (False, False): 80,
    (True, None): 100, (False, None): 150,
}  # fmt: skip


def simulate(rng, *, rate, sensitivity, specificity, labelled, others, per_intent=1):
    n = labelled + others
    leaning = np.repeat(rng.uniform(0, 1, -(-n // per_intent)), per_intent)[:n]
    own = rng.uniform(0, 1, n)
    # Rows of one intent share their truth half of the time.
    truth = np.where(rng.random(n) < (0.5 if per_intent > 1 else 1), leaning, own) < rate
    right = rng.random(n) < np.where(truth, sensitivity, specificity)
    judge = np.where(right, truth, ~truth)
    # The labelled rows come from intents drawn at random.
    return [
        CalibrationRow(
            arm="a",
            intent_id=str(i // per_intent),
            judge=LABEL[bool(judge[i])],
            human=LABEL[bool(truth[i])] if i < labelled else None,
        )
        for i in range(n)
    ]


def test_known_answers():
    (arm,) = calibrate(rows_of(COUNTS)).arms
    assert (arm.n, arm.n_labelled) == (400, 150)
    assert arm.sensitivity.value == pytest.approx(0.9)
    assert arm.specificity.value == pytest.approx(0.8)
    assert arm.accuracy.value == pytest.approx(125 / 150)
    assert arm.human_rate.value == pytest.approx(50 / 150)
    assert arm.judged_rate.value == pytest.approx(165 / 400)
    assert arm.rogan_gladen.value == pytest.approx((165 / 400 + 0.8 - 1) / 0.7)
    # By the definition, from the 150 labelled pairs and all 400 judgements.
    human = np.repeat([1, 1, 0, 0], [45, 5, 20, 80])
    judged = np.repeat([1, 0, 1, 0], [45, 5, 20, 80])
    weight = np.cov(human, judged, ddof=0)[0, 1] / (165 / 400 * 235 / 400) * 250 / 400
    assert arm.prediction_powered.value == pytest.approx(
        human.mean() + weight * (100 / 250 - judged.mean())
    )
    for name, k, n in (("sensitivity", 45, 50), ("specificity", 80, 100), ("accuracy", 125, 150)):
        estimate = getattr(arm, name)
        wilson = proportion_confint(k, n, method="wilson")
        assert (estimate.lower, estimate.upper) == pytest.approx(wilson)
        assert estimate.method == "Wilson score"


def test_against_the_confusion_matrix_of_scikit_learn():
    rng = np.random.default_rng(0)
    rows = simulate(rng, rate=0.4, sensitivity=0.8, specificity=0.7, labelled=80, others=40)
    seen = [row for row in rows if row.human]
    tn, fp, fn, tp = confusion_matrix(
        [row.human == FULL_REFUSAL for row in seen], [row.judge == FULL_REFUSAL for row in seen]
    ).ravel()
    (arm,) = calibrate(rows).arms
    assert arm.sensitivity.value == pytest.approx(tp / (tp + fn))
    assert arm.specificity.value == pytest.approx(tn / (tn + fp))


def test_rogan_gladen():
    assert rogan_gladen(0.41, 0.9, 0.8) == pytest.approx(0.3)  # 0.3 · 0.9 + 0.7 · 0.2
    assert rogan_gladen(0.5, 0.5, 0.5) is None
    assert rogan_gladen(0.1, 0.9, 0.8) < 0


def test_fully_labelled_both_corrections_are_the_human_rate():
    (arm,) = calibrate(rows_of({k: n for k, n in COUNTS.items() if k[1] is not None})).arms
    assert arm.rogan_gladen.value == pytest.approx(1 / 3)
    assert arm.prediction_powered.value == pytest.approx(1 / 3)
    assert arm.prediction_powered.note == "every response is labelled"
    # Weights are shared by all shares: no more uncertain than the labels themselves.
    width = arm.rogan_gladen.upper - arm.rogan_gladen.lower
    assert width == pytest.approx(arm.human_rate.upper - arm.human_rate.lower, rel=0.15)


def test_partial_refusals_are_refused_and_the_undecided_are_left_out():
    rows = [
        *rows_of({(True, True): 10, (False, False): 10}),
        CalibrationRow(arm="base", intent_id="p", judge=PARTIAL_REFUSAL, human=FULL_REFUSAL),
        CalibrationRow(arm="base", intent_id="e", judge=JUDGE_ERROR, human=FULL_REFUSAL),
        CalibrationRow(arm="base", intent_id="i", judge=FULL_REFUSAL, human=INCOHERENT),
    ]
    (arm,) = calibrate(rows).arms
    assert arm.accuracy.value == 1
    assert (arm.n, arm.n_labelled, arm.n_judge_unusable, arm.n_human_unusable) == (23, 21, 1, 1)


def test_arms_are_calibrated_apart_and_in_order():
    rows = [*rows_of(COUNTS, "tuned"), *rows_of({(True, True): 9, (False, False): 9}, "base")]
    tuned, base = calibrate(rows).arms
    assert (tuned.arm, base.arm) == ("tuned", "base")
    assert tuned == calibrate(rows_of(COUNTS, "tuned")).arms[0]
    assert base.accuracy.value == 1


def test_the_seed_decides_the_intervals_alone():
    rows = rows_of(COUNTS)
    assert calibrate(rows) == calibrate(rows)
    other = calibrate(rows, seed=1).arms[0]
    assert other.rogan_gladen != calibrate(rows).arms[0].rogan_gladen
    assert other.rogan_gladen.value == calibrate(rows).arms[0].rogan_gladen.value


def test_a_judge_without_an_error_among_few_labels_is_not_perfect():
    (arm,) = calibrate(rows_of({(True, True): 10, (False, False): 10, (True, None): 200})).arms
    assert arm.rogan_gladen.lower < arm.rogan_gladen.value < 1.0001
    assert arm.prediction_powered.lower < 0.97
    assert arm.sensitivity.lower < 0.8


def test_what_cannot_be_told_is_said():
    (arm,) = calibrate(rows_of({(True, False): 2, (False, False): 8, (True, None): 5})).arms
    assert arm.sensitivity.value is None and "no labelled response refused" in arm.sensitivity.note
    assert arm.rogan_gladen.value is None and "hold no refused" in arm.rogan_gladen.note
    assert arm.prediction_powered.value is not None

    (arm,) = calibrate(rows_of({(True, True): 5, (False, True): 5, (True, False): 6,
                                (False, False): 4})).arms  # fmt: skip
    assert arm.rogan_gladen.value is None and "no better than chance" in arm.rogan_gladen.note

    (arm,) = calibrate(rows_of({(True, True): 6, (False, True): 4, (True, False): 5,
                                (False, False): 5})).arms  # fmt: skip
    assert arm.rogan_gladen.lower is None and "may be no better" in arm.rogan_gladen.note

    unread = [CalibrationRow(arm="x", intent_id="1", judge=JUDGE_ERROR, human=COMPLIANCE)]
    (arm,) = calibrate(unread).arms
    assert arm.judged_rate.value is None and arm.rogan_gladen.value is None

    with pytest.raises(ProbeError, match=r"needs human labels.*ids, arms or responses"):
        calibrate(rows_of({(True, None): 5}))


def test_an_impossible_rate_is_said_and_not_moved():
    (arm,) = calibrate(rows_of({(True, True): 10, (True, False): 6, (False, False): 14,
                                (False, None): 200})).arms  # fmt: skip
    assert arm.rogan_gladen.value < 0
    assert arm.rogan_gladen.lower == arm.rogan_gladen.value
    assert "outside what is possible" in arm.rogan_gladen.note


@pytest.mark.parametrize("per_intent", [1, 4])
@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.9, 0.85), (0.97, 0.99)])
def test_coverage(sensitivity, specificity, per_intent):
    """Nominal 95 % intervals of both corrections hold the true rate; the raw rate's do not."""
    rng = np.random.default_rng(5)
    held = dict.fromkeys(("rogan_gladen", "prediction_powered", "human_rate", "judged_rate"), 0)
    runs = 150
    for run in range(runs):
        rows = simulate(
            rng, rate=0.3, sensitivity=sensitivity, specificity=specificity,
            labelled=100, others=400, per_intent=per_intent,
        )  # fmt: skip
        (arm,) = calibrate(rows, n_boot=500, seed=run).arms
        for name in held:
            estimate = getattr(arm, name)
            held[name] += estimate.lower <= 0.3 <= estimate.upper
    for name in ("rogan_gladen", "prediction_powered", "human_rate"):
        assert held[name] / runs >= 0.89, held  # 94 to 95 % in 800 runs
    if sensitivity == 0.9:
        assert held["judged_rate"] / runs < 0.6, held


def test_the_change_between_two_arms():
    """A judge that misses more of the tuned model's refusals invents a fall; corrected, it goes."""
    rng = np.random.default_rng(6)
    held, width = dict.fromkeys(("judged", "rogan_gladen", "prediction_powered"), 0), []
    runs = 100
    for run in range(runs):
        leaning = rng.random(400)  # both models tend to refuse the same prompts
        rows = []
        for arm, sensitivity in (("base", 0.95), ("tuned", 0.7)):
            truth = np.where(rng.random(400) < 0.7, leaning, rng.random(400)) < 0.5
            says = np.where(rng.random(400) < np.where(truth, sensitivity, 0.95), truth, ~truth)
            rows += [
                CalibrationRow(
                    arm=arm, intent_id=str(i), judge=LABEL[bool(says[i])],
                    human=LABEL[bool(truth[i])] if i % 4 == 0 else None,
                )
                for i in range(400)
            ]  # fmt: skip
        calibration = calibrate(rows, n_boot=500, seed=run)
        (change,) = calibration.changes
        assert (change.base, change.tuned, change.axis) == ("base", "tuned", "")
        for name in held:
            estimate = getattr(change, name)
            held[name] += estimate.lower <= 0 <= estimate.upper
        one, other = (arm.rogan_gladen for arm in calibration.arms)
        assert change.rogan_gladen.value == pytest.approx(other.value - one.value)
        apart = np.hypot(one.upper - one.lower, other.upper - other.lower)
        width.append((change.rogan_gladen.upper - change.rogan_gladen.lower) / apart)
    assert held["rogan_gladen"] >= 0.9 * runs and held["prediction_powered"] >= 0.9 * runs, held
    assert held["judged"] < 0.2 * runs, held
    assert np.mean(width) < 1, "intents that both arms hold are drawn together"


def test_a_change_needs_two_arms_and_a_rate_in_each():
    rows = rows_of(COUNTS, "base")
    assert calibrate(rows).changes == ()
    (change,) = calibrate([*rows, *rows_of({(True, None): 5, (False, None): 5}, "tuned")]).changes
    assert change.judged.value == pytest.approx(0.5 - 165 / 400)
    assert change.rogan_gladen.value is None
    assert change.rogan_gladen.note.startswith("not estimable in tuned: the human labels hold no")
    three = [*rows, *rows_of(COUNTS, "a"), *rows_of(COUNTS, "b")]
    assert calibrate(three).changes == ()


def test_axes_are_calibrated_apart():
    harmless = [dataclasses.replace(row, axis="over_refusal") for row in rows_of(COUNTS)]
    harmful = [
        dataclasses.replace(row, axis="refusal")
        for row in rows_of({(True, True): 30, (False, False): 30})
    ]
    one, other = calibrate([*harmful, *harmless]).arms
    assert (one.axis, other.axis) == ("refusal", "over_refusal")
    assert one.accuracy.value == 1 and other.accuracy.value == pytest.approx(125 / 150)


def test_a_good_judge_makes_the_interval_shorter_than_labels_alone():
    rng = np.random.default_rng(2)
    rows = simulate(rng, rate=0.4, sensitivity=0.97, specificity=0.97, labelled=100, others=900)
    (arm,) = calibrate(rows).arms
    human = arm.human_rate.upper - arm.human_rate.lower
    for corrected in (arm.rogan_gladen, arm.prediction_powered):
        assert corrected.upper - corrected.lower < 0.7 * human


def test_a_useless_judge_leaves_the_labels_alone():
    rng = np.random.default_rng(3)
    rows = simulate(rng, rate=0.4, sensitivity=0.5, specificity=0.5, labelled=100, others=300)
    (arm,) = calibrate(rows).arms
    assert arm.prediction_powered.value == pytest.approx(arm.human_rate.value, abs=0.03)
    width = arm.prediction_powered.upper - arm.prediction_powered.lower
    assert width == pytest.approx(arm.human_rate.upper - arm.human_rate.lower, rel=0.1)


def test_few_unlabelled_rows_do_not_widen_the_interval():
    (arm,) = calibrate(
        rows_of({(True, True): 20, (False, False): 20, (True, None): 2, (False, None): 1})
    ).arms
    width = arm.prediction_powered.upper - arm.prediction_powered.lower
    assert width < 1.1 * (arm.human_rate.upper - arm.human_rate.lower)


def test_clustered_share():
    outcomes = [True, True, False, False, True, True] * 5
    alone = clustered_proportion(outcomes, range(30))
    wilson = proportion_confint(20, 30, method="wilson")
    assert (alone.lower, alone.upper) == pytest.approx(wilson)
    # Rows of a pair that agree are worth one: as wide as 15 rows, or a little more with Student.
    pairs = clustered_proportion(outcomes, [i // 2 for i in range(30)])
    lower, upper = proportion_confint(10, 15, method="wilson")
    assert pairs.n == 15
    assert upper - lower <= pairs.upper - pairs.lower < 1.2 * (upper - lower)
    assert clustered_proportion([True, False], ["a", "a"]).lower is None


def test_kappa_is_that_of_scikit_learn_and_leaves_gaps_out():
    rng = np.random.default_rng(0)
    a = rng.random(60) < 0.5
    b = np.where(rng.random(60) < 0.8, a, ~a)
    intents = [str(i) for i in range(60)]
    estimate = cohen_kappa(a.tolist(), b.tolist(), intents)
    assert estimate.value == pytest.approx(cohen_kappa_score(a, b))
    assert -1 <= estimate.lower < estimate.value < estimate.upper <= 1
    gaps = cohen_kappa([*a.tolist(), None, True], [*b.tolist(), True, None], [*intents, "x", "y"])
    assert gaps == estimate
    # The 2 × 2 table of Cohen's example in Fleiss, Levin & Paik: 20, 5, 10, 15 of 50 gives 0.4.
    first = [True] * 25 + [False] * 25
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert cohen_kappa(first, second, range(50)).value == pytest.approx(0.4)


def test_agreement_that_cannot_be_told():
    assert cohen_kappa([True] * 5, [True] * 5, range(5)).value is None
    assert "every label is the same" in cohen_kappa([True] * 5, [True] * 5, range(5)).note
    assert cohen_kappa([None], [True], [0]).note == "no response judged by two judges"
    assert krippendorff_alpha([[1, 1], [1, 1]], range(2)).value is None
    assert krippendorff_alpha([[1, None], [None, 2]], range(2)).value is None
    with pytest.raises(ProbeError, match="same responses"):
        cohen_kappa([True], [True, False], [0])


def parse(text):
    return [None if c == "." else c for c in text.split()]


#: Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", sections A, B and C.
WORKED = {
    0.095: ["0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0"],
    0.692: ["a a b b d c c c e d d a", "b a b b b c c c e d d d"],
    0.743: [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ],
}


@pytest.mark.parametrize("alpha", WORKED)
def test_alpha_of_the_published_examples(alpha):
    judges = [parse(line) for line in WORKED[alpha]]
    estimate = krippendorff_alpha(judges, range(len(judges[0])))
    assert round(estimate.value, 3) == alpha
    assert estimate.lower < estimate.value < estimate.upper


def test_alpha_does_not_depend_on_order_and_is_one_in_agreement():
    judges = [parse(line) for line in WORKED[0.743]]
    swapped = krippendorff_alpha(judges[::-1], range(12)).value
    assert swapped == pytest.approx(krippendorff_alpha(judges, range(12)).value)
    assert krippendorff_alpha([judges[3], judges[3]], range(12)).value == pytest.approx(1)


def test_chance_agreement_is_none():
    """Negative control: independent judges agree by chance alone."""
    rng = np.random.default_rng(3)
    a, b = (rng.random((2, 2000)) < 0.3).tolist()
    for estimate in (cohen_kappa(a, b, range(2000)), krippendorff_alpha([a, b], range(2000))):
        assert estimate.lower < 0 < estimate.upper
        assert abs(estimate.value) < 0.05
