"""The page as text: parts, order, policy, hostile strings, size."""

import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from refusaldir.report.html import Material, Series, page
from refusaldir.report.html.figure import Table
from refusaldir.report.html.how import command
from refusaldir.report.html.page import digits, sections
from refusaldir.report.layers_document import SCHEMA_VERSION as LAYERS_VERSION


class Reader(HTMLParser):
    """Elements by name, their attributes, and the text outside scripts and style."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.words, self._inside = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._inside.pop()

    def handle_data(self, data):
        if not self._inside:
            self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())


@pytest.fixture(scope="module")
def read(full_page):
    return Reader(full_page)


def test_the_questions_come_in_their_order(read):
    keys = [attrs["id"] for attrs in read.all("section")]
    assert keys == ["drift", "layers", "behaviour", "cause", "sure", "how"]
    links = [attrs["href"][1:] for attrs in read.all("a") if attrs.get("href", "").startswith("#")]
    assert links == ["content", *keys]


def test_the_verdict_comes_first(read, full):
    text = read.text
    headline = full.diff["verdict"]["headline"]
    assert 0 < text.index(headline) < text.index("Did it drift?")
    for key in ("drift", "behaviour", "certainty", "limits"):
        for sentence in full.diff["verdict"][key]:
            assert " ".join(sentence.split()) in text


def test_every_figure_has_a_caption_a_table_and_its_values(read, full_page):
    figures = read.all("figure")
    assert len(figures) > 25
    assert len({attrs["id"] for attrs in figures}) == len(figures)
    assert len(read.all("figcaption")) == len(figures)
    tips = re.findall(
        r'<script type="application/json" class="tips">(.*?)</script>', full_page, re.S
    )
    assert len(tips) == len(figures)
    assert all(json.loads(text) for text in tips)


def test_ids_are_unique(read):
    ids = [attrs["id"] for _, attrs in read.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_hostile_strings_stay_text(full_page, read):
    scripts = read.all("script")
    assert all("src" not in attrs for attrs in scripts)
    running = [attrs for attrs in scripts if "type" not in attrs]
    assert len(running) == 1
    assert not read.all("img") and not read.all("iframe") and not read.all("object")
    assert not any(name.startswith("on") for _, attrs in read.elements for name in attrs)
    assert "<script>window" not in full_page and "<img src=x" not in full_page
    assert "\x1b" not in full_page and "\u202e" not in full_page.replace("\\u202e", "")


def test_the_check_for_hostile_strings_can_fail():
    """Negative control: what is not escaped is seen."""
    seen = Reader("<p><script>window.broken=1</script><img src=x onerror=1></p>")
    assert seen.all("img") and any("onerror" in attrs for _, attrs in seen.elements)


def test_the_policy_allows_this_script_and_style_alone(full_page, read):
    policy = next(a["content"] for a in read.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for name in ("script", "style"):
        content = re.search(rf"<{name}>(.*?)</{name}>", full_page, re.S).group(1)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert not any("style" in attrs for _, attrs in read.elements)


def test_nothing_is_fetched(read, full_page):
    for _, attrs in read.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            value = attrs.get(name, "")
            assert value.startswith(("#", "data:")) or not value
    style = re.search(r"<style>(.*?)</style>", full_page, re.S).group(1)
    assert "url(" not in style and "@import" not in style


def test_texts_of_flips_are_in_data_alone(full, read, full_page):
    flips = full.diff["behaviour"]["axes"]["refusal"]["flips"]
    assert flips
    assert "SECRET RESPONSE" not in read.text and "SECRET PROMPT" not in read.text
    texts = re.search(r'class="texts">(.*?)</script>', full_page, re.S).group(1)
    known = json.loads(texts)
    assert flips[0]["id"] in known
    assert any("SECRET RESPONSE" in part for parts in known.values() for part in parts)
    assert "Content notice" in read.text


def test_a_page_without_responses_says_so(full):
    text = Reader(page(Material(name="t", diff=full.diff))).text
    assert "there are no texts to show" in text
    assert "Content notice" not in text


def test_what_was_not_measured_is_said(bare):
    read = Reader(page(bare))
    assert "Behaviour was not measured" in read.text
    assert "refusaldir layers BASE TUNED" in read.text
    assert "No direction was selected" in read.text
    assert [a["id"] for a in read.all("section")] == [
        "drift", "layers", "behaviour", "cause", "sure", "how",
    ]  # fmt: skip


def test_layers_alone_make_a_page(layers_document):
    read = Reader(page(Material(name="t", layers=layers_document)))
    assert [a["id"] for a in read.all("section")] == ["layers", "how"]
    assert layers_document["verdict"]["headline"] in read.text
    assert f"refusaldir.layers {LAYERS_VERSION}" in read.text


def test_behaviour_alone_makes_a_page(full):
    document = {
        "schema": "refusaldir.behaviour",
        "schema_version": 1,
        "created": "now",
        "refusaldir_version": "0",
        "options": {"base": "a/", "tuned": "b/"},
        "verdict": {"headline": "H.", "behaviour": ["B."], "certainty": ["C."], "limits": ["L."]},
        **{arm: {"model": {"name": arm, "where": "http://x", "system": "default"}}
           for arm in ("base", "tuned")},
        "behaviour": full.diff["behaviour"],
    }  # fmt: skip
    read = Reader(page(Material(name="t", behaviour=document)))
    assert [a["id"] for a in read.all("section")] == ["behaviour", "sure", "how"]
    assert "refusaldir diff a/ b/" in read.text


def test_a_series_holds_every_comparison(bare, trajectory):
    import gzip

    first = Material(name="checkpoint-1", diff=copy.deepcopy(bare.diff))
    first.diff["verdict"]["headline"] = "The first one."
    html = page(
        Series(trajectory=trajectory({"checkpoint-1": 1, "checkpoint-2": 2}), stops=(first, bare))
    )
    read = Reader(html)
    assert "It went on." in read.text
    assert [a["value"] for a in read.all("option")] == ["0", "1"]
    packed = re.findall(r'data-panel="(\d+)">([^<]*)</script>', html)
    assert [number for number, _ in packed] == ["0"]
    inside = Reader(gzip.decompress(base64.b64decode(packed[0][1])).decode())
    assert first.diff["verdict"]["headline"] in inside.text
    assert bare.diff["verdict"]["headline"] in read.text


def test_a_long_series_keeps_the_last_comparisons(bare, trajectory):
    stops = [Material(name=f"c{i}", diff=bare.diff) for i in range(4)]
    series = Series(trajectory=trajectory({f"c{i}": i + 1 for i in range(4)}), stops=stops)
    packed = re.findall(r'data-panel="\d+">([^<]*)</script>', page(series))
    assert len(packed) == 3
    read = Reader(page(series, budget=2 * len(packed[0]) + 9))
    assert [a["value"] for a in read.all("option")] == ["0", "1", "2"]
    assert "1 earlier left out" in read.text
    assert "c1 c2 c3" in read.text


def test_a_series_without_comparisons_has_its_trajectory(trajectory):
    document = trajectory({"a": None, "b": None})
    read = Reader(page(Series(trajectory=document, stops=())))
    assert "It went on." in read.text and "base → 2 checkpoints" in read.text
    assert not any(a["id"] == "fig-over-scores" for a in read.all("figure"))
    # What a training monitor measures besides.
    change = {"change": document["checkpoints"][0]["angle"]}
    document["checkpoints"][1]["score"] = {"harmful": change, "harmless": change}
    read = Reader(page(Series(trajectory=document, stops=())))
    assert any(a["id"] == "fig-over-scores" for a in read.all("figure"))
    assert not read.all("option") and [a["id"] for a in read.all("section")] == ["trajectory"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"base": "a b", "tuned": ["x", "y"], "behaviour": True, "select": False, "seed": 0},
            "refusaldir diff 'a b' x y --behaviour on --select off --seed 0",
        ),
        (
            {"base": "a", "tuned": "b", "refusal_tokens": ["I", "Sorry"], "position": None,
             "thinking": False, "follow_nearest": True, "allow_dtype_mismatch": False},
            "refusaldir diff a b --refusal-token I --refusal-token Sorry --no-thinking "
            "--follow-nearest",
        ),
        (
            {"base": "a", "tuned": "b", "prompts": "contrast", "positions": "-2,-1",
             "battery": "contrast", "temperatures": [0.0, 0.7], "seeds": [0, 1], "samples": 5,
             "escalations": ["frozen", "live"], "judges": ["phrases", "first-token"]},
            "refusaldir diff a b --prompts contrast --positions=-2,-1 --temperature 0,0.7 "
            "--seeds 0,1 --samples 5 --escalations both --judge phrases --judge first-token",
        ),
        (
            {"base": "a", "tuned": "b", "battery": "battery", "escalations": ["live"]},
            "refusaldir diff a b --battery battery --escalations live",
        ),
        ({}, "refusaldir diff BASE TUNED"),
    ],
)  # fmt: skip
def test_the_command_is_spelt_out(options, expected):
    assert command(options, "diff") == expected


def test_a_column_has_one_number_of_decimals():
    table = Table(columns=["a", "b", "c"], rows=[("x", 0.12345, 99.9), ("y", None, 1.0)])
    assert digits(table) == [3, 3, 1]
    ends = Table(columns=["b", "b, lower", "upper "], rows=[(6.0, 0.1, 99.9)])
    assert digits(ends) == [2, 2, 2]


def test_a_large_page_stays_under_eight_megabytes(make_document):
    document = make_document(80, 44)
    html = page(Material(name="t", diff=document))
    assert len(html.encode()) < 2_000_000
    assert len(sections(Material(name="t", diff=document))) == 6
