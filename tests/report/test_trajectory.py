"""The trajectory document: schema, words, table and figure."""

import io
import json

import pytest
from jsonschema import Draft202012Validator
from rich.console import Console

from refusaldir.drift.layer_result import ByClass
from refusaldir.drift.trajectory import Checkpoint, trajectory
from refusaldir.errors import StoreError
from refusaldir.probes.link.series import series_link
from refusaldir.records import Estimate, Site
from refusaldir.report.document import load_document, write_json
from refusaldir.report.schema import CHECKED, DESCRIBING, document_schema, first_violation
from refusaldir.report.trajectory_document import (
    SCHEMA_VERSION,
    build_trajectory,
    load_trajectory,
)
from refusaldir.report.trajectory_figure import trajectory_figure, write_trajectory_figure
from refusaldir.report.trajectory_table import trajectory_report

VALIDATOR = Draft202012Validator(document_schema("trajectory"))


def estimate(value, half=0.05):
    return Estimate(value=value, lower=value - half, upper=value + half, n=40)


def made_up(make_document, *, steps=(100, 200, 300), measured=True, names=None, link=None):
    """Checkpoints that turn by 10° each; their refusals are those of one made-up diff."""
    documents = [make_document(5, 2 if measured else 0) for _ in steps]
    points = [
        Checkpoint(
            name=names[i] if names else f"checkpoint-{step}",
            step=step,
            rotation=estimate(1 - 0.02 * i, 0.001),
            angle=estimate(10.0 * i, 2.0),
            shrinkage=estimate(1 - 0.1 * i),
            translation=ByClass(harmful=estimate(-0.3 * i), harmless=estimate(0.0)),
            d_prime_change=estimate(-0.2 * i),
            detected=("rotation", "norm") if i else (),
            deviations=None,
        )
        for i, step in enumerate(steps)
    ]
    site = Site(**{k: documents[0]["drift"]["site"][k] for k in ("hook", "layer", "position")})
    return build_trajectory(
        trajectory(site, points), documents, link, options={"seed": 0}, created="now"
    )


def printed(document, width=80):
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(trajectory_report(document))
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
    schema = document_schema("trajectory")
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema_version"]["const"] == SCHEMA_VERSION
    assert schema["$id"].endswith(f":{SCHEMA_VERSION}")
    for part in subschemas({k: v for k, v in schema.items() if k != "properties"}):
        assert set(part) <= CHECKED | DESCRIBING
    for part in subschemas(schema["properties"]["checkpoints"]):
        if "properties" in part:
            assert part["additionalProperties"] is False
            # Only a training monitor has scores.
            assert set(part["properties"]) - set(part["required"]) <= {"score"}


def test_what_it_shares_with_a_diff_document_is_defined_alike():
    own, diff = (document_schema(kind)["$defs"] for kind in ("trajectory", "diff"))
    for name in set(own) & set(diff):
        assert own[name] == diff[name], name


@pytest.mark.parametrize("measured", [True, False])
def test_documents_obey_the_schema_and_read_back(make_document, tmp_path, measured):
    document = made_up(make_document, measured=measured)
    VALIDATOR.validate(document)
    assert first_violation(document, document_schema("trajectory")) is None
    path = write_json(document, tmp_path / "trajectory.json")
    assert load_trajectory(path) == document


def made_up_link(independent):
    rows = [f"checkpoint-{100 * i}" for i in range(8)]
    return series_link(
        rows,
        {"rotation": [1.0, 2, 4, 3, 5, 6, 8, 7], "weight distance": [1.0, 2, 3, 4, 5, 6, 7, 8]},
        {"refusal": [-0.1 * i for i in range(8)], "over_refusal": [None] * 8},
        said={"rotation": "angle, degrees", "weight distance": "of the blocks"},
        rivals=("weight distance",),
        independent=independent,
    )


