"""Refusal tokens: a planted table, what is not enough, and what the user names."""

import pytest

from refusaldir.errors import ProbeError
from refusaldir.probes.refusal_tokens import (
    RefusalTokens,
    find_refusal_tokens,
    given_refusal_tokens,
)

EYE, SORRY, SURE, THE = 0, 1, 2, 3


class Words:
    """A tokenizer of four words."""

    words = ("I", "Sorry", "Sure", "The")

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids)

    def encode(self, text, add_special_tokens):
        assert add_special_tokens is False
        return [self.words.index(word) for word in text.split()]


def find(*groups):
    """Each group is (count, first token, label, harmful)."""
    rows = [group[1:] for group in groups for _ in range(group[0])]
    return find_refusal_tokens(
        Words(), [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]
    )


def test_planted_tokens_are_found():
    found = find(
        (20, EYE, "full_refusal", True),
        (9, SORRY, "partial_refusal", True),
        (1, THE, "full_refusal", True),  # once: chance
        (5, SURE, "compliance", True),
        (38, SURE, "compliance", False),
        (2, EYE, "compliance", False),
        (3, SORRY, "full_refusal", False),  # over-refusal: not an answer
    )
    assert found.ids == (EYE, SORRY) and found.texts == ("I", "Sorry") and found
    assert found.source == "found" and found.note == ""
    assert (found.n_refusals, found.n_answers) == (30, 40)
    assert found.coverage == pytest.approx(29 / 30)
    assert found.leakage == pytest.approx(2 / 40)
    assert [(c.text, c.refusals, c.answers, c.kept) for c in found.counts] == [
        ("I", 20, 2, True),
        ("Sorry", 9, 0, True),
        ("The", 1, 0, False),
    ]
    assert RefusalTokens.from_dict(found.to_dict()) == found


def test_swapped_sides_give_other_tokens():
    """Negative control."""
    found = find((20, SURE, "full_refusal", True), (20, EYE, "compliance", False))
    assert found.ids == (SURE,)


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ([], "0 refusals"),
        ([(40, SURE, "compliance", True), (40, SURE, "compliance", False)], "0 refusals"),
        ([(7, EYE, "full_refusal", True), (40, SURE, "compliance", False)], "7 refusals"),
        ([(40, EYE, "full_refusal", True)], "0 answers"),
        ([(40, EYE, "full_refusal", True), (40, EYE, "compliance", False)], "no first token"),
        (
            [
                (30, EYE, "full_refusal", True),
                (10, SORRY, "full_refusal", True),
                (40, EYE, "compliance", False),
            ],
            "only 25%",
        ),
        ([(40, None, "empty", True), (40, None, "empty", False)], "0 refusals"),
    ],
)
def test_none_found_is_a_result(groups, reason):
    found = find(*groups)
    assert not found and found.ids == () and reason in found.note
    assert not any(count.kept for count in found.counts)


def test_lengths_must_agree():
    with pytest.raises(ProbeError, match="each response needs"):
        find_refusal_tokens(Words(), [1], [], [])


def test_named_by_the_user():
    given = given_refusal_tokens(Words(), ["Sorry", 0, "I", "Sure The"])
    assert given.ids == (SORRY, EYE, SURE) and given.source == "given"
    assert "'Sure The' is several tokens" in given.note
    assert RefusalTokens.from_dict(given.to_dict()) == given


@pytest.mark.parametrize("tokens", [[], [""]])
def test_nothing_named(tokens):
    with pytest.raises(ProbeError):
        given_refusal_tokens(Words(), tokens)
