"""Curves, heat maps, rows and bars: what they draw, say and keep in their tables."""

import json
import math
import xml.etree.ElementTree as ET

import pytest

from refusaldir.report.canvas import BLUE, GREY
from refusaldir.report.document import build_document, to_json
from refusaldir.report.html.curves import curve_figure
from refusaldir.report.html.geometry import geometry_figures
from refusaldir.report.html.heat import HeatBand, HeatRow, heat_figure, height_of
from refusaldir.report.html.rows import ChartRow, Mark, rows_figure
from refusaldir.report.html.share_bars import labels_figure
from refusaldir.report.html.summary import tiles
from refusaldir.report.panel import Panel, Series

NAN = math.nan


def parsed(figure):
    return ET.fromstring(figure.drawing)


def having(figure, name):
    """Elements of a class."""
    return [e for e in parsed(figure).iter() if name in e.get("class", "").split()]


def est(value, half=0.1):
    ends = {"lower": None, "upper": None}
    if value is not None:
        ends = {"lower": value - half, "upper": value + half}
    return {"value": value, **ends, "n": 9, "level": 0.95, "method": "", "note": ""}


def curve(**changes):
    series = [
        Series(label="own", values=[NAN, 1, 2, NAN, 4], lower=[NAN, 0, 1, NAN, 3],
               upper=[NAN, 2, 3, NAN, 5], colour=BLUE),
        Series(label="other", values=[0, 1, 2, 3, 4], colour=GREY, style="--", marker=""),
    ]  # fmt: skip
    panel = Panel(title="", series=series, reference=0.0, least_span=1.0)
    fields = {"key": "k", "title": "T", "unit": "u", "place": "layer", "caption": "c."}
    return curve_figure(panel, range(5), **{**fields, **changes})


def test_a_curve_is_drawn_where_it_is_known():
    figure = curve(mark=2, shaded=[0])
    d = [e.get("d") for e in having(figure, "curve")]
    assert sorted(text.count("M") for text in d) == [1, 2]
    assert len(having(figure, "dot")) == 3  # one of the two has markers
    assert len(having(figure, "band")) == 2  # a stretch, and a bar for the lone value
    assert len(having(figure, "lost")) == len(having(figure, "mark")) == 1


def test_every_place_can_be_pointed_at_and_says_all_series():
    figure = curve(digits=1)
    marks = [e for e in parsed(figure).iter() if e.get("data-i") is not None]
    assert [int(e.get("data-i")) for e in marks] == list(range(5)) == list(range(len(figure.tips)))
    widths = [float(e.get("width")) for e in marks]
    assert sum(widths) == pytest.approx(460 - 46 - 12, abs=0.5)
    assert figure.tips[4].title == "Layer 4"
    assert figure.tips[4].lines[0] == ("s0", "own", "4.0 [3.0, 5.0]")
    assert figure.tips[3].lines[0] == ("s0", "own", "–")


def test_a_curve_keeps_its_numbers_in_full():
    table = curve().table
    assert list(table.columns) == ["layer", "own", "own, lower", "own, upper", "other"]
    assert table.rows[1] == ("layer 1", 1.0, 0.0, 2.0, 1.0)
    assert table.rows[0] == ("layer 0", None, None, None, 0.0)


def test_points_without_a_line_have_bars():
    series = [Series(label="s", values=[1, 2], lower=[0, 1], upper=[2, 3], colour=BLUE, style="")]
    panel = Panel(title="", series=series, reference=None, least_span=1.0)
    figure = curve_figure(panel, [0, 1], key="k", title="T", unit="u", place="layer", caption="c.")
    assert not having(figure, "curve") and len(having(figure, "bar-band")) == 2


def test_one_place_is_enough_for_a_curve():
    panel = Panel(
        title="", series=[Series(label="s", values=[1.0])], reference=None, least_span=1.0
    )
    figure = curve_figure(panel, [7], key="k", title="T", unit="u", place="layer", caption="c.")
    assert len(having(figure, "dot")) == 1


def heat(**changes):
    bands = [
        HeatBand(title="one way", rows=[HeatRow(label="a", values=[0.0, 1.0, None], texts="xyz")]),
        HeatBand(
            title="both ways",
            rows=[
                HeatRow(label="b", values=[-2.0, 0.0, 1.0], texts="uvw", marked=frozenset({0})),
                HeatRow(label="c", values=[None, None, 2.0], texts="rst"),
            ],
            signed=True,
        ),
    ]
    fields = {"key": "k", "title": "T", "place": "layer", "caption": "c."}
    return heat_figure(bands, ["0", "1", "2"], **{**fields, **changes}), bands


def test_colours_follow_values_within_a_band():
    figure, bands = heat(ring=(1, 0, 0))
    cells = [e for e in parsed(figure).iter() if e.get("data-i") is not None]
    names = [e.get("class").split()[1] for e in cells]
    assert names == ["q0", "q10", "none", "n10", "p0", "p5", "none", "none", "p10"]
    assert len(having(figure, "spot")) == 1 and len(having(figure, "ringed")) == 2
    assert float(parsed(figure).get("viewBox").split()[3]) == height_of(bands)


def test_cells_say_band_row_and_column():
    figure, _ = heat()
    assert figure.tips[3].title == "Layer 0"
    assert figure.tips[3].lines == [(None, "both ways: b", "u")]
    assert figure.columns == 3
    assert figure.table.rows[1] == ("both ways: b", -2.0, 0.0, 1.0)


