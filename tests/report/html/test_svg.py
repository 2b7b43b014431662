"""Elements, paths and scales."""

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusaldir.report.html.frame import place_ticks
from refusaldir.report.html.scale import Scale, labels, ticks
from refusaldir.report.html.svg import clip, path, tag

FINITE = st.floats(-1e6, 1e6)


@given(st.text(st.characters(blacklist_categories=("Cs", "Cc"))))
def test_any_text_comes_back_from_an_element_and_an_attribute(text):
    parsed = ET.fromstring(tag("text", text, data_name=text))
    assert (parsed.text or "") == text
    # XML makes spaces of a line's end in an attribute; HTML does not.
    assert parsed.get("data-name").split() == text.split()


def test_attributes_are_named_rounded_and_left_out():
    made = tag("rect", class_="a", data_i="3", x=1.26, y=-0.01, width=None, hidden=False, wide=True)
    assert made == '<rect class="a" data-i="3" x="1.3" y="0" wide=""/>'


def test_children_keep_their_markup_and_strings_do_not():
    assert tag("g", tag("line"), "<b>") == "<g><line/>&lt;b&gt;</g>"


def test_a_path_breaks_where_a_point_is_missing():
    points = [(0, 0), (1, 1), (2, math.nan), (3, 3)]
    assert path(points) == "M0,0L1,1M3,3"
    assert path([], closed=True) == ""


def test_labels_are_cut_to_fit():
    assert clip("short", 200) == "short"
    assert clip("a long label indeed", 60).endswith("…")
    assert len(clip("a long label indeed", 60)) < 12


@given(FINITE, st.floats(1e-3, 1e6), st.integers(2, 9))
def test_ticks_are_round_inside_and_no_more_than_asked(low, span, most):
    found = ticks(low, low + span, most)
    assert len(found) <= most
    slack = 1e-6 * (abs(low) + span)
    assert all(low - slack <= value <= low + span + slack for value in found)
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.5, 1]), (0, 29, [0, 10, 20]), (-1.6, 0.2, [-1.5, -1, -0.5, 0]), (0.97, 1, None)],
)
def test_ticks_of_known_axes(low, high, expected):
    found = ticks(low, high)
    if expected is not None:
        assert found == pytest.approx(expected)
    assert 2 <= len(found) <= 5


def test_labels_tell_ticks_apart():
    assert labels([0.98, 0.99, 1.0]) == ["0.98", "0.99", "1.00"]
    assert labels([-10, 0, 10]) == ["−10", "0", "10"]
    assert labels([3]) == ["3"]


def test_a_scale_keeps_values_inside():
    scale = Scale(low=0, high=10, start=100, end=0)
    assert scale(5) == 50
    assert scale(99) == 0 and scale(-99) == 100
    assert math.isnan(scale(None)) and math.isnan(scale(math.nan))


def test_whole_places_have_whole_names():
    assert [text for _, text in place_ticks(range(3))] == ["0", "1", "2"]
    assert place_ticks([7]) == [(7, "7")]
    assert place_ticks([0.0, 0.5, 1.5])[1] == (pytest.approx(0.2), "0.2")
