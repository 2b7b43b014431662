"""Pages to try: a full one of made-up drift and really compared behaviour, a bare one, a series."""

import json
import math
from dataclasses import replace

import linked
import pytest
import simulated

from refusaldir.probes.comparison import compare_runs
from refusaldir.probes.link.runs import link_runs
from refusaldir.probes.run import ProbeRun
from refusaldir.report.document import build_document, to_json
from refusaldir.report.html import Material, page

#: What names, categories and texts of others may hold.
HOSTILE = (
    "x</script><script>window.broken=1</script><img src=x onerror=window.broken=2>\u202e\x1b[31m"
)


def hostile(run: ProbeRun) -> ProbeRun:
    """The run, with a hostile category, prompt and response in its first rows."""
    rows = [
        replace(row, category=HOSTILE, prompt=HOSTILE + " PROMPT", response=HOSTILE + " RESPONSE")
        if row.category == "category 0"
        else row
        for row in run.single.rows
    ]
    return replace(run, single=replace(run.single, rows=tuple(rows)))


@pytest.fixture(scope="session")
def runs():
    """Two runs with projections, several replies a prompt and escalations in both modes."""
    found = linked.runs(categories=4, each=8, samples=3, turns=4, shift=-1.5, offset=-0.5)
    return tuple(map(hostile, found))


def view(method):
    """Points in a plane that move to the left."""
    names = [f"p{i}" for i in range(30)]
    base = [[math.cos(i) + 3 * (i % 2), math.sin(2 * i)] for i in range(30)]
    tuned = [[x - 0.5, y + 0.2] for x, y in base]
    ends = {"base": [0.0, 0.0], "tuned": [-0.5, 0.2]}
    axis = {"label": f"{method} axis", "share_base": 0.2, "share_tuned": 0.1, "share_change": 0.3}
    return {
        "site": {"hook": "resid_pre", "layer": 18, "position": -1},
        "method": method,
        "axes": [axis, axis],
        "points": {
            "id": names,
            "label": [i % 2 for i in range(30)],
            "base": base,
            "tuned": tuned,
        },
        "means": {"harmful": ends, "harmless": ends},
        "n": 576,
        "n_drawn": 30,
        "note": "",
    }


@pytest.fixture(scope="session")
def layers_document():
    return simulated.document(true=(0.0,) * 26 + (0.5, 0.3, 0.2, 0.0), heads=True)


@pytest.fixture(scope="session")
def full(drift, runs, layers_document):
    """Everything a page can show, with hostile strings in it."""
    base, tuned = runs
    compared = compare_runs(base, tuned, n_boot=50, link=link_runs(base, tuned))
    found = replace(drift(30), hook="resid_pre")
    document = json.loads(
        to_json(
            build_document(
                found,
                compared,
                options={"base": "org/base", "tuned": f"./{HOSTILE}", "seed": 0, "behaviour": True},
                created="2026-01-01T00:00:00+00:00",
            )
        )
    )
    document["tuned"]["model"]["name"] = HOSTILE
    document["drift"]["views"] = [view("direction"), view("pca")]
    return Material(name=HOSTILE, diff=document, layers=layers_document, base=base, tuned=tuned)


@pytest.fixture(scope="session")
def full_page(full):
    return page(full)


@pytest.fixture(scope="session")
def bare(drift):
    """Geometry alone."""
    document = json.loads(to_json(build_document(drift(3), None, options={"seed": 0})))
    return Material(name="tuned", diff=document)


@pytest.fixture(scope="session")
def trajectory(full):
    """Return a maker of the trajectory document of checkpoints by name and step."""
    layer = full.diff["drift"]["layers"][20]
    nothing = ("angle_band", "rotation_band", "refusal", "over_refusal")

    def make(steps):
        points = [
            {
                "name": name,
                "step": step,
                **{key: layer[key] for key in ("rotation", "angle", "shrinkage", "translation")},
                "d_prime_change": layer["d_prime_change"]["own"],
                **dict.fromkeys(nothing),
            }
            for name, step in steps.items()
        ]
        return {
            "base": full.diff["base"],
            "verdict": {"headline": "It went on.", "sentences": ["S."], "limits": ["L."]},
            "checkpoints": points,
            "first_rotation": list(steps)[-1],
            "level": 0.95,
            "link": None,
            "notes": [],
        }

    return make
