import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from refusaldir.directions.site import choose_site
from refusaldir.errors import CaptureError, DirectionError


def boost(capture, layer, position, factor, y):
    """Add more of the class difference at one site."""
    values = capture.values["resid_pre"].astype(np.float64)
    x = values[:, layer, position]
    gap = x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0)
    values[:, layer, position] += factor * (y[:, None] - 0.5) * gap
    return capture.mapped(lambda _: values)


@pytest.mark.parametrize("layer, position", [(1, -2), (2, -1), (3, -2)])
@pytest.mark.parametrize("split", [False, True])
def test_finds_the_site_that_separates_best(plant, layer, position, split):
    base, _ = plant(layers=4, norm=2.0, split=split)
    base = boost(base, layer, position, 1.5, base.labels)
    choice = choose_site(base, "resid_pre", layers=range(4))
    assert (choice.site.layer, choice.site.position) == (layer, position)
    row, column = choice.layers.index(layer), choice.positions.offsets.index(position)
    assert choice.d_prime[row, column] == choice.d_prime.max()
    assert ("validation" in choice.method) == split


def test_the_last_fifth_of_the_depth_is_not_searched_unless_asked(plant):
    base, _ = plant(layers=5, norm=2.0)
    base = boost(base, 4, -1, 2.0, base.labels)
    assert choose_site(base, "resid_pre").layers == (0, 1, 2, 3)
    assert choose_site(base, "resid_pre", layers=range(5)).site.layer == 4
    values = base.values["resid_pre"].copy()
    values[:, :4] = 1.0
    only_late = base.mapped(lambda _: values)
    assert choose_site(only_late, "resid_pre").site.layer == 4


def test_layer_zero_is_no_signal_and_never_nan(plant):
    choice = choose_site(plant()[0], "resid_pre")
    assert not choice.signal[0].any() and choice.signal[1:].all()
    np.testing.assert_array_equal(choice.d_prime[0], 0)
    np.testing.assert_array_equal(choice.auroc[0], 0.5)
    for table in (choice.d_prime, choice.auroc, choice.norm):
        assert np.isfinite(table).all()
    json.dumps(choice.to_dict(), allow_nan=False)


def test_no_signal_anywhere_is_an_error_that_says_so(plant):
    base, _ = plant()
    with pytest.raises(DirectionError, match="no site carries any signal"):
        choose_site(base.mapped(lambda v: np.ones_like(v)), "resid_pre")
    with pytest.raises(DirectionError, match="no site carries any signal"):
        choose_site(base, "resid_pre", layers=[0])


def test_validation_scores_by_an_independent_path(plant):
    base, _ = plant(norm=1.0, split=True)
    choice = choose_site(base, "resid_pre", layers=range(3))
    split = np.array([p.split for p in base.prompts])
    y = base.labels
    x = base.values["resid_pre"][:, 2, 1].astype(np.float64)
    train, held = split == "train", split == "validation"
    r = x[train & (y == 1)].mean(0) - x[train & (y == 0)].mean(0)
    scores = x[held] @ r
    assert choice.auroc[2, 1] == pytest.approx(roc_auc_score(y[held], scores))
    one, zero = scores[y[held] == 1], scores[y[held] == 0]
    expected = (one.mean() - zero.mean()) / np.sqrt((one.var(ddof=1) + zero.var(ddof=1)) / 2)
    assert choice.d_prime[2, 1] == pytest.approx(expected)
    assert choice.norm[2, 1] == pytest.approx(np.linalg.norm(r))
    assert (choice.n_train, choice.n_scored) == (int(train.sum()), int(held.sum()))


def test_folds_score_by_an_independent_path(plant):
    base, _ = plant(norm=1.0, intents=12)
    choice = choose_site(base, "resid_pre", folds=4, seed=5)
    from refusaldir.directions.reader import clusters_of

    y = base.labels
    fold = clusters_of(base.prompts, y).folds(4, 5)
    x = base.values["resid_pre"][:, 1, 0].astype(np.float64)
    scores = np.empty(len(y))
    for i in range(len(y)):
        train = fold != fold[i]
        one, zero = x[train & (y == 1)].mean(0), x[train & (y == 0)].mean(0)
        scores[i] = (x[i] - (one + zero) / 2) @ (one - zero) / np.linalg.norm(one - zero)
    assert choice.auroc[1, 0] == pytest.approx(roc_auc_score(y, scores))
    assert "4 folds" in choice.method


def test_prompt_order_and_scale_do_not_matter(plant):
    base, _ = plant(norm=2.0)
    order = np.random.default_rng(0).permutation(len(base.prompts))
    one, other = choose_site(base, "resid_pre"), choose_site(base.reordered(order), "resid_pre")
    np.testing.assert_allclose(one.d_prime, other.d_prime, rtol=1e-9)
    assert one.site == other.site
    scaled = choose_site(base.mapped(lambda v: v * 64), "resid_pre")
    np.testing.assert_allclose(one.d_prime, scaled.d_prime, rtol=1e-6)
    assert scaled.norm[1, 0] == pytest.approx(64 * one.norm[1, 0], rel=1e-6)


def test_a_rotation_of_the_stream_does_not_matter(plant):
    base, _ = plant(norm=2.0)
    q = np.linalg.qr(np.random.default_rng(1).standard_normal((24, 24)))[0]
    one, other = (choose_site(c, "resid_pre") for c in (base, base.mapped(lambda v: v @ q)))
    np.testing.assert_allclose(one.d_prime[1:], other.d_prime[1:], rtol=1e-4)


def test_equal_sites_go_to_the_earlier_layer(plant):
    base, _ = plant(layers=3, pos=1)
    values = base.values["resid_pre"]
    values[:, 2] = values[:, 1]
    assert choose_site(base, "resid_pre").site.layer == 1


def test_pure_noise_gives_scores_about_one_half(plant):
    base, _ = plant(norm=0.0, d=64, layers=21, pos=1)
    choice = choose_site(base, "resid_pre")
    assert abs(choice.auroc[1:].mean() - 0.5) < 0.06


def test_restricting_positions_and_layers(plant):
    base, _ = plant(layers=4, pos=3)
    choice = choose_site(base, "resid_pre", positions=[-3], layers=[1, 2])
    assert choice.site.position == -3 and choice.site.layer in (1, 2)
    assert choice.d_prime.shape == (2, 1)
    for wrong in ({"positions": [-9]}, {"layers": [7]}):
        with pytest.raises(DirectionError, match="not captured"):
            choose_site(base, "resid_pre", **wrong)
    with pytest.raises(DirectionError, match="hook was not captured"):
        choose_site(base, "mlp_out")


def test_few_intents_and_bad_shapes_are_refused(plant):
    with pytest.raises(DirectionError, match="at least 4 harmful intents"):
        choose_site(plant(intents=3)[0], "resid_pre")
    base, _ = plant()
    base.values["resid_pre"] = base.values["resid_pre"][:-1]
    with pytest.raises(CaptureError, match="another shape"):
        choose_site(base, "resid_pre")
