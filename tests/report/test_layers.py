"""The layers document: schema, table and figure."""

import io
import json

import numpy as np
import pytest
import simulated
from jsonschema import Draft202012Validator
from rich.console import Console

from refusaldir.errors import StoreError
from refusaldir.report.document import load_document, write_json
from refusaldir.report.layers_document import SCHEMA_VERSION, by_layer, load_layers
from refusaldir.report.layers_figure import layers_figure, write_layers_figure
from refusaldir.report.layers_table import layers_report
from refusaldir.report.schema import CHECKED, DESCRIBING, document_schema, first_violation

VALIDATOR = Draft202012Validator(document_schema("layers"))
KINDS = {
    "full": {},
    "heads": {"heads": True},
    "fast": {"full": False},
    "nothing": {"whole": 0.0},
    "rate": {"unit": "share", "name": "refusal rate"},
    "outside": {"outside": True},
    "thirty": {"true": (0.0,) * 26 + (0.5, 0.3, 0.2, 0.0)},
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def made(kind):
    return simulated.document(**KINDS[kind])


def printed(document, width=80):
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(layers_report(document))
    return console.file.getvalue()


def subschemas(schema):
    if isinstance(schema, dict):
        if "properties" in schema or "type" in schema or "$ref" in schema:
            yield schema
        for value in schema.values():
            yield from subschemas(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from subschemas(value)


def test_the_schema_is_valid_closed_and_of_this_version():
    schema = document_schema("layers")
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema_version"]["const"] == SCHEMA_VERSION
    assert schema["$id"].endswith(f":{SCHEMA_VERSION}")
    parts = [*schema["properties"].values(), *schema["$defs"].values()]
    for part in subschemas(parts):
        # A property may be called like a keyword, so only objects that describe one are looked at.
        if isinstance(part.get("type"), str):
            assert set(part) <= CHECKED | DESCRIBING
        if isinstance(part.get("properties"), dict) and part.get("type") == "object":
            assert part["additionalProperties"] is False
            assert set(part["required"]) == set(part["properties"])


def test_what_it_shares_with_a_diff_document_is_defined_alike():
    mine, diff = (document_schema(kind)["$defs"] for kind in ("layers", "diff"))
    for name in ("estimate", "model", "site"):
        assert mine[name] == diff[name]


def test_documents_obey_the_schema_and_read_back(made, tmp_path):
    VALIDATOR.validate(made)
    assert first_violation(made, document_schema("layers")) is None
    path = write_json(made, tmp_path / "layers.json")
    assert load_layers(path) == made


def test_foreign_newer_and_damaged_files(made, tmp_path):
    path = tmp_path / "layers.json"
    for content, says in (
        ({"schema": "refusaldir.diff"}, "not a layers document"),
        ({**made, "schema_version": 9}, "newer refusaldir"),
        ({**made, "agreement": [{}]}, r"agreement\[0\]\.first is missing"),
    ):
        path.write_text(json.dumps(content), "utf-8")
        with pytest.raises(StoreError, match=says):
            load_layers(path)
    path.write_text(json.dumps(made), "utf-8")
    with pytest.raises(StoreError, match="not a diff document"):
        load_document(path)


@pytest.mark.parametrize("width", [50, 80, 120, 200])
def test_the_table_fits_every_width(made, width):
    text = printed(made, width)
    assert max(map(len, text.splitlines())) <= width
    assert "share" in text or "Effects by layer" in text


def test_at_eighty_columns_every_lens_is_there():
    text = printed(simulated.document())
    head = next(line for line in text.splitlines() if line.lstrip().startswith("layer "))
    for title in ("share", "restore", "inject", "write", "read"):
        assert title in text
    assert "[" in head  # the share's band
    rows = [line.split() for line in text.splitlines() if line.strip()[:2] in ("2 ", "3 ")]
    assert rows[0][0] == "2" and any("*" in cell for cell in rows[0])


def test_the_table_says_no_more_than_the_document(made):
    text = " ".join(printed(made, 200).replace("│", " ").split())
    assert " ".join(made["verdict"]["headline"].split()) in text
    assert "safety layer" not in text
    if made["ranking"] is None:
        assert "No change to attribute" in text and "*" not in text.split("Effects by layer")[1]


def test_without_a_change_no_share_is_written_anywhere():
    made = simulated.document(whole=0.0)
    assert made["ranking"] is None and made["agreement"] == []
    for lens, key in (("path", "layers"), ("path", "components"), ("transplant", "restored")):
        for cell in made[lens][key]:
            assert cell["share"]["value"] is None and cell["effect"]["value"] is not None
    assert all(row["combined"] is None for row in by_layer(made).values())


def test_figures_of_a_layer_are_put_together():
    made = simulated.document()
    rows = by_layer(made)
    assert list(rows) == list(range(8))
    attn, mlp = (rows[2][part]["share"]["value"] for part in ("attn", "mlp"))
    assert attn + mlp == pytest.approx(rows[2]["path"]["share"]["value"])
    assert mlp == pytest.approx(3 * attn)
    assert rows[2]["weights_mlp"]["write_alignment"] == pytest.approx(1.5)
    assert rows[7]["residual_attn"] is None  # behind the readout
    assert None in by_layer(simulated.document(outside=True))


def test_strange_names_are_printed_as_they_are():
    made = simulated.document()
    made["base"]["name"] = "b\x1b[31m"
    made["notes"] = ["[red]a[/red]"]
    text = printed(made)
    assert "\x1b" not in text and "[red]a[/red]" in text


def test_the_figure_has_a_chart_for_every_lens_there_is(made, kind, tmp_path):
    figure = layers_figure(made)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]
    expected = 2 if kind == "fast" else 5
    assert len(titles) == expected
    png, svg = write_layers_figure(made, tmp_path)
    assert (png.name, svg.name) == ("layers.png", "layers.svg")
    assert 'role="img"' in svg.read_text("utf-8")


def test_the_figure_draws_what_the_document_says():
    made = simulated.document()
    figure = layers_figure(made)
    first, path = figure.axes[0], figure.axes[1]
    points = {
        int(line.get_ydata()[0]): float(line.get_xdata()[0])
        for line in first.lines
        if len(line.get_xdata()) == 1
    }
    for entry in made["ranking"]["layers"]:
        assert points[entry["layer"]] == pytest.approx(100 * entry["share"]["value"])
    shown = np.asarray(path.images[0].get_array())
    assert shown[2, 1] == pytest.approx(100 * by_layer(made)[2]["mlp"]["share"]["value"])
