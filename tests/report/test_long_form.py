"""CSV in long form: every figure once, with its interval, as in the document."""

import csv
import io

import linked
import pytest
import simulated

from refusaldir.errors import RefusaldirError
from refusaldir.probes.summary import summarise
from refusaldir.report.document import tables_csv
from refusaldir.report.long_form import long_csv
from refusaldir.report.probe_document import build_probe


def read(document):
    return list(csv.DictReader(io.StringIO(long_csv(document))))


def test_a_diff_has_its_tables(document):
    assert long_csv(document) == tables_csv(document)


@pytest.mark.parametrize("options", [{}, {"full": False}, {"heads": True}, {"whole": 0.0}])
def test_layers_hold_every_share(options):
    document = simulated.document(**options)
    rows = read(document)
    assert len({tuple(row.items()) for row in rows}) == len(rows)
    for cell in document["path"]["components"]:
        found = [
            row
            for row in rows
            if row["table"] == "path: components"
            and row["layer"] == str(cell["layer"])
            and row["component"] == cell["component"]
            and row["metric"] == "effect"
        ]
        assert [float(row["value"]) for row in found] == [cell["effect"]["value"]]
        assert float(found[0]["upper"]) == cell["effect"]["upper"]
    fronts = [row for row in rows if row["table"] == "transplant: fronts"]
    transplant = document["transplant"]
    assert len(fronts) == (len(transplant["fronts"]) if transplant else 0)


def test_a_run_holds_every_group():
    base, _ = linked.runs(categories=3, each=2, turns=2, scripts=4)
    document = build_probe(summarise(base))
    rows = read(document)
    axis = document["single"]["axes"]["refusal"]
    rates = [row for row in rows if row["part"] == "single" and row["axis"] == "refusal"]
    overall = next(row for row in rates if row["metric"] == "overall.rate")
    assert float(overall["value"]) == axis["overall"]["rate"]["value"]
    named = [r for r in rates if r["by"] == "category" and r["metric"] == "rate"]
    assert [row["group"] for row in named] == [g["name"] for g in axis["by"]["category"]]
    assert any(row["part"] == "live" and row["by"] == "turn" for row in rows)


def test_a_series_holds_every_checkpoint():
    estimate = {"value": 1.0, "lower": 0.5, "upper": None, "n": 3, "level": 0.95, "method": "m",
                "note": ""}  # fmt: skip
    points = [
        {"name": f"c{i}", "step": i, "angle": {**estimate, "value": float(i)}, "refusal": None,
         "translation": {"harmful": estimate}}
        for i in range(2)
    ]  # fmt: skip
    rows = read({"schema": "refusaldir.trajectory", "checkpoints": points})
    assert [(r["checkpoint"], r["metric"], r["value"], r["upper"]) for r in rows] == [
        ("c0", "angle", "0.0", ""),
        ("c0", "translation.harmful", "1.0", ""),
        ("c1", "angle", "1.0", ""),
        ("c1", "translation.harmful", "1.0", ""),
    ]


def test_candidates_of_a_selection():
    site = {"hook": "resid_pre", "layer": 2, "position": -1}
    row = dict.fromkeys(("bypass", "induce", "ablated_cosine", "added_cosine", "cosmic", "kl"))
    row |= {"site": site, "dropped": "kl", "norm": 2.0, "kl": 0.5}
    found = read({"format": "refusaldir-select", "selection": {"candidates": [row]}})
    assert [(r["layer"], r["metric"], r["value"]) for r in found] == [
        ("2", "kl", "0.5"),
        ("2", "norm", "2.0"),
    ]


def test_what_has_no_tables_says_so():
    with pytest.raises(RefusaldirError, match=r"no tables of figures.*--json"):
        long_csv({"path": "base.h5"})
