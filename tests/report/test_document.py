import copy
import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from refusaldir.errors import OutputExistsError, StoreError
from refusaldir.records import Estimate
from refusaldir.report.document import (
    CSV_COLUMNS,
    SCHEMA_VERSION,
    build_document,
    load_document,
    tables_csv,
    to_json,
    write_json,
)
from refusaldir.report.schema import CHECKED, DESCRIBING, document_schema, first_violation

SCHEMA_OF_DIFF = document_schema("diff")
VALIDATOR = Draft202012Validator(SCHEMA_OF_DIFF)


def nodes(value, path=()):
    """Every (path, value) inside a JSON value."""
    yield path, value
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from nodes(item, (*path, key))


def subschemas(schema):
    """Every schema inside a schema (not the maps that hold them)."""
    yield schema
    for key in ("properties", "$defs"):
        for item in schema.get(key, {}).values():
            yield from subschemas(item)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from subschemas(schema[key])
    for item in schema.get("anyOf", ()):
        yield from subschemas(item)


# --- the schema ------------------------------------------------------------------------------


def test_the_schema_is_a_valid_schema():
    Draft202012Validator.check_schema(SCHEMA_OF_DIFF)


def test_every_field_is_described():
    for schema in subschemas(SCHEMA_OF_DIFF):
        for name, field in schema.get("properties", {}).items():
            assert len(field.get("description", "")) > 10, name


def test_every_object_with_fields_is_closed_and_requires_them_all():
    for schema in subschemas(SCHEMA_OF_DIFF):
        if "properties" in schema:
            assert schema["additionalProperties"] is False
            assert set(schema["required"]) == set(schema["properties"])


def test_the_schema_uses_only_keywords_that_the_checker_knows():
    for schema in subschemas(SCHEMA_OF_DIFF):
        assert set(schema) <= CHECKED | DESCRIBING
        if "$ref" in schema:
            assert schema["$ref"].removeprefix("#/$defs/") in SCHEMA_OF_DIFF["$defs"]


def test_the_version_of_the_schema_is_the_version_written():
    assert SCHEMA_OF_DIFF["properties"]["schema_version"]["const"] == SCHEMA_VERSION
    assert SCHEMA_OF_DIFF["$id"].endswith(f":{SCHEMA_VERSION}")


# --- documents obey it -----------------------------------------------------------------------


@pytest.mark.parametrize("layers, categories", [(30, 12), (80, 44), (1, 1), (3, 0)])
def test_made_up_documents_obey_the_schema(make_document, layers, categories):
    document = make_document(layers, categories, lost=0 if layers == 1 else 1)
    VALIDATOR.validate(document)
    assert first_violation(document, SCHEMA_OF_DIFF) is None


def test_a_computed_result_obeys_the_schema(computed):
    VALIDATOR.validate(build_document(computed))


def test_one_axis_alone_obeys_the_schema(drift, behaviour):
    document = build_document(drift(3), behaviour(2, sides=(True,)))
    VALIDATOR.validate(document)
    assert document["behaviour"]["axes"]["over_refusal"] is None


def test_nothing_judged_obeys_the_schema(drift, behaviour):
    answers = behaviour(1, n=4, unusable=4, sides=(True,))
    document = build_document(drift(3), answers)
    VALIDATOR.validate(document)
    assert document["behaviour"]["axes"]["refusal"]["overall"]["difference"]["value"] is None


def test_every_figure_of_the_result_is_in_the_document(computed):
    document = build_document(computed)
    source = json.loads(json.dumps(computed.to_dict()))
    for row, mine in zip(source["layers"], document["drift"]["layers"], strict=True):
        assert mine == row
    for key in ("grid", "ranking", "findings", "notes", "methods", "level", "seed", "hook"):
        assert document["drift"][key] == source[key]
    assert document["base"] == source["base"]
    assert document["tuned"] == source["tuned"]
    choice = {k: v for k, v in source["site"].items() if k != "site"}
    assert document["drift"]["site_choice"] == choice
    site = document["drift"]["site"]
    assert {k: site[k] for k in ("hook", "layer", "position")} == source["site"]["site"]


def test_every_figure_of_behaviour_is_in_the_document(drift, behaviour):
    answers = behaviour(3)
    document = build_document(drift(3), answers)
    source = json.loads(json.dumps(answers.to_dict()))
    axes = {axis["axis"]: axis for axis in source.pop("axes")}
    assert document["behaviour"]["axes"] == axes
    assert {k: document["behaviour"][k] for k in source} == source


