from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusaldir.errors import PromptError
from refusaldir.prompts.schema import (
    FRAMINGS,
    LABELS,
    SEVERITIES,
    SPLITS,
    Prompt,
    PromptSet,
    Turn,
)


def prompt(id_: str = "a", **fields) -> Prompt:
    given_fields = {
        "intent_id": "i",
        "label": "harmful",
        "turns": (Turn("user", "How do I do it?"),),
        **fields,
    }
    return Prompt(id=id_, **given_fields)


TURNS = (Turn("user", "Hello"), Turn("assistant", "Hi"), Turn("user", "Now the other thing"))
USER, ASSISTANT, AGAIN = (turn.to_dict() for turn in TURNS)


def message(role="user", content="x"):
    return {"role": role, "content": content}


def test_text_is_the_last_user_turn_and_y_follows_the_label():
    p = prompt(turns=TURNS)
    assert p.text == "Now the other thing"
    assert (p.y, replace(p, label="harmless").y) == (1, 0)


texts = st.text(min_size=1).filter(str.strip)


@st.composite
def prompt_data(draw) -> dict:
    # Plain data: the type checker draws random numbers, which strategies must not.
    rounds = draw(st.integers(0, 3))
    turns = [message("system", draw(st.text()))] if draw(st.booleans()) else []
    for _ in range(rounds):
        turns += [message("user", draw(texts)), message("assistant", draw(texts))]
    return dict(
        id=draw(texts),
        intent_id=draw(texts),
        label=draw(st.sampled_from(LABELS)),
        category=draw(texts),
        severity=draw(st.sampled_from((None, *SEVERITIES))),
        framing=draw(st.sampled_from(FRAMINGS)),
        domain=draw(texts),
        turns=[*turns, message("user", draw(texts))],
        twin_of=draw(st.none() | texts),
        source=draw(st.text()),
        licence=draw(st.text()),
        split=draw(st.sampled_from((None, *SPLITS))),
        metadata=draw(st.dictionaries(st.text(), st.integers() | st.text(), max_size=2)),
    )


@given(prompt_data())
def test_dictionary_round_trip(data):
    p = Prompt.from_dict(data)
    if not data["metadata"]:
        del data["metadata"]
    assert p.to_dict() == data
    assert Prompt.from_dict(p.to_dict()) == p
    assert hash(Prompt.from_dict(p.to_dict())) == hash(p)


@settings(max_examples=25)
@given(st.lists(prompt_data(), unique_by=lambda data: data["id"], max_size=5))
def test_set_round_trip_keeps_order_and_hash(rows):
    ps = [Prompt.from_dict(data) for data in rows]
    made = PromptSet("x", tuple(ps), ("A note.",))
    again = PromptSet.from_dict(made.to_dict())
    assert again == made and again.hash == made.hash
    assert again.labels == [p.y for p in ps]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"label": "bad"}, ["label", "harmful or harmless", "'bad'"]),
        ({"severity": "huge"}, ["severity", "low or medium", "'huge'"]),
        ({"framing": "poetic"}, ["framing", "plain or professional", "'poetic'"]),
        ({"split": "dev"}, ["split", "train or validation or test", "'dev'"]),
        ({"turns": []}, ["turns", "at least one user message"]),
        ({"turns": [message(content="  ")]}, ["turns[1].content", "not empty"]),
        ({"turns": [message(content=3)]}, ["turns[1].content", "int"]),
        ({"turns": [message("human")]}, ["turns[1].role", "'human'"]),
        ({"turns": [message("assistant")]}, ["turns[1].role", "expected user"]),
        ({"turns": [USER, ASSISTANT]}, ["last message from the user", "assistant"]),
        ({"turns": [USER, AGAIN]}, ["turns[2].role", "expected assistant"]),
        ({"turns": [USER, message("system")]}, ["turns[2].role", "system"]),
        ({"turns": [message("system")]}, ["last message from the user", "system"]),
        ({"turns": "x"}, ["turns"]),
        ({"turns": [message(content="a \ud800")]}, ["turns[1].content", "UTF-8"]),
        ({"id": ""}, ["'id'", "not empty"]),
        ({"id": 4}, ["'id'", "a text", "int 4"]),
        ({"intent_id": None}, ["intent_id", "a text"]),
        ({"category": " "}, ["category"]),
        ({"domain": ""}, ["domain"]),
        ({"twin_of": ""}, ["twin_of"]),
        ({"metadata": 3}, ["metadata", "an object"]),
    ],
)
def test_wrong_fields_are_refused_by_name(fields, named):
    with pytest.raises(PromptError) as error:
        Prompt.from_dict({**prompt().to_dict(), **fields})
    for part in named:
        assert part in str(error.value)


