import copy
import itertools
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from drawn import assert_legible
from hypothesis import given
from hypothesis import strategies as st

from refusaldir.errors import StoreError
from refusaldir.report import canvas
from refusaldir.report.document import build_document
from refusaldir.report.figures import behaviour_figure, drift_figure, save_figure, write_figures
from refusaldir.report.panel import Panel, Series, limits, spread
from refusaldir.report.text import AXIS_TITLES, category_order

SVG = "{http://www.w3.org/2000/svg}"
SIZES = [(30, 12), (80, 44), (1, 1)]


def column(rows, *keys):
    out = []
    for row in rows:
        for key in keys:
            row = row[key]
        out.append(np.nan if row is None else row)
    return np.array(out, dtype=float)


def curves(axes, n):
    """Data of the curves over all layers, in the order drawn."""
    return [
        np.asarray(line.get_ydata(), dtype=float)
        for line in axes.get_lines()
        if len(line.get_xdata()) == n and line.get_linestyle() != "None"
    ]


@pytest.fixture(scope="module")
def drift_drawn(document):
    return drift_figure(document)


@pytest.fixture(scope="module")
def behaviour_drawn(document):
    return behaviour_figure(document)


# --- drift by layer --------------------------------------------------------------------------


def test_the_curves_are_the_documents_figures(document, drift_drawn):
    rows = document["drift"]["layers"]
    figure = drift_drawn
    expected = [
        [("rotation", "value"), ("rotation_raw", "value")],
        [("shrinkage", "value")],
        [("translation", "harmful", "value"), ("translation", "harmless", "value")],
        [
            ("auroc", "base_direction_on_tuned", "value"),
            ("auroc", "tuned_direction_on_tuned", "value"),
            ("auroc", "base_direction_on_base", "value"),
        ],
    ]
    for axes, wanted in zip(figure.axes, expected, strict=True):
        drawn = curves(axes, len(rows))
        for y, keys in zip(drawn, wanted, strict=True):
            np.testing.assert_array_equal(y, column(rows, *keys))


def test_the_bands_are_the_intervals(document, drift_drawn):
    rows = document["drift"]["layers"]
    axes = drift_drawn.axes[0]
    outer, inner = (c.get_paths()[0].vertices for c in axes.collections[:2])
    at = 18
    y = inner[inner[:, 0] == at][:, 1]
    assert y.min() == pytest.approx(rows[at]["rotation"]["lower"])
    assert y.max() == pytest.approx(rows[at]["rotation"]["upper"])
    joint = next(e for e in document["drift"]["ranking"] if e["layer"] == at)["drift"]
    y = outer[outer[:, 0] == at][:, 1]
    assert y.min() == pytest.approx(1 - joint["upper"])
    assert y.max() == pytest.approx(1 - joint["lower"])


def test_the_chosen_layer_and_the_lost_ones_are_marked_in_every_panel(make_document):
    document = make_document(30, 0, lost=3)
    for axes in drift_figure(document).axes:
        chosen = [line for line in axes.get_lines() if list(line.get_xdata()) == [18, 18]]
        assert len(chosen) == 1
        spans = sorted(patch.get_x() for patch in axes.patches)
        assert spans == [-0.5, 0.5, 1.5]


def test_no_change_has_a_line_where_a_value_means_no_change(drift_drawn):
    heights = []
    for axes in drift_drawn.axes:
        lines = [line for line in axes.get_lines() if list(line.get_xdata()) == [0, 1]]
        heights.append([line.get_ydata()[0] for line in lines])
    assert heights == [[1.0], [1.0], [0.0], []]


def test_every_curve_is_named_at_its_end_without_overlap(drift_drawn):
    for axes, names in zip(
        drift_drawn.axes,
        (
            ["corrected", "raw"],
            ["corrected"],
            ["harmful", "harmless"],
            ["base direction", "refitted", "base on base"],
        ),
        strict=True,
    ):
        labels = [t for t in axes.texts if t.get_text() in names]
        assert [t.get_text() for t in labels] == names
        axes.get_figure().draw_without_rendering()
        boxes = sorted((t.get_window_extent() for t in labels), key=lambda box: box.y0)
        assert all(low.y1 <= high.y0 + 3 for low, high in itertools.pairwise(boxes))


def test_every_layer_is_in_view_and_every_value_too(drift_drawn):
    for axes in drift_drawn.axes:
        low, high = axes.get_ylim()
        assert axes.get_xlim() == (-0.5, 29.5)
        for y in curves(axes, 30):
            assert low < np.nanmin(y) and np.nanmax(y) < high