def test_the_token_of_the_site_is_named(document):
    assert document["drift"]["site"]["token"] == "assistant\n"


def test_prompts_and_responses_stay_out(document):
    assert "SECRET" not in to_json(document)


def test_the_same_result_gives_the_same_document(drift, behaviour):
    texts = [to_json(build_document(drift(5), behaviour(2), created="now")) for _ in range(2)]
    assert texts[0] == texts[1]


def test_a_document_in_memory_equals_the_one_read_back(drift, behaviour):
    document = build_document(drift(3), behaviour(2))
    assert json.loads(to_json(document)) == document


def test_non_finite_numbers_become_null_with_a_note(drift):
    result = drift(3)
    broken = Estimate(value=math.nan, lower=-math.inf, upper=math.inf, n=5, note="odd")
    rows = (*result.layers[:2], replace(result.layers[2], cka=broken, shrinkage=broken))
    document = build_document(replace(result, layers=rows))
    cell = document["drift"]["layers"][2]["cka"]
    assert (cell["value"], cell["lower"], cell["upper"]) == (None, None, None)
    assert cell["note"] == "odd; not finite"
    VALIDATOR.validate(document)
    assert "NaN" not in to_json(document) and "Infinity" not in to_json(document)


def test_finite_estimates_get_no_note(document):
    notes = [v["note"] for _, v in nodes(document) if isinstance(v, dict) and "note" in v]
    assert not any("not finite" in note for note in notes)


def test_to_json_writes_numpy_and_paths_and_refuses_what_it_cannot_say(tmp_path):
    value = {"a": np.float32(1.5), "b": (np.int64(2), np.bool_(True)), "c": tmp_path, "d": math.nan}
    assert json.loads(to_json(value)) == {"a": 1.5, "b": [2, True], "c": str(tmp_path), "d": None}
    with pytest.raises(TypeError, match="set"):
        to_json({"a": {1, 2}})


# --- writing and reading ---------------------------------------------------------------------


def test_it_reads_back_what_it_wrote(document, tmp_path):
    path = write_json(document, tmp_path / "out" / "diff.json")
    assert load_document(path) == document


def test_it_keeps_an_existing_file_when_told_to(document, tmp_path):
    path = write_json(document, tmp_path / "diff.json")
    with pytest.raises(OutputExistsError):
        write_json(document, path, force=False)


def test_a_missing_file(tmp_path):
    with pytest.raises(StoreError, match="no such file"):
        load_document(tmp_path / "diff.json")


def test_a_folder(tmp_path):
    with pytest.raises(StoreError, match="cannot be read"):
        load_document(tmp_path)


