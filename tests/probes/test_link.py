"""Encoding and readout: planted shifts come out, parts sum exactly, intervals cover."""

import json

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit

from refusaldir.errors import ProbeError
from refusaldir.probes.link.mechanism import link_to_mechanism
from refusaldir.report.document import plain

#: P(refuse | z) = σ(INTERCEPT + SLOPE z) in base.
INTERCEPT, SLOPE = 0.5, 2.0


def pair(intents=60, shift=0.0, offset=0.0, seed=0, noise=0.4, same_luck=0.7):
    """Prompts in twins; tuned moves harmful prompts by `shift` and answers by another intercept."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(intents), 2)
    harmful = np.tile([True, False], intents)
    own = rng.normal(0, 0.5, intents)[ids]
    base = np.where(harmful, 1.2, -1.2) + own + rng.normal(0, 0.8, len(ids))
    tuned = base + np.where(harmful, shift, 0) + rng.normal(0, noise, len(ids))
    luck = rng.logistic(size=len(ids))
    other = np.where(rng.random(len(ids)) < same_luck, luck, rng.logistic(size=len(ids)))
    return {
        "base_z": base,
        "tuned_z": tuned,
        "base_refused": (INTERCEPT + SLOPE * base + luck > 0).tolist(),
        "tuned_refused": (INTERCEPT + offset + SLOPE * tuned + other > 0).tolist(),
        "harmful": harmful.tolist(),
        "intents": ids.tolist(),
    }


def planted_parts(data, offset):
    """Parts of the true curves at these projections."""
    z = [np.asarray(data[k])[data["harmful"]] for k in ("base_z", "tuned_z")]
    rate = [[expit(INTERCEPT + o + SLOPE * v).mean() for v in z] for o in (0.0, offset)]
    (bb, bt), (tb, tt) = rate
    return (bt - bb + tt - tb) / 2, (tb - bb + tt - bt) / 2


def inside(estimate, value):
    return estimate.lower <= value <= estimate.upper


def test_a_shift_of_the_projection_is_all_encoding():
    data = pair(600, shift=-1.0)
    parts = link_to_mechanism(**data).axis("refusal")
    encoding, readout = planted_parts(data, 0.0)
    assert encoding < -0.2 and readout == 0
    assert parts.encoding.value == pytest.approx(encoding, abs=0.04)
    assert parts.readout.value == pytest.approx(0, abs=0.04)
    assert parts.encoding.upper < -0.1 and inside(parts.readout, 0)


def test_another_answer_to_the_same_projection_is_all_readout():
    data = pair(600, offset=-2.0, noise=0.0)
    parts = link_to_mechanism(**data).axis("refusal")
    encoding, readout = planted_parts(data, -2.0)
    assert encoding == 0 and readout < -0.2
    assert parts.readout.value == pytest.approx(readout, abs=0.04)
    assert parts.encoding.value == pytest.approx(0, abs=1e-12)
    assert parts.readout.upper < -0.1


def test_both_at_once_come_apart():
    data = pair(600, shift=-0.7, offset=-1.0)
    parts = link_to_mechanism(**data).axis("refusal")
    encoding, readout = planted_parts(data, -1.0)
    assert parts.encoding.value == pytest.approx(encoding, abs=0.04)
    assert parts.readout.value == pytest.approx(readout, abs=0.04)


def test_parts_follow_from_two_fits_of_statsmodels():
    """An independent path: other fits, and the average over orders written out."""
    data = pair(80, shift=-0.8, offset=-0.8, seed=1)
    parts = link_to_mechanism(**data).axis("refusal")
    z = {"b": np.asarray(data["base_z"]), "t": np.asarray(data["tuned_z"])}
    y = {"b": data["base_refused"], "t": data["tuned_refused"]}
    fit = {m: sm.Logit(np.array(y[m], float), sm.add_constant(z[m])).fit(disp=0) for m in "bt"}
    side = np.array(data["harmful"])

    def rate(model, at):
        return float(fit[model].predict(sm.add_constant(z[at]))[side].mean())

    first = rate("b", "t") - rate("b", "b")  # encoding exchanged first, then readout
    last = rate("t", "t") - rate("t", "b")
    assert parts.encoding.value == pytest.approx((first + last) / 2, abs=1e-3)
    assert parts.readout.value == pytest.approx(
        rate("t", "t") - rate("b", "b") - (first + last) / 2, abs=1e-3
    )
    assert parts.rates["base_at_tuned"] == pytest.approx(rate("b", "t"), abs=1e-3)
    assert abs(first - last) > 0.01  # the orders differ, so that averaging matters


@pytest.mark.parametrize("seed", range(3))
def test_parts_sum_exactly(seed):
    found = link_to_mechanism(**pair(40, shift=-0.5, offset=-0.5, seed=seed))
    for parts in found.axes:
        total = parts.encoding.value + parts.readout.value
        assert total == pytest.approx(parts.modelled.value, abs=1e-14)
        implied = parts.rates["tuned_at_tuned"] - parts.rates["base_at_base"]
        assert total == pytest.approx(implied, abs=1e-14)
        assert total + parts.residual.value == pytest.approx(parts.observed.value, abs=1e-14)


def test_one_side_alone_leaves_no_residual():
    """A free intercept makes fitted and observed rates agree over the prompts of the fit."""
    data = pair(60, shift=-0.8, seed=2)
    side = [i for i, h in enumerate(data["harmful"]) if h]
    alone = link_to_mechanism(**{k: [v[i] for i in side] for k, v in data.items()})
    assert [parts.axis for parts in alone.axes] == ["refusal"]
    assert alone.axis("refusal").residual.value == pytest.approx(0, abs=1e-9)
    assert abs(link_to_mechanism(**data).axis("refusal").residual.value) > 1e-4


def test_exchanging_the_models_turns_every_sign():
    data = pair(40, shift=-0.6, offset=-0.4, seed=3)
    swapped = {
        **data,
        "base_z": data["tuned_z"], "tuned_z": data["base_z"],
        "base_refused": data["tuned_refused"], "tuned_refused": data["base_refused"],
    }  # fmt: skip
    there, back = (link_to_mechanism(**d).axis("refusal") for d in (data, swapped))
    for name in ("observed", "encoding", "readout", "residual"):
        a, b = getattr(there, name), getattr(back, name)
        assert a.value == pytest.approx(-b.value, abs=1e-9)
        assert a.lower == pytest.approx(-b.upper, abs=1e-9)


def test_units_of_the_projection_do_not_matter():
    data = pair(40, shift=-0.6, seed=4)
    moved = {**data, **{k: 7 - 100 * data[k] for k in ("base_z", "tuned_z")}}
    one, other = link_to_mechanism(**data), link_to_mechanism(**moved)
    assert other.axis("refusal").encoding.value == pytest.approx(
        one.axis("refusal").encoding.value, abs=1e-9
    )
    assert other.base.slope.value == pytest.approx(-one.base.slope.value / 100, rel=1e-6)


def test_the_same_model_twice_has_no_parts():
    data = pair(30)
    data["tuned_z"], data["tuned_refused"] = data["base_z"], data["base_refused"]
    for parts in link_to_mechanism(**data).axes:
        for estimate in (parts.encoding, parts.readout):
            assert estimate.value == pytest.approx(0, abs=1e-12)
            assert inside(estimate, 0)
        assert parts.observed.value == 0 and parts.observed.lower is None
        assert "the same in every intent" in parts.observed.note


def test_no_change_holds_zero_and_intervals_cover():
    """Nominal 95 %: over 60 comparisons, each part's interval holds the truth in 52 or more.

    The truth is that of the curves which both models share, so both parts are about 0; with
    chance 0.5 % a right interval fails 52 of 60.
    """
    held = {"encoding": 0, "readout": 0}
    for seed in range(60):
        parts = link_to_mechanism(**pair(40, noise=0.2, seed=seed)).axis("refusal")
        for name in held:
            held[name] += inside(getattr(parts, name), 0)
    assert min(held.values()) >= 52, held


def test_intervals_see_the_cluster_and_not_the_prompt():
    """Negative control: the same prompts four times over, in the same intents, add nothing."""
    data = pair(30, shift=-0.5, seed=5)
    copies = {k: np.tile(np.asarray(v), 4).tolist() for k, v in data.items()}
    once, four = (link_to_mechanism(**d).axis("refusal").readout for d in (data, copies))
    apart = {**copies, "intents": np.arange(len(copies["harmful"])).tolist()}
    wrong = link_to_mechanism(**apart).axis("refusal").readout
    assert four.n == once.n == 30
    assert four.upper - four.lower == pytest.approx(once.upper - once.lower, rel=0.05)
    assert wrong.upper - wrong.lower < 0.6 * (once.upper - once.lower)


@pytest.mark.parametrize(("answer", "said"), [(False, "no prompt was"), (True, "every prompt was")])
def test_a_model_with_one_answer_has_no_curve(answer, said):
    data = pair(20)
    data["tuned_refused"] = [answer] * 40
    found = link_to_mechanism(**data)
    parts = found.axis("refusal")
    assert found.tuned.probability == () and said in found.tuned.note
    assert parts.encoding.value is parts.readout.value is parts.residual.value is None
    assert parts.observed.value is not None and "curve" in parts.encoding.note
    assert parts.rates == {} and len(found.base.probability) == 61
    assert any(said in note for note in found.notes)


def test_a_constant_projection_has_no_curve():
    data = pair(20)
    data["base_z"] = np.full(40, 3.0)
    found = link_to_mechanism(**data)
    assert "the same for every prompt" in found.base.note
    assert found.axis("refusal").encoding.value is None


def test_an_outcome_of_a_single_intent_has_no_interval():
    data = pair(20)
    data["tuned_refused"] = [i == 0 for i in range(40)]
    encoding = link_to_mechanism(**data).axis("refusal").encoding
    assert encoding.value is not None and encoding.lower is None
    assert "single intent" in encoding.note


def test_separable_outcomes_are_said():
    data = pair(30)
    data["base_refused"] = (data["base_z"] > 0).tolist()
    found = link_to_mechanism(**data)
    assert found.base.separable and not found.tuned.separable
    assert "ridge" in found.base.note and np.isfinite(found.base.slope.value)
    assert found.axis("refusal").encoding.lower is not None


def test_extrapolation_is_said():
    found = link_to_mechanism(**pair(40, shift=-0.2))
    far = link_to_mechanism(**pair(40, shift=-9.0))
    assert found.extrapolated < 0.1 and not any("extended" in n for n in found.notes)
    assert far.extrapolated > 0.4 and any("extended" in n for n in far.notes)


def test_what_could_not_be_judged_is_left_out():
    data = pair(20, seed=6)
    fewer = {k: list(v)[:-3] for k, v in data.items()}
    for arm, i in (("base_refused", -1), ("tuned_refused", -2), ("tuned_refused", -3)):
        data[arm][i] = None
    found = link_to_mechanism(**data)
    assert (found.n, found.n_left_out) == (37, 3)
    assert found.axes == link_to_mechanism(**fewer).axes


def test_curves_are_of_their_intercept_and_slope():
    curve = link_to_mechanism(**pair(60, seed=7)).base
    z, p = np.array(curve.z), np.array(curve.probability)
    assert p == pytest.approx(expit(curve.intercept.value + curve.slope.value * z), abs=1e-5)
    assert np.all(np.array(curve.lower) <= p) and np.all(p <= np.array(curve.upper))
    assert inside(curve.slope, SLOPE) and inside(curve.intercept, INTERCEPT)


def test_it_becomes_json():
    found = link_to_mechanism(**pair(10))
    assert json.loads(json.dumps(plain(found.to_dict())))["axes"][0]["axis"] == "refusal"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("tuned_z", [0.0], "each prompt needs one value in every column (projections of tuned)"),
        ("harmful", [True], "(sides): expected 40 values, as there are intents, got 1"),
        ("base_z", [np.nan] * 40, "a projection is not finite (projections of base): got 40 of 40"),
        ("base_refused", [None] * 40, "got none of 40"),
    ],
)
def test_what_cannot_be_used_is_said(key, value, said):
    with pytest.raises(ProbeError) as error:
        link_to_mechanism(**{**pair(20), key: value})
    assert said in str(error.value)


def with_groups(data, kinds=4):
    return {**data, "groups": [f"g{i % kinds}" for i in data["intents"]]}


def test_groups_read_the_curves_of_all_and_make_up_the_axis():
    data = with_groups(pair(80, shift=-0.6, offset=-0.5, seed=8))
    found, plain = link_to_mechanism(**data), link_to_mechanism(**pair(80, -0.6, -0.5, seed=8))
    assert found.axes == plain.axes and plain.groups == ()
    assert [(g.axis, g.group) for g in found.groups[:2]] == [("refusal", "g0"), ("refusal", "g1")]
    assert len(found.groups) == 8 and found.group("refusal", "g9") is None
    own = [found.group("refusal", f"g{k}") for k in range(4)]
    for name in ("observed", "encoding", "readout", "residual", "shift"):
        total = sum(g.n * getattr(g, name).value for g in own) / sum(g.n for g in own)
        assert total == pytest.approx(getattr(found.axis("refusal"), name).value, abs=1e-12)
    assert all(g.encoding.n == 20 for g in own)


def test_a_group_that_moved_alone_is_the_one_with_encoding():
    data = with_groups(pair(200, seed=9))
    there = np.array(data["harmful"]) & (np.array(data["groups"]) == "g2")
    data["tuned_z"] = data["base_z"] - 1.5 * there
    luck = np.random.default_rng(10).logistic(size=400)
    for arm in ("base", "tuned"):
        data[f"{arm}_refused"] = (INTERCEPT + SLOPE * data[f"{arm}_z"] + luck > 0).tolist()
    found = link_to_mechanism(**data)
    moved, still = found.group("refusal", "g2"), found.group("refusal", "g1")
    assert moved.encoding.upper < -0.2 and moved.shift.value == pytest.approx(-1.5)
    assert inside(still.encoding, 0) and still.encoding.value == pytest.approx(0, abs=1e-12)
    assert inside(moved.readout, 0)


def test_a_group_answered_in_its_own_way_shows_in_its_residual():
    """Negative control for the common curves: they must not take a group's own change."""
    data = with_groups(pair(400, seed=11, noise=0.0, same_luck=1.0), kinds=8)
    there = np.array(data["harmful"]) & (np.array(data["groups"]) == "g3")
    data["tuned_refused"] = (np.array(data["tuned_refused"]) & ~there).tolist()
    found = link_to_mechanism(**data)
    assert found.group("refusal", "g3").residual.upper < -0.3
    assert abs(found.group("refusal", "g4").residual.value) < 0.2


