"""Sampling plans: what is generated, in which order, under which names."""

import pytest
import scipy.stats

from refusaldir.errors import ProbeError
from refusaldir.probes.plan import SamplingPlan, constant, drawn_seed
from refusaldir.prompts.schema import Prompt, PromptSet, Turn

PLAN = SamplingPlan(temperatures=(0.7, 0.0), seeds=(3, 1), samples=2)


def prompts(n=3, word="do"):
    return PromptSet(
        "few",
        tuple(
            Prompt(
                id=f"p{i}", intent_id=f"i{i}", label="harmful", turns=(Turn("user", f"{word} {i}"),)
            )
            for i in range(n)
        ),
    )


def test_jobs_in_order():
    jobs = PLAN.jobs(prompts())
    assert [(j.temperature, j.seed, j.sample, j.prompt_id) for j in jobs] == [
        (t, s, k, f"p{i}")
        for t, s, k in ((0.0, 0, 0), (0.7, 3, 0), (0.7, 3, 1), (0.7, 1, 0), (0.7, 1, 1))
        for i in range(3)
    ]
    assert len(jobs) == 3 * PLAN.per_prompt == 15
    assert len({j.key for j in jobs}) == 15
    assert [j.index for j in jobs[:3]] == [0, 1, 2]
    assert PLAN.jobs(prompts()) == jobs
    drawn = {j.key: drawn_seed(prompts()[j.index].turns, j.seed, j.sample) for j in jobs[3:]}
    assert {j.key: j.drawn_seed for j in jobs[3:]} == drawn and len(set(drawn.values())) == 12


def test_greedy_comes_once_and_without_a_seed():
    jobs = SamplingPlan(temperatures=(0.0,), seeds=(0, 1, 2), samples=5).jobs(prompts())
    assert len(jobs) == 3 and all(j.drawn_seed is None for j in jobs)


def test_a_larger_plan_holds_the_same_jobs():
    """So that a journal can be gone on with after asking for more."""
    more = SamplingPlan(temperatures=(0.0, 0.7, 1.0), seeds=(1, 3, 5), samples=4)
    few = {j.key: j for j in PLAN.jobs(prompts(2))}
    assert few.items() <= {j.key: j for j in more.jobs(prompts(5))}.items()


def test_other_words_are_another_job():
    a, b = ({j.key for j in PLAN.jobs(prompts(word=w))} for w in ("do", "make"))
    assert not a & b


def test_seeds_are_each_their_own():
    turns = [(Turn("user", f"question {i}"),) for i in range(40)]
    seeds = [drawn_seed(t, s, k) for t in turns for s in range(5) for k in range(5)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**31 for seed in seeds)
    spread = scipy.stats.kstest([seed / 2**31 for seed in seeds], "uniform")
    assert spread.pvalue > 0.01
    assert drawn_seed(turns[0], 0, 0) == seeds[0], "the same in every run"
    assert drawn_seed((Turn("user", "question 0"),), 0, 0) == 901476487


def test_round_trip():
    assert SamplingPlan.from_dict(PLAN.to_dict()) == PLAN
    assert PLAN.to_dict()["seeds"] == [3, 1]


def test_a_generator_that_ignores_the_temperature_is_seen():
    jobs = SamplingPlan(temperatures=(0.0, 0.5, 1.0), samples=3).jobs(prompts())
    replies = [
        (j.temperature, j.prompt_id, f"{j.prompt_id} {j.sample if j.temperature == 1 else ''}")
        for j in jobs
    ]
    assert constant(replies) == (0.5,)
    one = SamplingPlan(temperatures=(1.0,)).jobs(prompts())
    alone = [(j.temperature, j.prompt_id, "same") for j in one]
    assert constant(alone) == (), "one reply cannot differ from itself"
    assert constant([]) == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperatures": (-0.1,)}, "between 0 and 2"),
        ({"temperatures": (float("nan"),)}, "between 0 and 2"),
        ({"temperatures": ()}, "at least one temperature"),
        ({"temperatures": (0.5, 0.5)}, "temperature is given twice"),
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (1, 1)}, "seed is given twice"),
        ({"seeds": (-1,)}, "0 or a positive"),
        ({"samples": 0}, "at least one sample"),
        ({"max_new_tokens": 0}, "at least one token"),
    ],
)
def test_refuses(fields, message):
    with pytest.raises(ProbeError, match=message):
        SamplingPlan(**fields)
