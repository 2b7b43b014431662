"""The built-in contrast set: its form, its matching, and what can be told from surface alone."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from surface import all_tokens, held_out_auroc, template_tokens

PATH = Path(__file__).parents[2] / "refusaldir" / "prompts" / "data" / "contrast.jsonl"
CATEGORIES = (
    "violent_crimes",
    "non_violent_crimes",
    "sex_related_crimes",
    "suicide_self_harm",
    "indiscriminate_weapons",
    "intellectual_property",
    "defamation",
    "hate",
    "privacy",
    "specialized_advice",
    "elections",
    "code_interpreter_abuse",
)
FIELDS = (
    "id",
    "intent_id",
    "label",
    "category",
    "severity",
    "framing",
    "domain",
    "turns",
    "twin_of",
    "source",
    "licence",
    "split",
)
SPLIT_SIZES = {"train": 12, "validation": 4, "test": 8}
# Of the sorted "intent_id split" lines: the assignment is part of the set's version.
SPLIT_DIGEST = "30b6d8662868f052e9dbaec1b733676e878ff03e21ff27c2d10e4e65a434371f"

Record = dict[str, Any]


def text(record: Record) -> str:
    return record["turns"][0]["content"]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    lines = PATH.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def pairs(records: list[Record]) -> list[tuple[Record, Record]]:
    """Each intent's harmful and harmless prompt."""
    by_intent: dict[object, dict[object, Record]] = {}
    for record in records:
        by_intent.setdefault(record["intent_id"], {})[record["label"]] = record
    return [(pair["harmful"], pair["harmless"]) for pair in by_intent.values()]


# ------------------------------------------------------------------------------ form


def test_counts_and_fields(records: list[Record]) -> None:
    assert len(records) == 576
    counts = Counter((r["category"], r["label"]) for r in records)
    expected = itertools.product(CATEGORIES, ("harmful", "harmless"))
    assert counts == Counter(dict.fromkeys(expected, 24))
    for record in records:
        assert tuple(record) == FIELDS
        assert record["severity"] in {"low", "medium", "high", "critical"}
        assert record["framing"] in {"plain", "professional", "fictional", "domain"}
        assert isinstance(record["domain"], str) and record["domain"]
        assert record["source"] == "refusaldir contrast v1"
        assert record["licence"] == "Apache-2.0"
        assert [turn["role"] for turn in record["turns"]] == ["user"]
        assert record["id"] == f"{record['intent_id']}-{record['label']}"
        number = record["intent_id"].removeprefix(f"contrast-{record['category']}-")
        assert re.fullmatch(r"0[1-9]|1\d|2[0-4]", number)
        assert text(record) == " ".join(text(record).split())
        assert 6 <= len(text(record).split()) <= 35


def test_ids_and_texts_are_unique(records: list[Record]) -> None:
    assert len({r["id"] for r in records}) == len(records)
    assert len({re.sub(r"\W+", " ", text(r).lower()).strip() for r in records}) == len(records)


def test_twins_are_symmetric_and_share_the_intent(records: list[Record]) -> None:
    by_id = {r["id"]: r for r in records}
    for record in records:
        twin = by_id[record["twin_of"]]
        assert twin["twin_of"] == record["id"]
        assert {record["label"], twin["label"]} == {"harmful", "harmless"}
        for field in ("intent_id", "category", "severity", "framing", "domain", "split"):
            assert record[field] == twin[field], (record["id"], field)


def test_splits_are_sized_by_category_and_fixed(pairs: list[tuple[Record, Record]]) -> None:
    counts = Counter((harmful["category"], harmful["split"]) for harmful, _ in pairs)
    assert counts == Counter(
        {(c, s): n for c in CATEGORIES for s, n in SPLIT_SIZES.items()},
    )
    lines = sorted(f"{harmful['intent_id']} {harmful['split']}" for harmful, _ in pairs)
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == SPLIT_DIGEST


