"""Table and figure of the link: they show the document's figures, whatever is missing from it."""

import copy
import io
import re

import numpy as np
import pytest
from drawn import assert_legible, texts
from linked import runs, with_rows
from rich.cells import cell_len
from rich.console import Console, Group

from refusaldir.probes.link.categories import Measure
from refusaldir.probes.link.runs import link_runs
from refusaldir.records import Estimate
from refusaldir.report.document import plain
from refusaldir.report.figures import write_figures
from refusaldir.report.link_figure import has_link, link_figure
from refusaldir.report.link_rows import part_rows
from refusaldir.report.link_table import link_tables
from refusaldir.report.text import number


def link_of(change=lambda i, row: row, **settings):
    base, tuned = runs(**{"turns": 3, "scripts": 8, "each": 6, **settings})
    names = {row.category for row in base.single.rows}
    figures = {name: Estimate(value=float(i % 7), n=6) for i, name in enumerate(sorted(names))}
    rival = Measure(name="1 − CKA", said="one minus CKA", rival=True, axes={"refusal": figures})
    return plain(link_runs(base, with_rows(tuned, change), measures=[rival]).to_dict())


def with_link(document, link):
    """A document whose behaviour is the link alone."""
    axes = {"refusal": None, "over_refusal": None}
    return {**document, "behaviour": {"axes": axes, "link": link}}


@pytest.fixture(scope="module")
def document(make_document):
    return make_document(3, 0)


@pytest.fixture(scope="module")
def link():
    return link_of()


@pytest.fixture(scope="module")
def linked(document, link):
    return with_link(document, link)


def draw(document, width=80):
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(Group(*link_tables(document)))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 130])
def test_no_line_is_too_wide_and_no_number_is_cut(document, width):
    wide = with_link(document, link_of(categories=12))
    text = draw(wide, width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "…" not in text


def test_the_table_holds_the_documents_parts(linked, link):
    text = draw(linked, 130)
    rows = iter([line.split() for line in text.splitlines()])  # in the order of the document
    for name in ("single", "frozen", "live"):
        for label, parts, _ in part_rows(name, link[name]):
            row = next(r for r in rows if r[: len(label.split())] == label.split())
            for key in ("observed", "encoding", "readout", "residual"):
                assert number(parts[key]["value"], 1, scale=100.0, signed=True) in row
    assert "1 − CKA°" in text and "a rival" in text and "Weight distance is one number" in text


def test_categories_come_by_their_fall_and_turns_in_order(link):
    labels = [label for label, _, bold in part_rows("single", link["single"]) if not bold]
    falls = [
        g["observed"]["value"] for _, g, bold in part_rows("single", link["single"]) if not bold
    ]
    assert falls == sorted(falls) and len(labels) == 10
    turns = [label for label, _, bold in part_rows("live", link["live"]) if not bold]
    assert turns == ["turn 1", "turn 2"]


def test_the_figure_draws_the_documents_curves_and_parts(linked, link):
    figure = link_figure(linked)
    curves, histogram, split = figure.axes
    for line, model in zip(curves.get_lines(), ("base", "tuned"), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), link["single"][model]["probability"])
    bands = [c.get_paths()[0].vertices for c in curves.collections]
    assert bands[0][:, 1].min() == pytest.approx(min(link["single"]["base"]["lower"]))
    top = max(
        max(side) for m in ("base", "tuned") for side in link["single"]["histogram"][m].values()
    )
    assert histogram.get_ylim() == pytest.approx((-1.25 * top, 1.25 * top))
    dots = [line for line in split.get_lines() if line.get_marker() == "o"]
    rows = [r for name in ("single", "frozen", "live") for r in part_rows(name, link[name])]
    assert [dot.get_xdata()[0] for dot in dots] == pytest.approx(
        [100 * parts["encoding"]["value"] for _, parts, _ in rows]
    )
    labels = [t.get_text() for t in split.get_yticklabels()]
    assert labels == [label for label, _, _ in rows]
    assert len({t.get_text() for t in texts(figure)}) > 10


@pytest.mark.parametrize(
    "settings", [{}, {"categories": 44, "turns": 0, "each": 2}, {"categories": 1}]
)
def test_text_is_legible(make_document, settings):
    document = make_document(3, 0, names=("a" * 40, "b" * 60))
    assert_legible(link_figure(with_link(document, link_of(**settings))))


def test_what_is_missing_is_said_and_the_rest_drawn(document):
    mute = link_of(lambda i, row: row.__class__(**{**vars(row), "label": "compliance"}), turns=0)
    said = with_link(document, mute)
    assert_legible(link_figure(said))
    assert any("no curve" in t.get_text() for t in link_figure(said).axes[0].texts)
    text = draw(said)
    assert "–" in text and "no prompt was refused" in text.replace("\n", " ")


def test_no_link_is_no_table_and_no_figure(document, link):
    for missing in (None, {**link, "single": None, "frozen": None, "live": None}):
        bare = with_link(document, missing)
        assert not has_link(bare) and link_tables(bare) == []
        with pytest.raises(ValueError, match="no link to draw"):
            link_figure(bare)
    assert not has_link({**document, "behaviour": None})


def test_escalations_alone_are_drawn(document, link):
    alone = with_link(document, {**link, "single": None})
    assert "canned replies" in link_figure(alone).texts[1].get_text()
    assert "Drift against" in draw(alone)


def test_files_hold_it(linked, tmp_path):
    names = [path.name for path in write_figures(linked, tmp_path)]
    assert names[-2:] == ["link.png", "link.svg"]
    svg = (tmp_path / "link.svg").read_text("utf-8")
    assert "is encoding" in svg and "SECRET" not in svg


def test_names_of_others_cannot_break_a_table(linked):
    bad = copy.deepcopy(linked)
    for parts in bad["behaviour"]["link"]["single"]["groups"]:
        parts["group"] = f"x\x1b[31m\n{parts['group']}"
    text = draw(bad)
    assert "\x1b" not in text and re.search(r"x\\x1b\[31m\\n", text)
