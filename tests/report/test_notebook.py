"""Results as HTML: every word of the table, the figures inlined, nothing that could run."""

import base64
import re
from html import unescape

from rich.table import Table
from rich.text import Text

from refusaldir.report.notebook import WIDTH, as_html
from refusaldir.report.tables import diff_report


def text_of(html):
    return unescape(re.sub(r"<[^>]+>", "", html))


def test_a_report_is_shown_whole(document):
    html = as_html(diff_report(document))
    assert html.startswith("<pre")
    said = " ".join(text_of(html).split())
    assert document["verdict"]["headline"].split(":")[0] in said
    assert max(map(len, text_of(html).splitlines())) <= WIDTH


def test_figures_are_inlined_and_missing_ones_left_out(tmp_path):
    path = tmp_path / "drift.svg"
    path.write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    files = {"drift.svg": path, "gone.svg": tmp_path / "gone.svg", "drift.png": tmp_path / "d.png"}
    html = as_html("words", files)
    (data,) = re.findall(r"base64,([^\"]+)", html)
    assert base64.b64decode(data) == path.read_bytes()
    assert 'alt="drift.svg"' in html
    assert "<svg" not in html


def test_hostile_names_are_text(tmp_path):
    table = Table()
    table.add_column("model")
    table.add_row(Text("<script>alert(1)</script>"))
    path = tmp_path / "x.svg"
    path.write_bytes(b"<svg/>")
    html = as_html(table, {'"><script>alert(2)</script>.svg': path})
    assert "<script" not in html
    assert "<script>alert(1)</script>" in text_of(html)
