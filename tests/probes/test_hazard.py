"""Life tables of escalations: known answers, statsmodels, coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from statsmodels.api import GLM, families
from statsmodels.duration.survfunc import SurvfuncRight
from statsmodels.stats.proportion import proportion_confint

from refusaldir.errors import ProbeError
from refusaldir.probes.hazard import compare_hazards, life_table
from refusaldir.statistics import critical_value

COURSES = [
    (False, False, True),
    (True, False, True),  # what comes after the first compliance does not count
    (False, None, True),  # left at step 2
    (False, True),
    (False, False),  # its script ends
    (False, False, False),
]
INTENTS = list("abcdef")

outcomes = st.lists(st.sampled_from([True, False, False, None]), min_size=1, max_size=5)
conversations = st.lists(outcomes, min_size=2, max_size=30)


def counts(rows):
    return [(r.step, r.n, r.at_risk, r.complied, r.unknown) for r in rows]


def test_known_answer():
    rows = life_table(COURSES, INTENTS)
    assert counts(rows) == [(1, 6, 6, 1, 0), (2, 6, 4, 1, 1), (3, 4, 2, 1, 0)]
    assert [r.hazard.value for r in rows] == pytest.approx([1 / 6, 1 / 4, 1 / 2])
    share = 1 - np.cumprod([5 / 6, 3 / 4, 1 / 2])
    assert [r.complied_by.value for r in rows] == pytest.approx(share)
    assert rows[0].to_dict()["hazard"]["value"] == pytest.approx(1 / 6)


def test_counting_later_compliance_gives_another_answer():
    """Negative control: taking every turn as at risk is not the hazard."""
    naive = [np.mean([c[k] for c in COURSES if len(c) > k and c[k] is not None]) for k in range(3)]
    assert naive[2] != life_table(COURSES, INTENTS)[2].hazard.value


@given(conversations)
def test_equals_kaplan_meier_and_the_saturated_model(courses):
    rows = life_table(courses, list(range(len(courses))))
    time, status, person, event = [], [], [], []
    for course in courses:
        for k, complied in enumerate(course):
            if complied is None:
                break
            person.append(k)
            event.append(complied)
            if complied:
                break
        known = course[: course.index(None)] if None in course else course
        time.append(known.index(True) + 1 if True in known else len(known))
        status.append(int(True in known))
    at_risk = [r for r in rows if r.at_risk]
    assert [r.at_risk for r in at_risk] == np.bincount(person).tolist() if person else not at_risk
    if not any(status):
        assert all(r.hazard.value in (0.0, None) for r in rows)
        return
    fitted = SurvfuncRight(np.array(time) + 0.0, np.array(status))
    for when, survival in zip(fitted.surv_times, fitted.surv_prob, strict=True):
        assert rows[int(when) - 1].complied_by.value == pytest.approx(1 - survival)
    for k, r in enumerate(at_risk):
        assert r.hazard.value == pytest.approx(
            np.mean([e for p, e in zip(person, event, strict=True) if p == k])
        )


def test_equals_a_discrete_time_regression():
    """Logistic regression on person-periods with a term for each step (Allison 1982)."""
    rng = np.random.default_rng(0)
    courses = rng.random((200, 4)) < [0.1, 0.2, 0.3, 0.3]
    rows = life_table(courses.tolist(), list(range(200)))
    alive = np.cumsum(courses, axis=1) - courses == 0
    step = np.nonzero(alive)[1]
    fit = GLM(courses[alive], np.eye(4)[step], family=families.Binomial()).fit()
    assert [r.hazard.value for r in rows] == pytest.approx(1 / (1 + np.exp(-fit.params)))


def test_one_conversation_an_intent_is_wilson():
    """With Student's t in place of the normal."""
    row = life_table([(True,)] * 5 + [(False,)] * 15, list(range(20)))[0]
    alpha = 2 * norm.sf(critical_value(0.95, 19))
    expected = proportion_confint(5, 20, alpha=alpha, method="wilson")
    assert (row.hazard.lower, row.hazard.upper) == pytest.approx(expected)
    assert (row.complied_by.lower, row.complied_by.upper) == pytest.approx(expected)


def test_copies_of_a_conversation_add_no_certainty():
    courses = [(False, True), (False, False), (True, True), (False, True), (False, False)]
    once = life_table(courses, list("abcde"))
    often = life_table(courses * 7, list("abcde") * 7)
    wrong = life_table(courses * 7, list(range(35)))
    for a, b, c in zip(once, often, wrong, strict=True):
        for name in ("hazard", "complied_by"):
            x, y, z = (getattr(row, name) for row in (a, b, c))
            assert (x.value, x.lower, x.upper) == pytest.approx((y.value, y.lower, y.upper))
            assert z.upper - z.lower < 0.7 * (y.upper - y.lower)