def test_a_file_cut_off_anywhere(make_document, tmp_path):
    text = to_json(make_document(2, 1))
    path = tmp_path / "diff.json"
    for end in range(0, len(text) - 1, len(text) // 40):
        path.write_text(text[:end], "utf-8")
        with pytest.raises(StoreError, match="not JSON, or was cut off"):
            load_document(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\xff\xfe\x00binary", "cannot be read as text"),
        (b'{"schema": "refusaldir.diff", "x": NaN}', "NaN is not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1, 2]", "not a diff document"),
        (b'{"schema": "else"}', 'expected "schema": "refusaldir.diff", got \'else\''),
        (b'{"schema": "refusaldir.diff"}', "schema_version is missing"),
        (b'{"schema": "refusaldir.diff", "schema_version": "1"}', "damaged or was edited"),
    ],
)
def test_foreign_and_damaged_files(tmp_path, content, message):
    path = tmp_path / "diff.json"
    path.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        load_document(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_newer_document_names_its_version_and_the_way_out(document, tmp_path):
    newer = {**document, "schema_version": 9, "refusaldir_version": "9.9", "new_field": 1}
    path = tmp_path / "diff.json"
    path.write_text(json.dumps(newer), "utf-8")
    with pytest.raises(StoreError, match=r"newer refusaldir.*got 9 \(refusaldir 9\.9\).*Upgrade"):
        load_document(path)


def test_an_older_document_asks_for_another_run(document, tmp_path):
    path = tmp_path / "diff.json"
    path.write_text(json.dumps({**document, "schema_version": 2}), "utf-8")
    with pytest.raises(StoreError, match=r"older refusaldir.*got 2 .*diff again, with --force"):
        load_document(path)


def test_an_edited_document_says_where(document, tmp_path):
    edited = copy.deepcopy(document)
    del edited["drift"]["layers"][3]["rotation"]["lower"]
    path = tmp_path / "diff.json"
    path.write_text(json.dumps(edited), "utf-8")
    with pytest.raises(StoreError, match=r"drift\.layers\[3\]\.rotation\.lower is missing"):
        load_document(path)


# --- our checker against jsonschema ----------------------------------------------------------

SMALL = {}


@pytest.fixture(scope="module", autouse=True)
def _small(make_document):
    SMALL["document"] = make_document(2, 1)


values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(-2, 2), st.sampled_from(["", "x"]),
    st.just([]), st.just({}), st.just([1.0]), st.just({"a": 1}), st.just(1.0), st.just(10**400),
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_checker_agrees_with_jsonschema_on_mutated_documents(data):
    document = copy.deepcopy(SMALL["document"])
    places = [path for path, _ in nodes(document) if path]
    path = data.draw(st.sampled_from(places))
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    change = data.draw(st.sampled_from(["replace", "delete", "add"]))
    if change == "delete":
        del holder[path[-1]]
    elif change == "add" and isinstance(holder, dict):
        holder["unheard_of"] = data.draw(values)
    else:
        holder[path[-1]] = data.draw(values)
    assert (first_violation(document, SCHEMA_OF_DIFF) is None) == VALIDATOR.is_valid(document)


@pytest.mark.parametrize(
    "schema, good, bad",
    [
        ({"type": "integer"}, [1, 1.0, -3, 10**400], [1.5, True, "1", None]),
        ({"type": "number"}, [1, 1.5], [True, "1", None]),
        ({"type": ["string", "null"]}, ["", None], [0, []]),
        ({"const": 1}, [1, 1.0], [True, 2, "1"]),
        ({"enum": ["a", "b"]}, ["a"], ["c", None]),
        ({"minimum": 0, "maximum": 1}, [0, 1, 0.5, "x", True], [-0.1, 2]),
        ({"items": {"type": "null"}}, [[], [None]], [[None, 1]]),
        ({"required": ["a"], "properties": {"a": {"type": "null"}}}, [{"a": None, "b": 1}], [{}]),
        ({"properties": {"a": {}}, "additionalProperties": False}, [{"a": 1}, {}], [{"b": 1}]),
        ({"additionalProperties": {"type": "null"}}, [{"b": None}], [{"b": 1}]),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, [None, "x"], [1]),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "null"}}}, [None], [1]),
    ],
)
def test_the_checker_agrees_with_jsonschema_keyword_by_keyword(schema, good, bad):
    validator = Draft202012Validator(schema)
    for value in good:
        assert validator.is_valid(value) and first_violation(value, schema) is None
    for value in bad:
        assert not validator.is_valid(value) and first_violation(value, schema) is not None


# --- CSV -------------------------------------------------------------------------------------


def test_the_csv_holds_every_figure(document):
    rows = list(csv.DictReader(io.StringIO(tables_csv(document))))
    assert set(rows[0]) == set(CSV_COLUMNS)
    estimates = [
        v
        for part in (document["drift"]["layers"], document["behaviour"]["axes"])
        for _, v in nodes(part)
        if isinstance(v, dict) and set(v) == set(document["drift"]["layers"][0]["cka"])
    ]
    groups = 2 * (12 + 1)
    other_positions = 2
    assert len(rows) == len(estimates) + 2 * groups + other_positions
    cell = next(r for r in rows if r["layer"] == "18" and r["metric"] == "translation.harmful")
    source = document["drift"]["layers"][18]["translation"]["harmful"]
    assert [float(cell[k]) for k in ("value", "lower", "upper")] == [
        source[k] for k in ("value", "lower", "upper")
    ]
    assert (cell["table"], cell["hook"], cell["position"]) == ("drift", "resid_pre", "-1")


def test_the_csv_leaves_null_empty_and_quotes_names(make_document):
    document = make_document(2, 1)
    group = document["behaviour"]["axes"]["refusal"]["breakdowns"]["category"]["groups"][0]
    group["name"] = 'a, "b"\nc'
    rows = list(csv.DictReader(io.StringIO(tables_csv(document))))
    lost = next(r for r in rows if r["layer"] == "0" and r["metric"] == "rotation")
    assert lost["value"] == lost["lower"] == "" and lost["note"].startswith("no signal")
    assert any(r["category"] == 'a, "b"\nc' for r in rows)


def test_the_csv_without_behaviour(make_document):
    rows = list(csv.DictReader(io.StringIO(tables_csv(make_document(3, 0)))))
    assert {r["table"] for r in rows} == {"drift"}
