import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from refusaldir.drift.compare import compare
from refusaldir.drift.verdict import QUESTIONS, question_level
from refusaldir.errors import CaptureError, CaptureMismatchError, DirectionError


def finding(result, kind):
    return next(f for f in result.findings if f.kind == kind)


@pytest.fixture(name="drifted")
def drifted_fixture(plant):
    return compare(*plant(degrees=40, ratio=0.7, shift=(0.0, -2.0), shared=0.5, topic=0.5))


def test_result_has_a_row_per_layer_and_a_cell_per_site(drifted):
    assert [row.site.layer for row in drifted.layers] == [0, 1, 2]
    assert {row.site.position for row in drifted.layers} == {drifted.site.site.position}
    assert [(c.site.layer, c.site.position) for c in drifted.grid] == [
        (layer, p) for layer in range(3) for p in (-2, -1)
    ]
    for row in drifted.layers:
        cell = next(c for c in drifted.grid if c.site == row.site)
        assert cell.rotation == row.rotation
    assert (drifted.n_prompts, drifted.n_harmful, drifted.n_clusters) == (80, 40, 40)
    assert drifted.at_site.site == drifted.site.site


def test_all_kinds_of_drift_are_found_and_said(drifted):
    assert all(f.detected for f in drifted.findings)
    assert "rotated" in drifted.verdict[0]
    text = " ".join(drifted.verdict)
    for words in ("rotated by", "shrank to", "Harmful prompts moved towards the harmless side"):
        assert words in text
    assert "less separable along the base direction" in text
    assert "not which layer's weights caused it" in text


def test_findings_hold_together_and_rows_singly(drifted):
    assert len(drifted.findings) == QUESTIONS
    e = finding(drifted, "rotation").estimate
    assert e.level == question_level(0.95) > 0.95
    row = drifted.at_site.rotation
    assert row.level == 0.95
    assert e.value == row.value and e.lower < row.lower


def test_document_is_json_with_the_fields_that_reports_read(drifted):
    document = json.loads(json.dumps(drifted.to_dict(), allow_nan=False))
    row = document["layers"][1]
    assert row["layer"] == 1
    assert row["raw_cosine"] == row["rotation_raw"]["value"]
    assert set(row["auroc"]) == {
        "base_direction_on_base",
        "base_direction_on_tuned",
        "tuned_direction_on_base",
        "tuned_direction_on_tuned",
    }
    for figure in ("rotation", "shrinkage", "relative_change", "cka"):
        assert {"value", "lower", "upper", "n", "level", "method", "note"} <= set(row[figure])
    assert document["ranking"][0]["rank"] == 1
    assert document["base"]["model"]["name"] == "base"


class TestNoDrift:
    def test_identical_captures(self, plant):
        base, _ = plant()
        result = compare(base, base)
        assert "identical" in result.verdict[0]
        assert not any(f.detected for f in result.findings)
        assert any("to itself" in note for note in result.notes)

    def test_same_geometry_and_fresh_noise_is_rarely_called_drift(self, plant):
        """The findings hold together at 95 %: false alarms are few, and never say 'safe'."""
        alarms = 0
        for seed in range(40):
            result = compare(*plant(seed=seed, shared=0.5, intents=24, layers=2, pos=1))
            hit = [f.kind for f in result.findings if f.detected]
            alarms += bool(hit)
            if not hit:
                assert "No detectable drift" in result.verdict[0]
                assert "not evidence of safety" in result.verdict[0]
                assert "would have gone unseen" in finding(result, "rotation").sentence
        assert alarms <= 6

    def test_run_to_run_rounding_is_not_drift(self, plant):
        base, _ = plant()
        rng = np.random.default_rng(0)
        tuned = base.mapped(lambda v: v * (1 + 1e-6 * rng.standard_normal(v.shape)))
        result = compare(base, replace(tuned, provenance=base.provenance))
        assert not any(f.detected for f in result.findings)


class TestSite:
    def test_the_site_depends_on_base_alone(self, plant):
        base, tuned = plant(layers=4, pos=3, norm=2.0)
        wild = tuned.mapped(lambda v: v[..., ::-1] * 7 + 1)
        assert compare(base, tuned).site.site == compare(base, wild).site.site

    def test_a_position_may_be_asked_for(self, plant):
        result = compare(*plant(pos=3), position=-3)
        assert result.site.site.position == -3
        assert {row.site.position for row in result.layers} == {-3}
        with pytest.raises(DirectionError, match="position was not captured"):
            compare(*plant(), position=-9)


def test_prompts_in_another_order_give_the_same_figures(plant):
    base, tuned = plant(degrees=30)
    order = np.random.default_rng(0).permutation(80)
    one, other = compare(base, tuned), compare(base, tuned.reordered(order))
    assert other.layers == one.layers
    assert "aligned by id" in other.notes[0]


