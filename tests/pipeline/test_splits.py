"""Which prompts make directions, score them and test them; and how far work is."""

import numpy as np
import pytest
from planted import make_prompts

from refusaldir.directions.reader import MIN_INTENTS, enough_intents
from refusaldir.pipeline.progress import counter
from refusaldir.pipeline.splits import Split, held_out, rows_of


def labels_of(prompts):
    return np.array([p.y for p in prompts])


def test_rows_of_a_split():
    prompts = make_prompts(8, split=True)
    for name in ("train", "validation", "test"):
        assert [prompts[i].split for i in rows_of(prompts, name)] == [name] * len(
            [p for p in prompts if p.split == name]
        )
    assert not len(rows_of(make_prompts(8), "test"))


@pytest.mark.parametrize("as_mask", [False, True])
def test_enough_intents_counts_intents_of_each_class(as_mask):
    prompts = make_prompts(MIN_INTENTS + 1)
    y = labels_of(prompts)

    def rows(keep):
        chosen = np.array([keep(i) for i in range(len(prompts))])
        return chosen if as_mask else np.flatnonzero(chosen)

    first = [p.intent_id == prompts[0].intent_id for p in prompts]
    assert enough_intents(prompts, y, rows(lambda i: True))
    assert enough_intents(prompts, y, rows(lambda i: not first[i]))
    # One intent of one class fewer is too few; so are many prompts of the same intent.
    second = [p.intent_id == prompts[2].intent_id and p.y for p in prompts]
    assert not enough_intents(prompts, y, rows(lambda i: not first[i] and not second[i]))
    twice = [*(i for i, f in enumerate(first) if f)] * 9
    assert not enough_intents(prompts, y, np.array(twice))


def test_held_out_is_the_test_split_else_what_made_no_direction():
    prompts = make_prompts(8, split=True)
    train = {p.id for p in prompts if p.split == "train"}
    rows, words = held_out(prompts, train)
    assert {prompts[i].split for i in rows} == {"test"} and "test split" in words
    rest = [p for p in prompts if p.split != "test"]
    rows, words = held_out(rest, train)
    assert len(rows) and {rest[i].split for i in rows} == {"validation"}
    assert "validated" in words


def test_at_most_so_many_of_each_class_by_the_seed():
    y = np.arange(40) % 2
    split = Split(train=np.arange(10), validation=np.arange(10, 40), how="by hand")
    few = split.at_most(4, y, seed=0)
    assert np.bincount(y[few.validation]).tolist() == [4, 4]
    assert set(few.validation) <= set(split.validation) and np.all(np.diff(few.validation) > 0)
    assert few.how == "by hand" and few.train is split.train
    np.testing.assert_array_equal(split.at_most(4, y, seed=0).validation, few.validation)
    assert any((split.at_most(4, y, seed=s).validation != few.validation).any() for s in (1, 2))
    np.testing.assert_array_equal(split.at_most(99, y, seed=0).validation, split.validation)


def test_counter_adds_up():
    seen = []
    count = counter(lambda *step: seen.append(step), "Work", 7)
    for more in (0, 3, 4):
        count(more)
    assert seen == [("Work", 0, 7), ("Work", 3, 7), ("Work", 7, 7)]