def test_one_layer_shows_its_interval_as_a_bar(make_document):
    document = make_document(1, 0, lost=0)
    axes = drift_figure(document).axes[0]
    cell = document["drift"]["layers"][0]["rotation"]
    bars = [c for c in axes.collections if isinstance(c, matplotlib.collections.LineCollection)]
    ends = [segment[:, 1].tolist() for bar in bars for segment in bar.get_segments()]
    assert [cell["lower"], cell["upper"]] in ends


def test_nothing_estimable_still_draws(make_document, tmp_path):
    document = make_document(3, 0)
    for row in document["drift"]["layers"]:
        for cell in (row["rotation"], row["rotation_raw"], row["shrinkage"],
                     *row["translation"].values(), *row["auroc"].values()):  # fmt: skip
            cell.update(value=None, lower=None, upper=None)
    document["drift"]["ranking"] = []
    write_figures(document, tmp_path)


# --- behaviour by category -------------------------------------------------------------------


def test_the_dumbbells_are_the_documents_rates_in_the_tables_order(document, behaviour_drawn):
    behaviour = document["behaviour"]
    figure = behaviour_drawn
    for axes, name in zip(figure.axes, AXIS_TITLES, strict=True):
        rows = {
            row["name"]: row for row in behaviour["axes"][name]["breakdowns"]["category"]["groups"]
        }
        dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
        base, tuned = dots[2::2], dots[3::2]
        by_height = sorted(zip(base, tuned, strict=True), key=lambda pair: pair[0].get_ydata()[0])
        for (b, t), category in zip(by_height, category_order(behaviour), strict=True):
            assert b.get_xdata()[0] == rows[category]["base_rate"]["value"]
            assert t.get_xdata()[0] == rows[category]["tuned_rate"]["value"]
            assert b.get_markerfacecolor() == "white" != t.get_markerfacecolor()


def test_bars_are_the_paired_intervals_cut_at_the_scale(document, behaviour_drawn):
    axes = behaviour_drawn.axes[0]
    bars = [line for line in axes.get_lines() if line.get_alpha() is not None]
    rows = [document["behaviour"]["axes"]["refusal"]["overall"]]
    rows += document["behaviour"]["axes"]["refusal"]["breakdowns"]["category"]["groups"]
    expected = [
        [
            np.clip(row["base_rate"]["value"] + row["difference"][end], 0, 1)
            for end in ("lower", "upper")
        ]
        for row in rows
    ]
    np.testing.assert_allclose([bar.get_xdata() for bar in bars], expected)


def test_numbers_of_prompts_and_holm_stars(document, behaviour_drawn):
    axes = behaviour_drawn.axes[0]
    shown = [t.get_text() for t in axes.texts]
    rows = document["behaviour"]["axes"]["refusal"]["breakdowns"]["category"]["groups"]
    passed = sum(row["p_holm"] < 0.05 for row in rows)
    assert 0 < passed < len(rows)
    assert shown.count("24 *") == passed and shown.count("24") == len(rows) - passed
    assert shown.count("288") == 1


def test_one_axis_alone_and_a_category_without_usable_answers(drift, behaviour, tmp_path):
    answers = behaviour(2, n=4, unusable=4, sides=(True,))
    document = build_document(drift(3), answers)
    figure = behaviour_figure(document)
    assert len(figure.axes) == 1
    assert "no usable answers" in [t.get_text() for t in figure.axes[0].texts]
    write_figures(document, tmp_path)


def test_without_behaviour_there_is_one_figure(make_document, tmp_path):
    document = make_document(3, 0)
    paths = write_figures(document, tmp_path)
    assert [path.name for path in paths] == ["drift.png", "drift.svg"]
    with pytest.raises(ValueError, match="no behaviour"):
        behaviour_figure(document)


# --- all figures -----------------------------------------------------------------------------


@pytest.mark.parametrize("layers, categories", SIZES)
def test_all_text_is_at_least_8_points_inside_the_page_and_apart(make_document, layers, categories):
    document = make_document(layers, categories, lost=0, names=("a" * 40, "b" * 60))
    for figure in (drift_figure(document), behaviour_figure(document)):
        assert_legible(figure)


@pytest.mark.parametrize("layers, categories", [(30, 12), (1, 1)])
def test_files_are_the_same_bytes_every_time(make_document, tmp_path, layers, categories):
    document = make_document(layers, categories, lost=0)
    first = write_figures(document, tmp_path / "a")
    theirs = {"font.size": 20, "axes.facecolor": "pink", "savefig.bbox": "tight"}
    with matplotlib.rc_context({**theirs, "svg.fonttype": "path"}):
        second = write_figures(document, tmp_path / "b")
    assert [p.name for p in first] == [
        "drift.png", "drift.svg", "behaviour.png", "behaviour.svg",
    ]  # fmt: skip
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_another_result_gives_other_bytes(make_document, tmp_path):
    a = write_figures(make_document(5, 0), tmp_path / "a")
    b = write_figures(make_document(5, 0, size=0.5), tmp_path / "b")
    assert all(x.read_bytes() != y.read_bytes() for x, y in zip(a, b, strict=True))


