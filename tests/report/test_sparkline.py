"""One line over layers: heights, gaps, stretches, and terminals with less than Unicode."""

import io

import pytest
from rich.console import Console

from refusaldir.report.drift_sparklines import drift_sparklines
from refusaldir.report.sparkline import Sparkline


def printed(thing, width=80, encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    Console(file=stream, width=width, no_color=True).print(thing)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def test_heights_follow_values():
    line = Sparkline([0.0, 0.5, 1.0, None, 2.0, -1.0], low=0.0, high=1.0)
    assert line.text(ascii_only=False) == "▁▅█ █▁"
    assert line.text(ascii_only=True) == "_+# #_"


def test_all_alike_is_flat():
    assert Sparkline([3.0, 3.0], low=3.0, high=3.0).text(ascii_only=False) == "▁▁"


def test_many_layers_become_stretches_that_keep_the_farthest():
    values = [0.0] * 100
    values[37] = 1.0
    line = Sparkline(values, low=0.0, high=1.0, most=40)
    assert len(line.values) == 34
    assert line.text(ascii_only=False).index("█") == 37 // 3
    assert Sparkline([None] * 4, low=0, high=1, most=2).text(ascii_only=False) == "  "


def test_a_terminal_without_unicode_gets_ascii():
    line = Sparkline([0.0, 1.0], low=0.0, high=1.0)
    assert printed(line).strip() == "▁█"
    assert printed(line, encoding="ascii").strip() == "_#"


def test_drift_over_layers(make_document):
    document = make_document(30, 0)
    lines = printed(drift_sparklines(document)).splitlines()
    rows = document["drift"]["layers"]
    angles = [1 - row["rotation"]["value"] for row in rows if row["rotation"]["value"] is not None]
    found = next(line for line in lines if line.startswith("rotation"))
    farthest = angles.index(max(angles)) + 1  # layer 0 is lost
    assert found.rstrip().endswith(f"at layer {farthest}")
    assert f"cosine {1 - max(angles):.3f}" in found
    assert found[16] == " " and found[16 + farthest] == "█"


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("layers", [1, 30, 80])
def test_it_fits(make_document, width, layers):
    lines = printed(drift_sparklines(make_document(layers, 0)), width).splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines) or width < 66


def test_nothing_to_show_is_left_out(make_document):
    document = make_document(1, 0)
    for row in document["drift"]["layers"]:
        row["rotation"] = {**row["rotation"], "value": None}
    assert "rotation" not in printed(drift_sparklines(document))