def test_a_prompt_made_by_hand_is_checked_too():
    with pytest.raises(
        PromptError, match=r"wrong 'turns' \(prompt a\).*last message from the user"
    ):
        prompt(turns=TURNS[:2])
    with pytest.raises(PromptError, match="wrong 'id'"):
        prompt(" ")


def test_empty_system_message_is_allowed():
    assert prompt(turns=(Turn("system", ""), Turn("user", "x"))).text == "x"


def test_from_dict_names_unknown_and_missing_fields():
    data = prompt().to_dict()
    with pytest.raises(PromptError, match=r"unknown fields \(prompt a\).*got mood.*metadata"):
        Prompt.from_dict({**data, "mood": "x"})
    del data["label"]
    with pytest.raises(PromptError, match=r"lacks fields.*no label"):
        Prompt.from_dict(data)
    with pytest.raises(PromptError, match=r"turns\[1\] is not a message.*role, content, name"):
        turns = [{"role": "user", "content": "x", "name": "y"}]
        Prompt.from_dict({**prompt().to_dict(), "turns": turns})
    with pytest.raises(PromptError, match=r"'turns' is not a list.*got str"):
        Prompt.from_dict({**prompt().to_dict(), "turns": "x"})


def test_set_refuses_repeated_ids():
    with pytest.raises(PromptError, match=r"same id \(x\): got 'a'"):
        PromptSet("x", (prompt(), prompt()))


def test_hash_sees_what_results_depend_on_and_nothing_else():
    a, b = prompt("a"), prompt("b", label="harmless")
    base = PromptSet("x", (a, b)).hash
    assert PromptSet("other name", (replace(a, licence="l", source="s"), b)).hash == base
    changed = [
        (b, a),
        (a,),
        (replace(a, id="c"), b),
        (replace(a, split="test"), b),
        (replace(a, category="c"), b),
        (replace(a, label="harmless"), b),
        (replace(a, turns=(Turn("user", "How do I do it"),)), b),
        (replace(a, turns=(Turn("system", ""), *a.turns)), b),
    ]
    assert base not in {PromptSet("x", ps).hash for ps in changed}


def test_select_keeps_order_and_combines():
    rows = [
        prompt("a", split="train", category="p"),
        prompt("b", split="train", label="harmless", category="p"),
        prompt("c", split="test", category="q"),
        prompt("d", split="train", category="q"),
    ]
    ps = PromptSet("x", tuple(rows), ("Note.",))
    assert ps.select(split="train").ids == ["a", "b", "d"]
    assert ps.select(label="harmful", split="train").ids == ["a", "d"]
    assert ps.select(category="q").ids == ["c", "d"]
    assert ps.select(category="none").ids == []
    assert ps[1:3].ids == ["b", "c"] and ps[1:3].notes == ("Note.",)
    assert ps[-1] is rows[-1]
    for wrong in ({"split": "dev"}, {"label": "bad"}):
        with pytest.raises(PromptError, match="No prompt can have this"):
            ps.select(**wrong)


def test_both_classes_are_required():
    PromptSet("x", (prompt("a"), prompt("b", label="harmless"))).require_both_classes()
    with pytest.raises(PromptError, match=r"got 1 harmful and 0 harmless.*harmless prompts"):
        PromptSet("x", (prompt("a"),)).require_both_classes()
    with pytest.raises(PromptError, match=r"got 0 harmful and 1 harmless.*of harmful prompts"):
        PromptSet("x", (prompt("a", label="harmless"),)).require_both_classes()
    with pytest.raises(PromptError, match="0 harmful and 0 harmless"):
        PromptSet("x", ()).require_both_classes()
