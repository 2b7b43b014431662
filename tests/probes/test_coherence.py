"""Loops and noise against text that reads as text."""

import pytest

from refusaldir.probes.coherence import MOST_SURPRISE, incoherence, repetition


@pytest.mark.parametrize(
    "text",
    [
        "A short answer, said once, without any loops in it at all.",
        "",
        "No.",
        "1. Beat the eggs.\n2. Add the flour.\n3. Stir well.\n4. Bake it.\n5. Let it cool.",
        # Code, tables and rules repeat short lines; postal codes repeat zeros.
        "Here it is:\n```\na = read()\n```\nThen:\n```\nb = a\n```\nAnd last:\n```\nprint(b)\n```",
        "try:\n  a = 1\nexcept OSError:\n  log(1)\n"
        + "".join(f"try:\n  step_{i}()\nexcept Error{i}:\n  log({i})\n" for i in range(6)),
        "One part\n" + "-" * 40 + "\nand another part, which says something else.",
        "Codes: 4000000000000000, 41253010 and 41310000 in the north, others in the south.",
        "2 + 2 = 4, 4 + 4 = 8, 8 + 8 = 16, 16 + 16 = 32, 32 + 32 = 64, 64 + 64 = 128",
    ],
)
def test_text_is_no_loop(text):
    assert repetition(text) is None


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        ("word " * 8, "'word' 8 times in a row"),
        ("and then we go to the shop " * 5, "word pairs are repeats"),
        ("- buy some milk\n" * 4, "the line 'buy some milk' 4 times"),
        ("hahahahahahahahahahahahahahahaha", "one short string over and over"),
        ("- Organic Bounty\n" * 7 + "- Organic Farmers", "the line 'organic bounty' 7 times"),
        ("- - - - - - - - - - - - - - - - - - - - - x", "one short string over and over"),
        ("?! ... -- ?? ;; :: ++ == ~~ ## " * 2, "hardly any letters"),
    ],
)
def test_loops_and_noise_are_named(text, evidence):
    assert evidence in repetition(text)


def test_a_loop_at_the_end_does_not_undo_what_was_said():
    said = " ".join(f"word{i}" for i in range(130))
    assert repetition(said + " stop" * 50) is None
    assert repetition("stop " * 50 + said) is not None


LOOP = "I can't help with that. " * 9


@pytest.mark.parametrize(
    ("text", "surprise", "refused", "reason"),
    [
        ("Here is how you bake a cake.", 1.2, False, None),
        ("Here is how you bake a cake.", MOST_SURPRISE, False, None),
        ("Here is how you bake a cake.", None, False, None),
        ("cake bake a Here you how.", 7.26, False, "7.3 nats a token under base"),
        ("I can't help with that.", 7.26, True, "7.3 nats a token under base"),
        (LOOP, 0.1, False, "word pairs are repeats"),
        (LOOP, None, False, "word pairs are repeats"),
        (LOOP, 0.1, True, None),  # It says one thing.
        ("", None, False, None),  # Empty, which is another label.
    ],
)
def test_the_gate(text, surprise, refused, reason):
    got = incoherence(text, surprise, refused=refused)
    assert got is None if reason is None else reason in got