def test_mismatch_is_refused_before_anything_is_read(plant):
    base, tuned = plant()
    bad = replace(tuned, provenance=replace(tuned.provenance, rendered_hash="x"), values={})
    with pytest.raises(CaptureMismatchError):
        compare(base, bad)


class TestRanking:
    def layered(self, plant, degrees):
        """Layers with different angles: layer 0 without signal, then as given."""
        pairs = [plant(degrees=a, layers=len(degrees) + 1, shared=0.5) for a in degrees]
        base, tuned = pairs[0]
        values = tuned.values["resid_pre"].copy()
        for i, (_, other) in enumerate(pairs, start=1):
            values[:, i] = other.values["resid_pre"][:, i]
        return base, tuned.mapped(lambda _: values)

    def test_finds_where_drift_appears_and_grows(self, plant):
        base, tuned = self.layered(plant, [0, 0, 15, 60, 62])
        result = compare(base, tuned)
        assert [entry.layer for entry in result.ranking][:2] in ([5, 4], [4, 5])
        assert {entry.layer for entry in result.ranking} == {1, 2, 3, 4, 5}
        first = next(e for e in result.ranking if e.layer == 1)
        jump = next(e for e in result.ranking if e.layer == 4)
        assert first.increment is None
        assert jump.increment.lower > 0
        assert "first detectable at layer 3" in result.verdict[-1]
        assert "grows most on the way into layer 4" in result.verdict[-1]
        assert "cannot tell which layer was changed" in result.ranking_rule

    def test_bands_are_wider_than_single_intervals(self, plant):
        base, tuned = self.layered(plant, [10, 20, 30, 40])
        result = compare(base, tuned)
        for entry in result.ranking:
            row = result.layers[entry.layer].rotation
            assert entry.drift.value == pytest.approx(1 - row.value)
            assert entry.drift.upper - entry.drift.lower > row.upper - row.lower
            assert "max-statistic" in entry.drift.method

    def test_seed_decides_the_bands(self, plant):
        pair = plant(degrees=20, layers=4)
        assert compare(*pair, seed=1).ranking == compare(*pair, seed=1).ranking
        assert compare(*pair, seed=1).ranking != compare(*pair, seed=2).ranking

    def test_no_layer_with_signal_to_rank(self, plant):
        base, tuned = plant()
        dead = tuned.mapped(lambda v: np.ones_like(v))
        result = compare(base, dead)
        assert result.ranking == ()
        assert "Nothing can be said" in result.verdict[0] or any(
            f.detected is None for f in result.findings
        )
        json.dumps(result.to_dict(), allow_nan=False)


def test_few_intents_are_noted_and_too_few_refused(plant):
    assert any("only 8 intents" in note for note in compare(*plant(intents=8)).notes)
    with pytest.raises(DirectionError, match="at least 8"):
        compare(*plant(intents=3))


def test_one_layer_of_each_capture_is_read_at_a_time(plant):
    base, tuned = plant(layers=4)
    reads = []
    for capture, name in ((base, "base"), (tuned, "tuned")):
        original = capture.read

        def read(hook, *, layer, original=original, name=name):
            reads.append((name, layer))
            return original(hook, layer=layer)

        capture.read = read
    site = compare(base, tuned).site.site
    walk = [(name, i) for i in range(4) for name in ("base", "tuned")]
    again = [(name, site.layer) for name in ("base", "tuned")]
    assert reads == [("base", i) for i in range(3)] + walk + again


def test_progress_counts_layers(plant):
    seen = []
    compare(*plant(layers=3), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_torch_is_never_imported():
    code = (
        "import sys, refusaldir.drift.compare, refusaldir.directions.mean_diff; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'sklearn', 'h5py')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestDamagedInput:
    @pytest.mark.parametrize("which", ["base", "tuned", "both"])
    def test_a_layer_without_any_variance_says_no_signal_and_harms_no_other(self, plant, which):
        base, tuned = plant(degrees=30, layers=4)
        for name, capture in (("base", base), ("tuned", tuned)):
            if which in (name, "both"):
                capture.values["resid_pre"][:, 2] = 1.0
        result = compare(base, tuned, draws=50)
        row = result.layers[2]
        assert not row.signal and row.rotation.value is None and "no signal" in row.rotation.note
        assert result.layers[1].rotation.value is not None
        json.dumps(result.to_dict(), allow_nan=False)

    def test_activations_that_are_all_the_same(self, plant):
        base, tuned = plant()
        flat = base.mapped(lambda v: np.ones_like(v))
        with pytest.raises(DirectionError, match="no site carries any signal"):
            compare(flat, tuned)

    @pytest.mark.parametrize("which", ["base", "tuned"])
    def test_one_nan_is_refused_with_its_place(self, plant, which):
        captures = dict(zip(("base", "tuned"), plant(layers=3), strict=True))
        captures[which].values["resid_pre"][7, 2, 0, 3] = np.nan
        with pytest.raises(CaptureError, match=r"1 NaN or infinite") as caught:
            compare(captures["base"], captures["tuned"])
        assert "resid_pre.2" in str(caught.value)
