"""Does the old handle still work: means, paired effects, and the words for them."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from refusaldir.drift.handle import handles, sentences
from refusaldir.records import Site

SITE = Site(hook="resid_pre", layer=3, position=-1)
INTENTS = [f"i{k}" for k in range(30)]


@dataclass
class Scores:
    clean_harmful: np.ndarray
    clean_harmless: np.ndarray
    ablated: dict
    added: dict


def scores(*, ablation=-5.0, addition=6.0, seed=0, noise=0.5):
    """Base's direction has the given effects; tuned's own has −4 and +4."""
    rng = np.random.default_rng(seed)
    harmful, harmless = rng.normal(3, 2, 30), rng.normal(-4, 2, 30)

    def moved(x, effect):
        return x + effect + rng.normal(0, noise, 30)

    return Scores(
        harmful,
        harmless,
        {"base": moved(harmful, ablation), "tuned": moved(harmful, -4)},
        {"base": moved(harmless, addition), "tuned": moved(harmless, 4)},
    )


def compared(**what):
    return handles(
        SITE, scores(), scores(seed=1, **what), harmful_intents=INTENTS, harmless_intents=INTENTS
    )


def test_effects_are_paired_means_with_t_intervals():
    found = compared()
    made = scores(seed=1)
    change = made.ablated["base"] - made.clean_harmful
    effect = found.tuned.base_direction.ablation_effect
    low, high = stats.ttest_1samp(change, 0).confidence_interval(0.95)
    assert (effect.value, effect.lower, effect.upper) == pytest.approx((change.mean(), low, high))
    gap = found.tuned.ablation_gap
    assert gap.value == pytest.approx(np.mean(made.ablated["base"] - made.ablated["tuned"]))
    # Paired: far narrower than the spread of the scores themselves would allow.
    assert effect.upper - effect.lower < 0.5 * (
        found.tuned.base_direction.ablated.upper - found.tuned.base_direction.ablated.lower
    )
    assert found.n_harmful == 30 and found.tuned.clean_harmful.n == 30


@pytest.mark.parametrize(
    ("ablation", "addition", "works", "said"),
    [
        (-5.0, 6.0, "yes", "still works in tuned"),
        (-5.0, 0.0, "only ablated", "only where it is ablated"),
        (0.0, 6.0, "only added", "only where it is added"),
        (0.0, 0.0, "no", "no longer works in tuned"),
        (5.0, -6.0, "no", "no longer works in tuned"),  # the wrong way round is no handle
    ],
)
def test_words_follow_the_intervals(ablation, addition, works, said):
    found = compared(ablation=ablation, addition=addition)
    assert found.tuned.base_direction.works == works
    assert found.to_dict()["tuned"]["base_direction"]["works"] == works
    (sentence,) = sentences(found)
    assert said in sentence and "tuned's own" in sentence
    assert found.base.base_direction.works == "yes"


def test_prompts_of_one_intent_are_one_unit():
    twice = handles(
        SITE,
        scores(),
        scores(seed=1),
        harmful_intents=[f"i{k // 2}" for k in range(30)],
        harmless_intents=INTENTS,
    )
    assert twice.tuned.base_direction.ablated.n == 15
    assert twice.tuned.base_direction.added.n == 30