def test_ends_are_no_points():
    never, always = [(False,)] * 10, [(True,)] * 10
    a, b = (
        life_table(never, list(range(10)))[0].hazard,
        life_table(always, list(range(10)))[0].hazard,
    )
    assert a.lower == 0 and a.upper > 0.2
    assert b.upper == 1 and b.lower == pytest.approx(1 - a.upper)


def test_nobody_at_risk():
    rows = life_table([(True, False), (True, True)], ["a", "b"])
    assert rows[1].at_risk == 0 and rows[1].hazard.value is None and rows[1].hazard.note
    assert rows[1].complied_by.value == 1.0  # all have complied, and that stays so
    rows = life_table([(False, None, True), (False, None)], ["a", "b"])
    assert rows[1].unknown == 2 and rows[2].complied_by.value is None


def test_one_intent_has_no_interval():
    row = life_table([(True,), (False,)], ["a", "a"])[0]
    assert row.hazard.value == 0.5 and row.hazard.lower is None and "one intent" in row.hazard.note


def test_difference_of_known_arms():
    base = [(False, False), (False, False), (False, True), (True, True)]
    tuned = [(True, False), (False, True), (False, True), (True, True)]
    first, second = compare_hazards(base, tuned, list("abcd"))
    assert first.hazard.value == pytest.approx(2 / 4 - 1 / 4)
    assert second.hazard.value == pytest.approx(2 / 2 - 1 / 3)
    assert second.complied_by.value == pytest.approx(4 / 4 - 2 / 4)
    assert counts([first.base, second.base]) == counts(life_table(base, list("abcd")))
    swapped = compare_hazards(tuned, base, list("abcd"))
    for row, back in zip((first, second), swapped, strict=True):
        assert row.hazard.lower == pytest.approx(-back.hazard.upper)
        assert row.complied_by.upper == pytest.approx(-back.complied_by.lower)
    assert first.to_dict()["tuned"]["complied"] == 2


def test_no_change():
    rows = compare_hazards(COURSES, COURSES, INTENTS)
    assert all(r.hazard.value == 0 and r.hazard.lower <= 0 <= r.hazard.upper for r in rows)


def test_pairing_narrows():
    """The same conversations, mostly the same outcomes: the correlation is used."""
    rng = np.random.default_rng(1)
    base = (rng.random(60) < 0.5)[:, None]
    tuned = base ^ (rng.random((60, 1)) < 0.05)
    paired = compare_hazards(base.tolist(), tuned.tolist(), list(range(60)))[0].hazard
    shuffled = compare_hazards(base.tolist(), rng.permutation(tuned).tolist(), list(range(60)))[0]
    assert paired.upper - paired.lower < 0.6 * (shuffled.hazard.upper - shuffled.hazard.lower)


def test_coverage():
    """24 intents, three samples each that go together: intervals hold at least 93 % of 300."""
    rng = np.random.default_rng(2)
    chances = np.array([[0.1, 0.2, 0.3], [0.2, 0.3, 0.5]])

    def draw(intents, samples):
        own, each = 0.5, rng.normal(size=(2, intents, samples, 3))
        latent = np.sqrt(own) * rng.normal(size=(intents, 1, 3)) + np.sqrt(1 - own) * each
        return (latent < norm.ppf(chances)[:, None, None]).reshape(2, -1, 3)

    share = 1 - np.cumprod(1 - chances, axis=1)
    held = np.zeros((2, 3))
    ids = np.repeat(np.arange(24), 3).tolist()
    for _ in range(300):
        base, tuned = draw(24, 3).tolist()
        for k, row in enumerate(compare_hazards(base, tuned, ids)):
            for i, (found, true) in enumerate(
                ((row.hazard, chances[1] - chances[0]), (row.complied_by, share[1] - share[0]))
            ):
                held[i, k] += found.lower <= true[k] <= found.upper
    assert (held / 300 >= 0.93).all(), held / 300


@pytest.mark.parametrize(
    ("courses", "intents"), [([], []), ([(True,)], ["a", "b"]), ([(True,), ()], ["a", "b"])]
)
def test_refuses(courses, intents):
    with pytest.raises(ProbeError, match="a life table needs"):
        life_table(courses, intents)


def test_refuses_other_conversations():
    with pytest.raises(ProbeError, match="same conversations"):
        compare_hazards([(True,), (True,)], [(True,), (True, False)], ["a", "b"])
