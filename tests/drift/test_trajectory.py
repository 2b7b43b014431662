"""Checkpoints against one base: bands over all of them, and when drift is first found."""

import numpy as np
import pytest

from refusaldir.drift.contrasts import Contrasts, Design
from refusaldir.drift.layer_result import ByClass
from refusaldir.drift.rotation import angle, rotation
from refusaldir.drift.trajectory import Checkpoint, trajectory
from refusaldir.records import Estimate, Site
from refusaldir.statistics import Clusters

SITE = Site(hook="resid_pre", layer=2, position=-1)
D = 16


def design(n):
    """Matched intents: one harmful and one harmless prompt each."""
    labels = np.tile([0, 1], n)
    clusters = Clusters.of([i // 2 for i in range(2 * n)], labels)
    return Design(labels, clusters, clusters.folds(4, 0))


def series(degrees, *, n=24, noise=0.5, step_noise=0.1, rng):
    """Checkpoints whose true direction is turned by these angles; noise is mostly shared."""
    plan = design(n)
    axes = np.eye(D)
    y = plan.labels - 0.5
    shared = noise * rng.standard_normal((2 * n, D))
    base = shared + 4 * y[:, None] * axes[0]
    points = []
    for i, turn in enumerate(np.radians(degrees)):
        r = np.cos(turn) * axes[0] + np.sin(turn) * axes[1]
        tuned = shared + step_noise * rng.standard_normal((2 * n, D)) + 4 * y[:, None] * r
        cos, own = rotation(Contrasts.of(plan, base, tuned))
        points.append(point(cos, own, name=f"checkpoint-{i}", step=100 * i))
    return points


def point(cos, own, *, name="checkpoint-1", step=1, detected=()):
    flat = Estimate(value=0.0, lower=-0.1, upper=0.1, n=24)
    return Checkpoint(
        name=name,
        step=step,
        rotation=cos,
        angle=angle(cos),
        shrinkage=Estimate(value=1.0, lower=0.9, upper=1.1, n=24),
        translation=ByClass(harmful=flat, harmless=flat),
        d_prime_change=flat,
        detected=tuple(detected),
        deviations=own,
    )


def test_the_first_checkpoint_that_turned_is_found_and_the_bands_hold_the_truth():
    truth = [0, 0, 20, 40]
    found = trajectory(SITE, series(truth, rng=np.random.default_rng(0)))
    assert found.first_rotation == 2
    for degrees, single, band in zip(truth, found.checkpoints, found.angle_bands, strict=True):
        assert band.lower <= degrees <= band.upper or degrees == 0
        assert band.lower <= single.angle.lower + 1e-9
        assert band.upper >= single.angle.upper - 1e-9
    assert "checkpoint-2" in found.sentences[0] and "over 4 checkpoints" not in found.sentences[1]
    assert "each checkpoint taken by itself" in found.sentences[1]
    assert "At the last, checkpoint-3, the direction is rotated by 39.0°" in found.sentences[2]


def test_no_rotation_is_found_in_a_series_without_any():
    """At most the nominal share of series, over all of their checkpoints together."""
    rng = np.random.default_rng(1)
    wrong = sum(
        trajectory(SITE, series([0] * 4, rng=rng), draws=300).first_rotation is not None
        for _ in range(200)
    )
    assert wrong <= 18  # 5 % of 200 and two standard errors and a half


def test_single_intervals_would_find_it_too_often():
    """Negative control: without the band, some of many checkpoints stands out by chance alone."""
    rng = np.random.default_rng(2)
    single = band = 0
    for _ in range(60):
        points = series([10] * 8, rng=rng, step_noise=1.0)
        found = trajectory(SITE, points, draws=300)
        truth = np.cos(np.radians(10))

        def misses(e, truth=truth):
            return not e.lower <= truth <= e.upper

        single += any(misses(p.rotation) for p in points)
        band += any(map(misses, found.bands))
    assert band < single
    assert band <= 8 < single


def test_a_checkpoint_without_an_estimate_has_no_band_and_the_others_do():
    points = series([0, 30], rng=np.random.default_rng(3))
    absent = Estimate(value=None, n=24, note="no signal")
    found = trajectory(SITE, [point(absent, None, name="lost"), *points])
    assert found.bands[0] is None and found.first_rotation == 2
    alone = trajectory(SITE, [point(absent, None, name="lost")])
    assert alone.bands == (None,) and "cannot be estimated at any" in alone.sentences[0]
    assert "cannot be estimated" in alone.sentences[2]


def test_findings_of_single_checkpoints_are_named():
    points = series([0, 0], rng=np.random.default_rng(4))
    later = point(
        points[1].rotation, points[1].deviations, name="later", detected=("norm", "rotation")
    )
    found = trajectory(SITE, [points[0], later])
    assert found.first_drift == 1
    assert found.sentences[1].startswith("The first checkpoint with any drift at the site is later")
    assert "norm, rotation" in found.sentences[1]
    assert "would have gone unseen" in found.sentences[0]


def test_the_same_seed_gives_the_same_bands():
    points = series([0, 10, 20], rng=np.random.default_rng(5))
    one, two = (trajectory(SITE, points, seed=7).to_dict() for _ in range(2))
    assert one == two
    other = trajectory(SITE, points, seed=8).to_dict()
    assert one["checkpoints"][2]["rotation_band"] == pytest.approx(
        other["checkpoints"][2]["rotation_band"], abs=0.02
    )
