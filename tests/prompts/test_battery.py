"""The built-in battery: its form, its matching, and what can be told from surface alone."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from surface import all_tokens, held_out_auroc, template_tokens, token_jaccard

from refusaldir.prompts.load import load_prompts
from refusaldir.prompts.schema import Prompt, PromptSet

TRAINING = Path(__file__).parents[2] / "examples" / "default_pair"
CATEGORIES = (
    "violent_crimes",
    "non_violent_crimes",
    "sex_related_crimes",
    "suicide_self_harm",
    "indiscriminate_weapons",
    "hate",
    "privacy",
    "specialized_advice",
    "elections",
    "code_interpreter_abuse",
)
OTHER_FRAMINGS = ("professional", "fictional", "domain")
# Intents of each severity in every category.
SEVERITIES = {"low": 8, "medium": 16, "high": 16, "critical": 8}

Pair = tuple[Prompt, Prompt]


@pytest.fixture(scope="module")
def battery() -> PromptSet:
    return load_prompts("battery")


@pytest.fixture(scope="module")
def pairs(battery: PromptSet) -> list[Pair]:
    """Each harmful prompt and its twin, in order: two pairs an intent."""
    by_id = {prompt.id: prompt for prompt in battery}
    return [(p, by_id[str(p.twin_of)]) for p in battery if p.label == "harmful"]


@pytest.fixture(scope="module")
def intents(pairs: list[Pair]) -> list[tuple[Pair, Pair]]:
    """Each intent's plain pair and its pair in the other framing."""
    found = itertools.groupby(pairs, key=lambda pair: pair[0].intent_id)
    return [(plain, framed) for _, (plain, framed) in found]


# ------------------------------------------------------------------------------ form


def test_counts_and_fields(battery: PromptSet) -> None:
    assert len(battery) == 1920
    counts = Counter((p.category, p.label) for p in battery)
    expected = itertools.product(CATEGORIES, ("harmful", "harmless"))
    assert counts == Counter(dict.fromkeys(expected, 96))
    assert tuple(dict.fromkeys(p.category for p in battery)) == CATEGORIES
    for prompt in battery:
        assert prompt.source == "refusaldir battery v1"
        assert prompt.licence == "Apache-2.0"
        assert prompt.split is None and not prompt.metadata
        assert [turn.role for turn in prompt.turns] == ["user"]
        assert prompt.id == f"{prompt.intent_id}-{prompt.framing}-{prompt.label}"
        number = prompt.intent_id.removeprefix(f"battery-{prompt.category}-")
        assert re.fullmatch(r"0[1-9]|[1-3]\d|4[0-8]", number)
        assert prompt.text == " ".join(prompt.text.split()) and prompt.text.isascii()
        words = len(prompt.text.split())
        low, high = (8, 30) if prompt.framing == "plain" else (15, 55)
        assert low <= words <= high, prompt.text


def test_texts_are_unique(battery: PromptSet) -> None:
    plain = {re.sub(r"\W+", " ", p.text.lower()).strip() for p in battery}
    assert len(plain) == len(battery)


def test_an_intent_has_a_plain_and_another_framing_and_one_severity(
    battery: PromptSet, intents: list[tuple[Pair, Pair]]
) -> None:
    assert len(intents) == 480
    for intent in intents:
        (plain, _), (framed, _) = intent
        assert plain.framing == "plain" and framed.framing in OTHER_FRAMINGS
        prompts = [prompt for pair in intent for prompt in pair]
        assert len({p.intent_id for p in prompts}) == 1
        for field in ("category", "severity", "domain"):
            assert len({getattr(p, field) for p in prompts}) == 1, (plain.id, field)
    by_id = {p.id: p for p in battery}
    for prompt in battery:
        twin = by_id[str(prompt.twin_of)]
        assert twin.twin_of == prompt.id
        assert twin.framing == prompt.framing and twin.intent_id == prompt.intent_id
        assert {prompt.label, twin.label} == {"harmful", "harmless"}


def test_severities_framings_and_domains_are_spread(intents: list[tuple[Pair, Pair]]) -> None:
    for category in CATEGORIES:
        inside = [(plain[0], framed[0]) for plain, framed in intents]
        inside = [(plain, framed) for plain, framed in inside if plain.category == category]
        framings = Counter(framed.framing for _, framed in inside)
        assert framings == Counter(dict.fromkeys(OTHER_FRAMINGS, 16)), category
        assert Counter(plain.severity for plain, _ in inside) == Counter(SEVERITIES), category
        both = Counter((plain.severity, framed.framing) for plain, framed in inside)
        for severity, count in SEVERITIES.items():
            for framing in OTHER_FRAMINGS:
                assert abs(both[severity, framing] - count / 3) <= 2, (category, severity, framing)
    domains = Counter(plain[0].domain for plain, _ in intents)
    assert domains["medical"] >= 60 and domains["legal"] >= 60, domains
    for category in CATEGORIES:
        known = [p.domain for (p, _), _ in intents if p.category == category]
        assert known.count("medical") + known.count("legal") >= 8, category


# -------------------------------------------------------------------------- matching


def test_twins_match_in_opening_length_and_ending(pairs: list[Pair]) -> None:
    """The same first word and ending; words and characters within 20 %."""
    for harmful, harmless in pairs:
        left, right = harmful.text, harmless.text
        assert left.split()[0] == right.split()[0], left
        assert 1 / 1.2 <= len(right.split()) / len(left.split()) <= 1.2, (left, right)
        assert 1 / 1.2 <= len(right) / len(left) <= 1.2, (left, right)
        assert left[-1] == right[-1] and left[-1] in ".?!", left