def test_a_logarithmic_scale_and_a_band_without_values():
    rows = [HeatRow(label="", values=[0.001, 0.01, 0.1], texts="abc")]
    band = HeatBand(title="KL", rows=rows, log=True, low=0.001)
    empty = HeatBand(title="none", rows=[HeatRow(label="", values=[None] * 3, texts="abc")])
    figure = heat_figure(
        [band, empty], ["0", "1", "2"], key="k", title="T", place="layer", caption="c."
    )
    cells = [e.get("class") for e in parsed(figure).iter() if e.get("data-i") is not None]
    assert cells[:3] == ["cell q0", "cell q5", "cell q10"]


def dumbbells(**changes):
    rows = [
        ChartRow(
            label=name,
            marks=[
                Mark(name="base", cell=est(base), colour="c2", form="ring"),
                Mark(name="tuned", cell=est(tuned), colour="c2"),
            ],
            text="x",
            joined=True,
            strong=name == "all",
            extra=[("n", "24", 24)],
        )
        for name, base, tuned in (("all", 0.9, 0.5), ("lost", 0.9, None))
    ]
    fields = {"key": "k", "title": "T", "unit": "u", "first": "category", "caption": "c."}
    fields |= {"text_title": "change", "span": (0.0, 100.0), "scale": 100.0}
    return rows_figure(rows, **{**fields, **changes})


def test_a_dumbbell_has_both_ends_or_one():
    figure = dumbbells()
    assert len(having(figure, "ring")) == 2 and len(having(figure, "dot")) == 1
    assert len(having(figure, "joint")) == 1 and len(having(figure, "whisker")) == 3
    ring, dot = having(figure, "ring")[0], having(figure, "dot")[0]
    assert float(ring.get("cx")) > float(dot.get("cx"))
    assert [key.label for key in figure.keys] == ["base", "tuned"]


def test_rows_say_and_keep_everything():
    figure = dumbbells(digits=0)
    assert figure.tips[0].lines[0] == (None, "base", "90 [80, 100]")
    assert figure.tips[1].lines[1] == (None, "tuned", "–")
    assert figure.table.columns[-1] == "n"
    assert figure.table.rows[0][:2] == ("all", 90.0)
    assert figure.table.rows[1][4:7] == (None, None, None)


def test_an_interval_far_wider_than_the_points_is_cut_by_the_axis():
    row = ChartRow(label="a", marks=[Mark(name="m", cell=est(1.0, 500.0), colour="c1")])
    other = ChartRow(label="b", marks=[Mark(name="m", cell=est(2.0), colour="c1")])
    figure = rows_figure(
        [row, other], key="k", title="T", unit="u", first="f", caption="c.", reference=0.0
    )
    wide = max(float(e.get("x2")) - float(e.get("x1")) for e in having(figure, "whisker"))
    assert wide <= 460
    dots = [float(e.get("cx")) for e in having(figure, "dot")]
    assert dots[1] - dots[0] > 40


def test_bars_sum_to_all_answers():
    group = {
        "base_labels": {"full_refusal": 3, "compliance": 1},
        "tuned_labels": {"compliance": 2, "incoherent": 2},
    }
    figure = labels_figure("refusal", group)
    widths = [float(e.get("width")) for e in having(figure, "bar")]
    assert sum(widths) == pytest.approx(2 * (460 - 56 - 12), abs=1)
    assert widths[0] == pytest.approx(3 * widths[1], abs=0.5)
    assert {key.label for key in figure.keys} == {"full refusal", "answer", "incoherent"}
    assert ("base", "full refusal", 3, 75.0) in figure.table.rows


def test_points_and_means_of_a_view_lie_where_it_says(full):
    view = full.diff["drift"]["views"][0]
    figure = geometry_figures(full.diff["drift"])[0]
    marks = {int(e.get("data-i")): e for e in parsed(figure).iter() if e.get("data-i")}
    assert len(marks) == len(figure.tips) == 30
    xs = [float(marks[i].get("cx")) for i in range(30)]
    places = [x for x, _ in view["points"]["tuned"]]
    slope = (xs[1] - xs[0]) / (places[1] - places[0])
    assert slope > 0
    for x, place in zip(xs, places, strict=True):
        assert x - xs[0] == pytest.approx(slope * (place - places[0]), abs=0.15)
    assert len(having(figure, "arrow")) == 2


def test_tiles_hold_the_findings_and_both_axes(full):
    found = {tile.title: tile for tile in tiles(full.diff)}
    assert len(found) == 8
    assert found["Rotation"].value.endswith("°") and found["Rotation"].changed
    refusal = full.diff["behaviour"]["axes"]["refusal"]["overall"]
    assert found["Refusal of harmful prompts"].value.startswith(
        f"{100 * refusal['base_rate']['value']:.1f} → "
    )
    assert found["Refusal of harmful prompts"].changed is (refusal["p_value"] < 0.05)


def test_no_drift_is_no_change(drift):
    document = json.loads(to_json(build_document(drift(30, size=0.0), None)))
    states = {tile.title: (tile.changed, tile.state) for tile in tiles(document)}
    assert states["Rotation"][0] is False
    assert "no change" in states["Rotation"][1]
