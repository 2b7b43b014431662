"""Power of a change of the refusal rate: brute force, simulation, textbook limits."""

import itertools
import math

import numpy as np
import pytest

from refusaldir.errors import ProbeError, RefusaldirError
from refusaldir.probes.power import RefusalPower
from refusaldir.statistics import mcnemar


def significant_fall(lost, gained):
    before = [True] * lost + [False] * gained
    return lost > gained and mcnemar(before, [not x for x in before], method="mid-p") <= 0.05


@pytest.mark.parametrize("n", [8, 25])
@pytest.mark.parametrize("fall", [0.0, 0.2, 0.5])
def test_every_outcome_counted_one_by_one(n, fall):
    """Independent path: the trinomial over (lost, gained), with McNemar's test itself."""
    p = RefusalPower(base_rate=0.8, flips=0.1)
    lost_rate, gained_rate = fall + 0.05, 0.05
    total = 0.0
    for lost, gained in itertools.product(range(n + 1), repeat=2):
        if lost + gained <= n and significant_fall(lost, gained):
            ways = math.comb(n, lost) * math.comb(n - lost, gained)
            same = (1 - lost_rate - gained_rate) ** (n - lost - gained)
            total += ways * lost_rate**lost * gained_rate**gained * same
    assert p.probability(fall, n) == pytest.approx(total, abs=1e-10)


def test_exact_and_normal_agree_where_they_meet():
    p = RefusalPower(base_rate=0.9, flips=0.1)
    for fall in (0.01, 0.02, 0.03):
        assert p.probability(fall, 2000) == pytest.approx(p.probability(fall, 2001), abs=0.02)


def test_no_fall_is_seen_no_more_often_than_half_the_level():
    p = RefusalPower(base_rate=0.9, flips=0.2)
    assert all(p.probability(0.0, n) < 0.03 for n in (5, 20, 100, 1000, 5000))


def test_least_is_where_the_power_is_and_falls_with_n():
    p = RefusalPower(base_rate=0.9, flips=0.1)
    least = [p.least(n) for n in (16, 64, 256, 1024)]
    assert least == sorted(least, reverse=True)
    for n, fall in zip((16, 64, 256, 1024), least, strict=True):
        assert p.probability(fall, n) == pytest.approx(0.8, abs=1e-3)
    assert p.least(4) is None


def test_prompts_of_one_intent_count_for_less():
    one, two = (RefusalPower(base_rate=0.9, flips=0.1, design_effect=x) for x in (1.0, 2.0))
    assert two.probability(0.2, 64) == one.probability(0.2, 32) < one.probability(0.2, 64)


def test_a_model_that_never_refuses_cannot_fall():
    assert RefusalPower(base_rate=0.0, flips=0.0).least(1000) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"base_rate": 1.2}, "base rate"),
        ({"base_rate": 0.98}, "at a base rate of 0.98"),
        ({"base_rate": float("nan")}, "base rate"),
        ({"design_effect": 0.0}, "design effect"),
        ({"power": 0.0}, "power"),
        ({"level": 1.0}, "level"),
    ],
)
def test_what_cannot_be(change, says):
    with pytest.raises(RefusaldirError, match=says):
        RefusalPower(**{"base_rate": 0.9, "flips": 0.1, **change})


def test_a_fall_that_cannot_be():
    with pytest.raises(ProbeError, match="cannot fall so far"):
        RefusalPower(base_rate=0.3, flips=0.1).probability(0.4, 50)


def test_simulation():
    p, rng, n = RefusalPower(base_rate=0.9, flips=0.1), np.random.default_rng(0), 60
    counts = rng.multinomial(n, [0.25, 0.05, 0.7], size=1500)
    seen = np.mean([significant_fall(lost, gained) for lost, gained, _ in counts])
    assert seen == pytest.approx(p.probability(0.2, n), abs=0.03)