def test_the_svg_is_accessible_and_keeps_its_text(document, tmp_path):
    document = copy.deepcopy(document)
    document["base"]["model"]["name"] = "a<b>&\x1b"
    for path in write_figures(document, tmp_path)[1::2]:
        root = ET.parse(path).getroot()
        assert root.get("role") == "img"
        ids = root.get("aria-labelledby").split()
        title, desc = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
        assert [title.get("id"), desc.get("id")] == ids
        assert "a<b>&\\x1b → tuned" in title.text
        assert len(desc.text) > 100
        assert len(root.findall(f"{SVG}title")) == 1
        words = " ".join("".join(t.itertext()) for t in root.iter(f"{SVG}text"))
        assert "a<b>&" in words and "prompts" in words
        assert b"<dc:date>" not in path.read_bytes()


def test_names_are_never_read_as_maths_or_missing_glyphs_as_errors(document, tmp_path):
    document = copy.deepcopy(document)
    document["base"]["model"]["name"] = "$\\frac{1}{$"
    document["tuned"]["model"]["name"] = "模型"
    document["drift"]["site"]["token"] = "\n"
    document["behaviour"]["axes"]["refusal"]["breakdowns"]["category"]["groups"][0]["name"] = (
        "犯罪 $x_1$"
    )
    svg = [p.read_text("utf-8") for p in write_figures(document, tmp_path)[1::2]]
    assert all("模型" in text and "$\\frac{1}{$" in text for text in svg)
    assert "(\\n)" in svg[0] and "犯罪 $x_1$" in svg[1]


def test_drawing_changes_no_setting_and_needs_no_pyplot(document, tmp_path):
    before = dict(matplotlib.rcParams)
    write_figures(document, tmp_path)
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys, json, pathlib\n"
        "from refusaldir.report.figures import write_figures\n"
        "assert 'matplotlib' not in sys.modules\n"
        "write_figures(json.loads(pathlib.Path(sys.argv[1]).read_text('utf-8')), sys.argv[2])\n"
        "print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    from refusaldir.report.document import write_json

    path = write_json(document, tmp_path / "diff.json")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(path), str(tmp_path / "again")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.split() == ["False", "False"]
    for name in ("drift.png", "behaviour.svg"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_folder_that_cannot_be_written_is_a_clear_error(document, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        write_figures(document, tmp_path / "file")


def test_other_warnings_of_matplotlib_are_not_hidden(tmp_path):
    from matplotlib.figure import Figure

    class Odd(Figure):
        def savefig(self, *args, **kwargs):
            warnings.warn("something else", UserWarning, stacklevel=2)

    with pytest.warns(UserWarning, match="something else"):
        save_figure(_with_svg(Odd()), tmp_path / "x", title="t", description="d")


def _with_svg(figure):
    """Let a figure whose drawing only warns still write a minimal SVG."""
    warn = figure.savefig

    def savefig(stream, **kwargs):
        warn(stream, **kwargs)
        stream.write(b"<svg></svg>")

    figure.savefig = savefig
    return figure


def contrast(colour):
    """WCAG contrast of a colour with white."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)


def test_colours_of_curves_and_text_can_be_read():
    assert contrast("#FFFFFF") == pytest.approx(1)
    assert contrast("#000000") == pytest.approx(21)
    for colour in (canvas.BLUE, canvas.GREY, canvas.BLACK):
        assert contrast(colour) >= 4.5
    assert contrast(canvas.VERMILLION) >= 3


# --- helpers ---------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_labels_keep_their_order_and_distance(positions):
    placed = spread(positions, 0.1)
    order = np.argsort(positions, kind="stable")
    sorted_placed = np.array(placed)[order]
    assert np.all(np.diff(sorted_placed) >= 0.1 - 1e-9)
    assert min(placed) >= -1e-9 and max(placed) <= 1 + 1e-9


def test_labels_that_are_apart_stay_where_they_are():
    assert spread([0.8, 0.1, 0.5], 0.1) == pytest.approx([0.8, 0.1, 0.5])


@given(
    st.lists(st.one_of(st.just(np.nan), st.floats(-3, 3)), min_size=1, max_size=8),
    st.floats(0, 100),
)
def test_limits_show_all_values_and_never_magnify_noise(values, half):
    series = Series(
        label="x",
        values=values,
        lower=[v - half for v in values],
        upper=[v + half for v in values],
    )
    low, high = limits(Panel(title="", series=[series], reference=0.0, least_span=0.2))
    known = [v for v in values if not np.isnan(v)] + [0.0]
    span = max(max(known) - min(known), 0.2)
    assert low < min(known) and max(known) < high
    assert 0.2 <= high - low <= 3.5 * span