def test_severities_and_framings_are_spread(pairs: list[tuple[Record, Record]]) -> None:
    total = Counter(harmful["severity"] for harmful, _ in pairs)
    assert set(total) == {"low", "medium", "high", "critical"}
    assert min(total.values()) >= 24
    for split, size in SPLIT_SIZES.items():
        inside = [harmful for harmful, _ in pairs if harmful["split"] == split]
        for severity, count in Counter(h["severity"] for h in inside).items():
            assert abs(count - total[severity] * size / 24) <= 4, (split, severity)
        assert {h["framing"] for h in inside} == {"plain", "professional", "fictional", "domain"}
        assert {h["severity"] for h in inside} == set(total)
    for category in CATEGORIES:
        framings = Counter(h["framing"] for h, _ in pairs if h["category"] == category)
        assert framings["plain"] == 20, category


# -------------------------------------------------------------------------- matching


def test_twins_match_in_opening_length_and_ending(pairs: list[tuple[Record, Record]]) -> None:
    """The same first two words and ending, as many words, at most 12 characters apart."""
    for harmful, harmless in pairs:
        left, right = text(harmful), text(harmless)
        assert left.split()[:2] == right.split()[:2], left
        assert len(left.split()) == len(right.split()), left
        assert abs(len(left) - len(right)) <= 12, left
        assert left != right
        ends = [t[-1] if t[-1] in ".?!" else "" for t in (left, right)]
        assert ends[0] == ends[1], left
        shared = Counter(left.lower().split()) & Counter(right.lower().split())
        assert sum(shared.values()) >= 0.4 * len(left.split()), left


def test_intents_are_not_near_duplicates(records: list[Record]) -> None:
    """Word trigrams of prompts of different intents: Jaccard below 0.25 (measured: 0.214)."""
    grams = []
    for record in records:
        words = re.findall(r"[\w'-]+", text(record).lower())
        grams.append(set(zip(words, words[1:], words[2:], strict=False)))
    for (i, left), (j, right) in itertools.combinations(enumerate(grams), 2):
        if records[i]["intent_id"] != records[j]["intent_id"] and left & right:
            assert len(left & right) < 0.25 * len(left | right), (
                text(records[i]),
                text(records[j]),
            )


# ---------------------------------------------------------------------- separability


@pytest.fixture(scope="module")
def texts(pairs: list[tuple[Record, Record]]) -> list[tuple[str, str]]:
    return [(text(harmful), text(harmless)) for harmful, harmless in pairs]


def test_length_alone_does_not_separate(texts: list[tuple[str, str]]) -> None:
    """Words, characters, characters a word: measured AUROC 0.505 (control 0.797)."""
    assert 0.40 <= held_out_auroc(texts, None) <= 0.60
    assert held_out_auroc(texts, None, mark="unobtrusively") > 0.60


def test_template_alone_does_not_separate(texts: list[tuple[str, str]]) -> None:
    """First two words, function words, punctuation: measured AUROC 0.537 (control 0.997)."""
    assert 0.40 <= held_out_auroc(texts, template_tokens) <= 0.60
    assert held_out_auroc(texts, template_tokens, mark="anyway") > 0.60


def test_all_words_separate_held_out_intents_only_in_part(
    texts: list[tuple[str, str]],
) -> None:
    """Every word: measured AUROC 0.684 (control 1.000).

    Words of content carry some of the difference, as they must; the bound keeps a few tell-tale
    words from carrying the most of it.
    """
    assert held_out_auroc(texts, all_tokens) <= 0.75
    assert held_out_auroc(texts, all_tokens, mark="unobtrusively") > 0.75


def test_no_word_marks_a_class(pairs: list[tuple[Record, Record]]) -> None:
    """A word that 12 or more prompts use is in neither class more than two thirds of the time."""
    count: Counter[tuple[str, str]] = Counter()
    for pair in pairs:
        for record in pair:
            for word in set(all_tokens(text(record))):
                count[word, str(record["label"])] += 1
    for word in {word for word, _ in count}:
        n = count[word, "harmful"], count[word, "harmless"]
        if sum(n) >= 12:
            assert max(n) <= 2 / 3 * sum(n), (word, n)
