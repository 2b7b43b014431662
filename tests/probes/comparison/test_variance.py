"""Variance components: planted ones come back, whatever the design; what it cannot tell is None."""

import numpy as np
import pytest

from refusaldir.errors import ProbeError
from refusaldir.probes.comparison.variance import variance_components

SD = {"intent": 1.0, "prompt": 0.7, "crossed": 0.5, "temperature": 0.6, "seed": 0.3, "reply": 1.0}


def draw(rng, *, intents=30, prompts=2, temperatures=(0.5, 1.0), seeds=3, samples=3, missing=0.1):
    """Replies with planted components, some of them missing."""
    y, columns = [], {"intents": [], "prompts": [], "temperatures": [], "seeds": []}
    of_intent = SD["intent"] * rng.standard_normal(intents)
    of_prompt = SD["prompt"] * rng.standard_normal((intents, prompts))
    crossed = SD["crossed"] * rng.standard_normal((intents, prompts, len(temperatures)))
    of_temperature = SD["temperature"] * rng.standard_normal(len(temperatures))
    of_seed = SD["seed"] * rng.standard_normal((len(temperatures), seeds))
    for i, p, t in np.ndindex(intents, prompts, len(temperatures)):
        level = of_intent[i] + of_prompt[i, p] + crossed[i, p, t] + of_temperature[t]
        greedy = temperatures[t] == 0
        for s, _ in np.ndindex(1 if greedy else seeds, 1 if greedy else samples):
            if rng.random() < missing:
                continue
            noise = 0 if greedy else of_seed[t, s] + SD["reply"] * rng.standard_normal()
            y.append(level + noise)
            for name, code in zip(columns, (i, p, temperatures[t], s), strict=True):
                columns[name].append(code)
    return y, columns


@pytest.mark.parametrize(
    ("design", "truth"),
    [
        ({}, {"intents": 1, "prompts": 0.49, "prompt_by_temperature": 0.25, "temperatures": 0.36}),
        ({"temperatures": (0.0, 0.7)}, {"prompt_by_temperature": 0.25, "temperatures": 0.36}),
        ({"prompts": 1}, {"intents": None, "prompts": 1.49, "temperatures": 0.36}),
        (
            {"temperatures": (0.7,)},
            {"prompts": 0.74, "prompt_by_temperature": None, "temperatures": None},
        ),
        ({"samples": 1}, {"seeds": 0.09, "replies": 1}),
        ({"seeds": 1, "samples": 4}, {"seeds": None, "replies": 1}),
    ],
)
def test_planted_components_come_back(design, truth):
    """Without bias: the mean over draws is within three standard errors of what was planted."""
    rng = np.random.default_rng(0)
    drawn = [
        variance_components(y, **columns) for y, columns in (draw(rng, **design) for _ in "a" * 60)
    ]
    for name, value in {"replies": 1.0, **truth}.items():
        found = [getattr(parts, name) for parts in drawn]
        if value is None:
            assert found == [None] * len(drawn)
            continue
        values = [e.value for e in found]
        assert np.mean(values) == pytest.approx(
            value, abs=3 * np.std(values) / np.sqrt(len(values))
        )


def test_a_wrong_account_would_be_seen():
    """Negative control: replies taken for prompts put their noise where it is not."""
    rng = np.random.default_rng(1)
    y, columns = draw(rng, temperatures=(0.7,), seeds=1, samples=4, missing=0)
    wrong = {**columns, "prompts": [i // 2 for i in range(len(y))]}
    right = variance_components(y, **columns).prompts.value
    assert right == pytest.approx(0.74, abs=0.4)
    assert variance_components(y, **wrong).prompts.value < 0.7 * right


def test_intervals_cover():
    rng = np.random.default_rng(2)
    held = {"intents": [], "replies": []}
    truth = {"intents": 1.0, "replies": 1.0}
    for _ in range(200):
        y, columns = draw(rng, intents=60, temperatures=(0.7,), seeds=1, samples=3)
        parts = variance_components(y, **columns)
        for name, hits in held.items():
            e = getattr(parts, name)
            hits.append(e.lower <= truth[name] <= e.upper)
    assert min(map(np.mean, held.values())) >= 0.9


def test_balanced_case_is_the_analysis_of_variance():
    """One reply from each of k prompts an intent: the textbook's mean squares."""
    rng = np.random.default_rng(3)
    table = rng.standard_normal((20, 1)) + rng.standard_normal((20, 4))
    ids = np.repeat(range(20), 4)
    parts = variance_components(
        table.ravel(), intents=ids.tolist(), prompts=list(range(80)), temperatures=[0.0] * 80,
        seeds=[0] * 80,
    )  # fmt: skip
    within = table.var(axis=1, ddof=1).mean()
    between = 4 * table.mean(axis=1).var(ddof=1)
    assert parts.prompts.value == pytest.approx(within)
    assert parts.intents.value == pytest.approx((between - within) / 4)
    assert parts.replies is None and "one reply" in parts.note


def test_refuses_columns_of_other_lengths():
    with pytest.raises(ProbeError, match="2 of each"):
        variance_components([0, 1], intents=[0], prompts=[0, 1], temperatures=[0, 0], seeds=[0, 0])
    with pytest.raises(ProbeError, match="variance components"):
        variance_components([], intents=[], prompts=[], temperatures=[], seeds=[])