def test_a_group_of_one_intent_has_no_interval():
    data = pair(20)
    data["groups"] = ["alone" if i == 0 else "rest" for i in data["intents"]]
    parts = link_to_mechanism(**data).group("refusal", "alone")
    assert parts.n == 1 and parts.encoding.value is not None and parts.encoding.lower is None
    assert "one intent only" in parts.encoding.note


@pytest.mark.slow
def test_intervals_of_small_groups_cover():
    """Nominal 95 %: 12 groups of 8 intents in 60 comparisons; at least 92 % hold the truth."""
    held, of = {"encoding": 0, "readout": 0}, 0
    truth = planted_parts(pair(100_000, shift=-0.6, offset=-0.6, seed=1), -0.6)
    for seed in range(60):
        found = link_to_mechanism(**with_groups(pair(96, -0.6, -0.6, seed=seed), kinds=12))
        for g in found.groups[:12]:
            of += 1
            for name, true in zip(held, truth, strict=True):
                held[name] += inside(getattr(g, name), true)
    assert min(held.values()) >= 0.92 * of, (held, of)


def test_a_share_counts_as_its_replies_and_weighs_one_prompt():
    """Sampled replies: shares give the curve that rows repeated within their intent give."""
    rng = np.random.default_rng(12)
    data = pair(40, shift=-0.5, seed=12)
    shares = {}
    for arm in ("base", "tuned"):
        p = expit(INTERCEPT + SLOPE * data[f"{arm}_z"])
        shares[arm] = rng.binomial(4, p) / 4
    found = link_to_mechanism(
        **{**data, **{f"{arm}_refused": share.tolist() for arm, share in shares.items()}}
    )
    repeated = {k: np.repeat(np.asarray(v), 4).tolist() for k, v in data.items()}
    for arm, share in shares.items():
        replies = np.arange(4)[None] < (4 * share)[:, None]
        repeated[f"{arm}_refused"] = replies.ravel().tolist()
    rows = link_to_mechanism(**repeated)
    for name in ("observed", "encoding", "readout"):
        a, b = (getattr(link.axis("refusal"), name) for link in (found, rows))
        assert a.value == pytest.approx(b.value, abs=1e-3)
        assert a.upper - a.lower == pytest.approx(b.upper - b.lower, rel=0.02)
    fit = sm.GLM(
        shares["base"], sm.add_constant(np.asarray(data["base_z"])), family=sm.families.Binomial()
    ).fit()
    assert found.base.slope.value == pytest.approx(fit.params[1], rel=5e-3)


def test_refusal_that_does_not_hang_on_the_projection_is_said():
    data = pair(40, seed=13)
    luck = np.random.default_rng(14).random(80) < 0.5
    data["base_refused"] = luck.tolist()
    notes = link_to_mechanism(**data).notes
    assert any(n.startswith("base: refusal does not detectably depend") for n in notes)
    assert not any("detectably" in n for n in link_to_mechanism(**pair(40, seed=13)).notes)


def test_the_histogram_counts_every_prompt_once():
    found = link_to_mechanism(**pair(40, seed=15))
    for model in ("base", "tuned"):
        sides = getattr(found.histogram, model)
        assert {side: sum(counts) for side, counts in sides.items()} == {
            "harmful": 40,
            "harmless": 40,
        }
    assert len(found.histogram.edges) == 31


def test_a_share_beyond_one_is_refused():
    with pytest.raises(ProbeError, match="between 0 and 1"):
        link_to_mechanism(**{**pair(20), "base_refused": [2.0] * 40})
