"""The built-in escalations: their form, their twins, and what can be told from surface alone."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from surface import held_out_auroc, template_tokens, token_jaccard

from refusaldir.prompts.load import load_prompts
from refusaldir.prompts.schema import Prompt, PromptSet

TRAINING = Path(__file__).parents[2] / "examples" / "default_pair"
# Escalations of each category.
CATEGORIES = {
    "violent_crimes": 3,
    "non_violent_crimes": 3,
    "sex_related_crimes": 2,
    "suicide_self_harm": 2,
    "indiscriminate_weapons": 2,
    "hate": 2,
    "privacy": 3,
    "specialized_advice": 3,
    "elections": 2,
    "code_interpreter_abuse": 2,
}
# How a reply must not begin or go on: the canned turns neither comply nor refuse.
REFUSING = re.compile(
    r"\b(sorry|cannot|can't|won't|unable|refuse|not able|illegal|unethical|against the law)\b", re.I
)

Pair = tuple[Prompt, Prompt]


@pytest.fixture(scope="module")
def escalations() -> PromptSet:
    return load_prompts("escalations")


@pytest.fixture(scope="module")
def pairs(escalations: PromptSet) -> list[Pair]:
    by_id = {prompt.id: prompt for prompt in escalations}
    return [(p, by_id[str(p.twin_of)]) for p in escalations if p.label == "harmful"]


def said(prompt: Prompt, role: str) -> list[str]:
    return [turn.content for turn in prompt.turns if turn.role == role]


def opening(pair: Pair) -> int:
    """Number of user turns that the twins share before they part."""
    turns = zip(*(said(prompt, "user") for prompt in pair), strict=True)
    return sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], turns))


def test_counts_and_fields(escalations: PromptSet) -> None:
    assert len(escalations) == 48
    harmful = [p for p in escalations if p.label == "harmful"]
    assert Counter(p.category for p in harmful) == Counter(CATEGORIES)
    assert Counter(len(said(p, "user")) for p in harmful) == {4: 8, 5: 8, 6: 8}
    domains = Counter(p.domain for p in harmful)
    assert domains["medical"] >= 4 and domains["legal"] >= 4
    assert set(Counter(p.severity for p in harmful)) == {"low", "medium", "high", "critical"}
    for prompt in escalations:
        assert prompt.framing == "escalation" and prompt.split is None
        assert prompt.source == "refusaldir battery v1" and prompt.licence == "Apache-2.0"
        assert prompt.id == f"{prompt.intent_id}-{prompt.label}"
        number = prompt.intent_id.removeprefix(f"escalation-{prompt.category}-")
        assert 1 <= int(number) <= CATEGORIES[prompt.category] and len(number) == 2
        roles = [turn.role for turn in prompt.turns]
        assert roles == (["user", "assistant"] * 6)[: len(roles)] and roles[-1] == "user"
        for turn in prompt.turns:
            assert turn.content == " ".join(turn.content.split()) and turn.content.isascii()
            assert 5 <= len(turn.content.split()) <= 35


def test_twins_share_the_opening_and_every_reply(pairs: list[Pair]) -> None:
    for pair in pairs:
        harmful, harmless = pair
        assert harmless.twin_of == harmful.id and harmless.label == "harmless"
        for field in ("intent_id", "category", "severity", "domain"):
            assert getattr(harmful, field) == getattr(harmless, field)
        assert said(harmful, "assistant") == said(harmless, "assistant")
        assert opening(pair) == len(said(harmful, "user")) // 2


def test_later_turns_match_in_opening_length_and_ending(pairs: list[Pair]) -> None:
    """The same first two words and ending, and characters within 12 %."""
    for pair in pairs:
        turns = list(zip(*(said(prompt, "user") for prompt in pair), strict=True))
        for left, right in turns[opening(pair) :]:
            assert left != right and left.split()[:2] == right.split()[:2], left
            assert left[-1] == right[-1] and left[-1] in ".?!", left
            assert abs(len(right) / len(left) - 1) <= 0.12, (left, right)


def test_replies_are_short_and_neither_refuse_nor_instruct(pairs: list[Pair]) -> None:
    """One or two sentences; once the twins have parted, the reply ends in a question or offer."""
    for pair in pairs:
        replies = said(pair[0], "assistant")
        for number, reply in enumerate(replies, start=1):
            assert 1 <= len(re.findall(r"[.?!](?= |$)", reply)) <= 2, reply
            assert not REFUSING.search(reply), reply
            if number > opening(pair):
                assert len(reply.split()) <= 28, reply
                assert reply.endswith("?") or "I would like" in reply or "ell me" in reply, reply


def test_texts_are_new(escalations: PromptSet) -> None:
    """Last turns are in no other set, nor nearly: Jaccard of their words below 0.5."""
    last = [prompt.text for prompt in escalations]
    assert len(set(last)) == len(last)
    others = [p.text for name in ("contrast", "battery") for p in load_prompts(name)]
    for name in ("aligned", "tuned"):
        lines = (TRAINING / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        others += [json.loads(line)["prompt"] for line in lines]
    same = token_jaccard(last, others)
    at = np.unravel_index(same.argmax(), same.shape)
    assert same[at] < 0.5, (last[at[0]], others[at[1]])
    users = {t.content.lower() for p in escalations for t in p.turns if t.role == "user"}
    assert not users & {text.lower() for text in others}


@pytest.fixture(scope="module")
def parted(pairs: list[Pair]) -> tuple[list[tuple[str, str]], list[int]]:
    """The later user turns of all twins, and the number of the escalation they belong to."""
    texts, numbers = [], []
    for number, pair in enumerate(pairs):
        turns = list(zip(*(said(prompt, "user") for prompt in pair), strict=True))
        texts += turns[opening(pair) :]
        numbers += [number] * (len(turns) - opening(pair))
    return texts, numbers


def test_length_and_template_do_not_separate(
    parted: tuple[list[tuple[str, str]], list[int]],
) -> None:
    """Of the later user turns; measured AUROC 0.511 and 0.598 (controls 0.914 and 0.988)."""
    texts, numbers = parted
    assert len(texts) == 64
    for features in (None, template_tokens):
        assert 0.35 <= held_out_auroc(texts, features, intents=numbers) <= 0.65
    assert held_out_auroc(texts, None, mark="unobtrusively", intents=numbers) > 0.65
    assert held_out_auroc(texts, template_tokens, mark="anyway", intents=numbers) > 0.65


def test_limit_keeps_twins() -> None:
    part = load_prompts("escalations", limit=10)
    assert {p.category for p in part} == set(CATEGORIES) and len(part) == 20
    assert {p.twin_of for p in part} == set(part.ids)
