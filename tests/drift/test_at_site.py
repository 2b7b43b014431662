"""Drift at one site equals what the whole comparison says there."""

import pytest

import refusaldir as rd
from refusaldir.drift.at_site import drift_at
from refusaldir.drift.compare import compare
from refusaldir.errors import DirectionError
from refusaldir.records import Site


def test_it_is_the_row_of_the_whole_comparison(
    base_model, tuned_model, prompt_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("REFUSALDIR_CACHE", str(tmp_path / "cache"))
    paths = [
        rd.extract(str(model), prompts=prompt_file, hooks=["resid_post"], out=tmp_path / name).path
        for model, name in ((base_model, "base.h5"), (tuned_model, "tuned.h5"))
    ]
    with rd.Capture.open(paths[0]) as base, rd.Capture.open(paths[1]) as tuned:
        whole = compare(base, tuned, hook="resid_post", seed=3)
        row, deviations = drift_at(base, tuned, whole.site.site, seed=3)
        assert row == whole.at_site
        assert deviations.variance == whole.deviations.variance
        assert (deviations.first == whole.deviations.first).all()
        with pytest.raises(DirectionError, match="not captured"):
            drift_at(base, tuned, Site(hook="resid_post", layer=9, position=-1))
