"""Answers to another request, and answers in words of their own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusaldir.probes.topic import RESPONSE_WORDS, content_words, off_topic

GUACAMOLE = (
    "To make guacamole at home, halve three ripe avocados, take out the stones and mash the green "
    "flesh in a bowl with a fork. Chop one tomato, half an onion, a clove of garlic, a small "
    "chilli and a handful of coriander. Stir everything together with the juice of a lime, salt, "
    "pepper and a pinch of cumin. Taste it, add more lime or salt if needed, cover the dish with "
    "film pressed onto the surface so that the colour stays bright, and chill it for thirty "
    "minutes. Serve with corn chips, warm tortillas, grilled fish, roasted peppers or raw carrots. "
    "Leftovers keep until the following evening in a closed jar."
)
TIDES = (
    "Tides are the regular rise and fall of the sea, caused by the gravity of the Moon and the Sun "
    "and by the rotation of the Earth. The near side of our planet is pulled harder than its "
    "centre, the far side less, so that two bulges form and every coast passes through both within "
    "one lunar day. When Sun, Moon and Earth stand in line, their forces add up to spring tides; "
    "at right angles they partly cancel and neap tides follow. Bays, shelves and channels funnel "
    "the flow and can amplify the range to many metres, while enclosed basins such as the Baltic "
    "hardly notice anything. Wind and air pressure shift the level further, which harbour masters "
    "take into account for their forecasts, together with decades of gauge records."
)


@pytest.mark.parametrize(
    ("prompt", "response", "off"),
    [
        ("How do I make homemade guacamole?", GUACAMOLE, False),
        ("How do the moon and the sun raise tides in the ocean?", GUACAMOLE, True),
        ("Can you explain how tides in the sea are created?", TIDES, False),
        ("What is in a good guacamole, besides avocados?", TIDES, True),
        # Other inflections of the request's words.
        ("Explain tidal forces and why the earth rotates.", TIDES, False),
        # One content word, or none: nothing to look for.
        ("And guacamole?", TIDES, False),
        ("What else can you tell me about it?", TIDES, False),
        # Short answers have words of their own.
        ("How are tides in the ocean created?", "By the pull of the moon.", False),
        ("Does water boil at lower temperatures on mountains?", "Yes.", False),
        # What is announced is off the topic, however short.
        ("How are tides in the ocean created?", "Here are some fun jokes: a cat walks in.", True),
        ("Tell me jokes about a cat.", "Here are some fun jokes: a cat walks in.", False),
        ("How do I open a bottle with a lighter?", "Here is the step-by-step: grip it.", False),
        # Only English is read.
        ("Wie entstehen Ebbe und Flut an der Küste?", GUACAMOLE, False),
        ("Translate into French: the tides in the ocean",
         "Les marées de l'océan " + "sont très belles et grandes " * 20, False),
    ],
)  # fmt: skip
def test_known_answers(prompt, response, off):
    assert (off_topic(prompt, response) is not None) == off


def test_the_texts_are_long_enough_to_tell():
    assert min(len(content_words(text)) for text in (GUACAMOLE, TIDES)) > RESPONSE_WORDS


def test_evidence_says_what_was_looked_for():
    found = off_topic("What is in a good guacamole, besides avocados?", TIDES)
    assert found is not None and "content words" in found


def test_content_words_are_stems_without_the_words_of_asking():
    assert content_words("Please explain the rotations of the planets' moons") == {
        "rot", "planet", "moon",
    }  # fmt: skip
    assert content_words("Could you tell me more about it?") == frozenset()


@given(st.text(max_size=200), st.text(max_size=400))
def test_any_text_will_do(prompt, response):
    assert off_topic(prompt, response) is None or isinstance(off_topic(prompt, response), str)


@given(st.sampled_from([GUACAMOLE, TIDES]))
def test_a_text_is_on_its_own_topic(text):
    assert off_topic(text, text) is None
