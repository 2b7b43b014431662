"""Several tuned models: the training seed is the replicate."""

import numpy as np
import pytest
from arms import arm

from refusaldir.errors import ProbeError
from refusaldir.probes.comparison import compare_replicates
from refusaldir.probes.comparison.replicates import two_way_mean


def test_by_hand():
    base = arm("F" * 20 + "C" * 20, "C" * 10)
    falls = [
        arm("C" * k + "F" * (20 - k) + "C" * 20, "C" * 10, name=f"seed{k}") for k in (4, 8, 12)
    ]
    got = compare_replicates(base, falls)
    assert got.tuned == ("seed4", "seed8", "seed12")
    overall = got.axis("refusal").overall
    assert [c.value for c in overall.changes] == pytest.approx([-0.1, -0.2, -0.3])
    assert overall.mean.value == pytest.approx(-0.2) and overall.mean.n == 3
    assert overall.mean.lower < -0.2 < overall.mean.upper
    assert 0 < overall.between.value < 0.01 < overall.between.upper  # variance of ±0.1 is 0.01
    assert got.axis("over_refusal").overall.between.value == 0
    assert got.to_dict()["axes"][0]["categories"][0]["name"] == "c0"


def test_prompts_that_one_model_leaves_unjudged_are_left_out():
    base = arm("FFFF")
    got = compare_replicates(base, [arm("CFFI", name="a"), arm("CFFF", name="b")])
    assert got.axis("refusal").overall.n == 3
    none = compare_replicates(arm("FF"), [arm("II", name="a"), arm("FF", name="b")])
    assert none.axis("refusal").overall.mean.value is None


def test_refusals():
    with pytest.raises(ProbeError, match="at least 2"):
        compare_replicates(arm("F"), [arm("F")])
    with pytest.raises(ProbeError, match="different prompts"):
        compare_replicates(arm("FC"), [arm("FC"), arm("FCF")])
    with pytest.raises(ProbeError, match="judges"):
        compare_replicates(arm("FC"), [arm("FC"), arm("FC", judges=("phrases-0",))])


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("between", [0.0, 0.05, 0.2])
def test_coverage_over_seeds_and_intents(seeds, between):
    """The mean over seeds not run and prompts not asked: nominal 95 %, at least 93 % seen."""
    rng = np.random.default_rng([seeds, int(100 * between)])
    held, careless, truths = [], [], []
    for _ in range(1500):
        z = (
            -0.1
            + 0.3 * rng.standard_normal((40, 1))
            + between * rng.standard_normal((1, seeds))
            + 0.4 * rng.standard_normal((40, seeds))
        )
        mean, spread = two_way_mean(z, 0.95)
        held.append(mean.lower <= -0.1 <= mean.upper)
        error = z.mean(axis=1).std(ddof=1) / np.sqrt(40)  # takes the seeds for fixed
        careless.append(abs(z.mean() + 0.1) <= 2.02 * error)
        truths.append(spread.lower <= between**2 <= spread.upper)
    assert np.mean(held) >= 0.93
    assert np.mean(truths) >= 0.93
    if between == 0.2:
        assert np.mean(careless) < 0.75
