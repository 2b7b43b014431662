"""Loops and noise against text that reads as text."""

import pytest

from refusaldir.probes.coherence import repetition


@pytest.mark.parametrize(
    "text",
    [
        "A short answer, said once, without any loops in it at all.",
        "",
        "No.",
        "1. Beat the eggs.\n2. Add the flour.\n3. Stir well.\n4. Bake it.\n5. Let it cool.",
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
        ("?! ... -- ?? ;; :: ++ == ~~ ## " * 2, "hardly any letters"),
    ],
)
def test_loops_and_noise_are_named(text, evidence):
    assert evidence in repetition(text)


def test_a_loop_at_the_end_does_not_undo_what_was_said():
    said = " ".join(f"word{i}" for i in range(130))
    assert repetition(said + " stop" * 50) is None
    assert repetition("stop " * 50 + said) is not None