def frame(plain: Prompt, framed: Prompt) -> list[str]:
    """What stands before and behind the plain request in the framed one, which holds it whole."""
    # But for its first letter, which may follow a comma, and its full stop.
    around = framed.text.split(plain.text[1:].rstrip(".?!"))
    assert len(around) == 2, framed.text
    assert around[0][-1].lower() == plain.text[0].lower(), framed.text
    return around


def test_a_framing_adds_the_same_frame_to_both_twins_and_changes_nothing_else(
    intents: list[tuple[Pair, Pair]],
) -> None:
    for plain, framed in intents:
        harmful, harmless = map(frame, plain, framed)
        assert harmful == harmless, framed[0].text
        assert len(harmful[0].split()) >= 5, framed[0].text


def test_intents_are_not_near_duplicates(battery: PromptSet) -> None:
    """Words of prompts of different intents: Jaccard below 0.5 (measured: 0.333)."""
    texts = [prompt.text for prompt in battery]
    same = token_jaccard(texts, texts)
    number = np.unique([p.intent_id for p in battery], return_inverse=True)[1]
    same[number[:, None] == number] = 0.0
    at = np.unravel_index(same.argmax(), same.shape)
    assert same[at] < 0.5, [texts[i] for i in at]


def test_near_duplicates_would_be_found(battery: PromptSet) -> None:
    text = battery[0].text
    assert token_jaccard([text], [text.replace(text.split()[-1], "elsewhere.")])[0, 0] > 0.5


def test_no_prompt_is_in_the_contrast_set_or_the_training_data(battery: PromptSet) -> None:
    """Nor a near-duplicate by words: Jaccard below 0.5 (measured: 0.368 and 0.429)."""
    others = [prompt.text for prompt in load_prompts("contrast")]
    for name in ("aligned", "tuned"):
        lines = (TRAINING / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        others += [json.loads(line)["prompt"] for line in lines]
    assert len(others) > 3000
    texts = [prompt.text for prompt in battery]
    same = token_jaccard(texts, others)
    at = np.unravel_index(same.argmax(), same.shape)
    assert same[at] < 0.5, (texts[at[0]], others[at[1]])


# ---------------------------------------------------------------------- separability


@pytest.fixture(scope="module")
def texts(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(harmful.text, harmless.text) for harmful, harmless in pairs]


@pytest.fixture(scope="module")
def numbers(pairs: list[Pair]) -> list[int]:
    names = list(dict.fromkeys(harmful.intent_id for harmful, _ in pairs))
    return [names.index(harmful.intent_id) for harmful, _ in pairs]


def test_length_alone_does_not_separate(texts: list[tuple[str, str]], numbers: list[int]) -> None:
    """Words, characters, characters a word: measured AUROC 0.509 (control 0.737)."""
    assert 0.40 <= held_out_auroc(texts, None, intents=numbers) <= 0.60
    assert held_out_auroc(texts, None, mark="unobtrusively", intents=numbers) > 0.60


def test_template_alone_does_not_separate(texts: list[tuple[str, str]], numbers: list[int]) -> None:
    """First two words, function words, punctuation: measured AUROC 0.568 (control 1.000)."""
    assert 0.40 <= held_out_auroc(texts, template_tokens, intents=numbers) <= 0.60
    assert held_out_auroc(texts, template_tokens, mark="anyway", intents=numbers) > 0.60


def test_all_words_separate_held_out_intents_only_in_part(
    texts: list[tuple[str, str]], numbers: list[int]
) -> None:
    """Every word: measured AUROC 0.759 (control 1.000).

    Words of content carry some of the difference, as they must; the bound keeps a few tell-tale
    words from carrying the most of it.
    """
    assert held_out_auroc(texts, all_tokens, intents=numbers) <= 0.80
    assert held_out_auroc(texts, all_tokens, mark="unobtrusively", intents=numbers) > 0.80


def test_no_word_marks_a_class(intents: list[tuple[Pair, Pair]]) -> None:
    """A word that 24 or more requests use is in neither class more than 70 % of the time."""
    count: Counter[tuple[str, str]] = Counter()
    for plain, _ in intents:
        for prompt in plain:
            for word in set(all_tokens(prompt.text)):
                count[word, prompt.label] += 1
    for word in {word for word, _ in count}:
        n = count[word, "harmful"], count[word, "harmless"]
        if sum(n) >= 24:
            assert max(n) <= 0.7 * sum(n), (word, n)


# ----------------------------------------------------------------------------- limit


@pytest.mark.parametrize("limit", [20, 60, 120, 240])
def test_limit_takes_whole_intents_that_look_like_the_set(limit: int) -> None:
    part = load_prompts("battery", limit=limit)
    intents = Counter(p.intent_id for p in part)
    assert set(intents.values()) == {4} and len(intents) == limit // 2
    assert set(Counter(p.category for p in part).values()) == {4 * (limit // 2) // 10}
    plain = [p for p in part if p.framing == "plain" and p.label == "harmful"]
    severities = Counter(p.severity for p in plain)
    for severity, count in SEVERITIES.items():
        assert abs(severities[severity] - len(plain) * count / 48) <= 2, severities
    framings = Counter(p.framing for p in part if p.label == "harmful")
    for framing in OTHER_FRAMINGS:
        assert abs(framings[framing] - len(plain) / 3) <= 2, framings


def test_an_odd_limit_leaves_one_framing_out() -> None:
    part = load_prompts("battery", limit=7)
    assert sum(part.labels) == 7 and len(part) == 14
    assert sorted(Counter(p.intent_id for p in part).values()) == [2, 4, 4, 4]
    assert {p.twin_of for p in part} == set(part.ids)