@pytest.mark.parametrize("independent", [True, False])
def test_drift_against_behaviour_stands_in_document_table_and_verdict(make_document, independent):
    document = made_up(make_document, link=made_up_link(independent))
    VALIDATOR.validate(document)
    assert first_violation(document, document_schema("trajectory")) is None
    over = "fine-tunes" if independent else "checkpoints of one run"
    assert document["verdict"]["sentences"][-1].startswith(f"Over 8 {over}")
    for width in (40, 80):
        text = printed(document, width)
        assert "weight distance°" in text and "−1.00" in text
        assert max(map(len, text.splitlines())) <= width
        assert ("[" in text.split("Drift against")[1]) is independent or width == 40
        assert ("not independent" in " ".join(text.split())) is not independent
    assert made_up(make_document)["link"] is None


def test_foreign_newer_and_damaged_files(make_document, document, tmp_path):
    path = tmp_path / "trajectory.json"
    mine = made_up(make_document)
    for content, says in (
        (document, "not a trajectory document"),
        ({**mine, "schema_version": 9}, "newer refusaldir"),
        ({**mine, "checkpoints": [{}]}, r"checkpoints\[0\]\.name is missing"),
    ):
        path.write_text(json.dumps(content), "utf-8")
        with pytest.raises(StoreError, match=says):
            load_trajectory(path)
    path.write_text(json.dumps(mine), "utf-8")
    with pytest.raises(StoreError, match="not a diff document"):
        load_document(path)


def test_the_first_change_of_refusals_is_named(make_document):
    document = made_up(make_document)
    (sentence,) = [s for s in document["verdict"]["sentences"] if "refusals of harmful" in s]
    assert sentence.startswith("The rate of refusals of harmful prompts first fell at checkpoint-")
    rates = document["checkpoints"][0]["refusal"]
    assert f"{100 * rates['base_rate']['value']:.1f} %" in sentence


def test_notes_name_the_checkpoints_where_not_all_have_them(make_document):
    documents = [make_document(5, 0) for _ in range(2)]
    documents[0]["drift"]["notes"] = ["both", "only here"]
    documents[1]["drift"]["notes"] = ["both"]
    points = [
        Checkpoint(
            name=name, step=None, rotation=estimate(1.0), angle=estimate(0.0),
            shrinkage=estimate(1.0), translation=ByClass(harmful=estimate(0.0),
            harmless=estimate(0.0)), d_prime_change=estimate(0.0), detected=(), deviations=None,
        )
        for name in ("a", "b")
    ]  # fmt: skip
    site = Site(hook="resid_pre", layer=3, position=-1)
    document = build_trajectory(trajectory(site, points), documents)
    assert document["notes"] == ["both", "a: only here"]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_table_fits_and_cuts_no_number(make_document, width):
    text = printed(made_up(make_document), width)
    assert max(map(len, text.splitlines())) <= width
    for angle in ("0.0", "10.0", "20.0"):
        assert angle in text
    if width >= 120:
        assert "−0.30" in text and "0.900" in text


def test_strange_names_are_printed_as_they_are(make_document):
    names = ["[red]a[/red]", "[/]", "b\x1b[31m"]
    text = printed(made_up(make_document, names=names))
    assert "[red]a[/red]" in text and "[/]" in text and "\x1b" not in text


def test_the_figure_has_a_chart_each_and_steps_on_its_axis(make_document, tmp_path):
    figure = trajectory_figure(made_up(make_document))
    assert len(figure.axes) == 5
    assert figure.axes[-1].get_xlabel() == "Training step"
    assert [t.get_text() for t in figure.axes[-1].get_xticklabels()] == ["100", "200", "300"]
    ys = figure.axes[0].lines[1].get_ydata()
    assert list(ys) == [0.0, 10.0, 20.0]
    assert len(trajectory_figure(made_up(make_document, measured=False)).axes) == 4
    png, svg = write_trajectory_figure(made_up(make_document), tmp_path)
    assert (png.name, svg.name) == ("trajectory.png", "trajectory.svg")
    assert 'role="img"' in svg.read_text("utf-8")


@pytest.mark.parametrize("steps", [(None, 200, 300), (300, 200, 100), (5,), tuple(range(1, 31))])
def test_the_figure_without_steps_one_checkpoint_and_many(make_document, steps):
    figure = trajectory_figure(made_up(make_document, steps=steps, names=list(map(str, steps))))
    by_step = None not in steps and list(steps) == sorted(steps)
    assert figure.axes[-1].get_xlabel() == ("Training step" if by_step else "Checkpoint")
    figure.canvas.draw()
