"""The decomposition on made-up contributions whose answer is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from refusaldir.errors import CaptureError, CaptureMismatchError, PromptError
from refusaldir.layers.residual.components import Contributions, HeadContributions
from refusaldir.layers.residual.decomposition import decompose
from refusaldir.records import Site
from refusaldir.statistics import Clusters, mean

SITE = Site(hook="resid_pre", layer=3, position=-1)
#: True mean changes, harmless and harmful, of embed, attn 0 … 2, mlp 0 … 2.
TRUE = np.array([[0, 0, 0.5, 0, 0, 1, 0], [0, 0, -1.5, 0, 2, 1, 0]])
N_INTENTS = 60


def made(table, site=SITE):
    """Contributions with the columns embed, attn, mlp, that close exactly."""
    return Contributions(
        site=site,
        direction=np.eye(4)[0],
        rendered_hash="one",
        embed=table[:, 0],
        attn=table[:, 1:4],
        mlp=table[:, 4:],
        resid=table.sum(axis=1),
        rounding=np.full(len(table), 1e-7),
    )


def draw(seed, *, paired=True, noise=1.0):
    """Four prompts an intent, two of each class, that share the intent's noise."""
    rng = np.random.default_rng(seed)
    intents = np.repeat(np.arange(N_INTENTS), 4)
    labels = np.tile([0, 1, 0, 1], N_INTENTS)
    if not paired:  # an intent is harmful or harmless as a whole
        labels = (intents % 2).astype(np.int64)
    n = len(labels)
    change = TRUE[labels] + noise * (
        rng.standard_normal((N_INTENTS, 2, 7))[intents, labels] + 0.5 * rng.standard_normal((n, 7))
    )
    base = rng.standard_normal((n, 7)) * 3
    return made(base), made(base + change), labels, intents


def decomposed(seed=0, **options):
    base, tuned, labels, intents = draw(seed, **options)
    return decompose(base, tuned, labels, Clusters.of(intents.tolist(), labels))


def test_known_changes_are_found_in_the_order_of_the_forward_pass():
    result = decomposed(noise=1e-9)
    names = [(t.component, t.layer) for t in result.terms]
    assert names == [("embed", None), *((c, j) for j in range(3) for c in ("attn", "mlp"))]
    columns = [0, 1, 4, 2, 5, 3, 6]
    for attribute, true in (
        ("harmless", TRUE[0]),
        ("harmful", TRUE[1]),
        ("difference", TRUE[1] - TRUE[0]),
    ):
        got = [getattr(t, attribute).pointwise.value for t in result.terms]
        np.testing.assert_allclose(got, true[columns], atol=1e-8)
        curve = [getattr(t, attribute).pointwise.value for t in result.cumulative]
        np.testing.assert_allclose(curve, np.cumsum(true[columns])[[0, 2, 4, 6]], atol=1e-8)
        assert getattr(result.total, attribute).value == pytest.approx(true.sum(), abs=1e-8)
    assert [(t.component, t.layer) for t in result.cumulative] == [
        ("resid_pre", layer) for layer in range(4)
    ]
    assert (result.n_harmful, result.n_harmless) == (120, 120)


def with_heads(contributions, share):
    """Attention split by shares ``[layer head]``; what the shares leave of it is the bias."""
    values = contributions.attn[:, :, None] * share
    return replace(
        contributions,
        heads=HeadContributions(
            values=values,
            bias=contributions.attn - values.sum(axis=2),
            rounding=np.zeros_like(contributions.attn),
        ),
    )


def test_known_changes_are_found_by_head():
    share = np.array([[1, 0], [0.25, 0.75], [0.5, 0.3]])
    base, tuned, labels, intents = draw(0)
    clusters = Clusters.of(intents.tolist(), labels)
    plain = decompose(base, tuned, labels, clusters)
    assert plain.heads is None
    result = decompose(with_heads(base, share), with_heads(tuned, share), labels, clusters)
    assert replace(result, heads=None) == plain
    by_head = result.heads
    assert [(t.component, t.layer, t.head) for t in by_head.terms] == [
        ("attn", layer, head) for layer in range(3) for head in range(2)
    ]
    assert [(t.component, t.layer, t.head) for t in by_head.bias] == [("attn_bias", 2, None)]
    assert by_head.closing.relative < 1e-12
    attn = [t for t in plain.terms if t.component == "attn"]
    for which in ("harmful", "harmless", "difference"):
        for term in by_head.terms:
            whole = getattr(attn[term.layer], which).pointwise
            part = getattr(term, which)
            by = share[term.layer, term.head]
            got = (part.pointwise.value, part.pointwise.lower, part.pointwise.upper)
            assert got == pytest.approx((by * whole.value, by * whole.lower, by * whole.upper))
            assert part.simultaneous.method.endswith("over 6 heads")
            if by:  # wider, so that all of them are inside at once
                assert part.simultaneous.upper > part.pointwise.upper
        bias = getattr(by_head.bias[0], which).pointwise.value
        assert bias == pytest.approx(0.2 * getattr(attn[2], which).pointwise.value)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["heads"]["terms"][3]["head"] == 1 and data["terms"][1]["head"] is None


def test_refuses_heads_that_do_not_add_up_to_attention():
    share = np.array([[1, 0], [0.25, 0.75], [0.5, 0.5]])
    base, tuned, labels, intents = draw(0)
    clusters = Clusters.of(intents.tolist(), labels)
    base, tuned = with_heads(base, share), with_heads(tuned, share)
    size = np.abs(tuned.heads.values - base.heads.values)[5, 1].sum()

    def moved(by, rounding=0.0):
        values = tuned.heads.values.copy()
        values[5, 1, 0] += by
        spread = np.full_like(tuned.heads.rounding, rounding)
        return replace(tuned, heads=replace(tuned.heads, values=values, rounding=spread))

    closing = decompose(base, moved(0.5e-4 * size), labels, clusters).heads.closing
    assert closing.relative == pytest.approx(0.5e-4, rel=1e-3)
    for by in (2e-4 * size, np.nan):
        with pytest.raises(CaptureError, match=r"heads do not add up.*layer 1, prompt 5"):
            decompose(base, moved(by), labels, clusters)
    coarse = decompose(base, moved(2e-4 * size, rounding=1e-3), labels, clusters).heads.closing
    assert coarse.rounding == pytest.approx(8e-3)
    with pytest.raises(CaptureMismatchError, match="number of heads"):
        decompose(replace(base, heads=None), tuned, labels, clusters)


def test_equals_a_brute_force_jackknife_and_the_plain_mean():
    base, tuned, labels, intents = draw(1)
    clusters = Clusters.of(intents.tolist(), labels)
    term = decompose(base, tuned, labels, clusters).terms[4]
    x = (tuned.terms - base.terms)[:, 4]

    def gap(keep):
        return x[keep & (labels == 1)].mean() - x[keep & (labels == 0)].mean()

    left = np.array([gap(intents != c) for c in range(N_INTENTS)])
    se = np.sqrt((N_INTENTS - 1) / N_INTENTS * np.sum((left - left.mean()) ** 2))
    got = term.difference.pointwise
    assert got.value == pytest.approx(gap(intents >= 0))
    assert got.upper - got.value == pytest.approx(stats.t.ppf(0.975, N_INTENTS - 1) * se)

    here = labels == 1
    own = mean(x[here], Clusters.of(intents[here].tolist()))
    got = term.harmful.pointwise
    assert (got.value, got.lower, got.upper) == pytest.approx((own.value, own.lower, own.upper))


def test_swapped_labels_swap_classes_and_turn_the_difference_round():
    base, tuned, labels, intents = draw(2)
    first, second = (
        decompose(base, tuned, y, Clusters.of(intents.tolist(), y)) for y in (labels, 1 - labels)
    )
    for a, b in zip(first.terms, second.terms, strict=True):
        assert a.harmful.pointwise == b.harmless.pointwise
        assert a.difference.pointwise.value == pytest.approx(-b.difference.pointwise.value)
    back = decompose(tuned, base, labels, Clusters.of(intents.tolist(), labels))
    for a, b in zip(first.terms, back.terms, strict=True):
        assert a.harmful.pointwise.value == pytest.approx(-b.harmful.pointwise.value)


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_and_bands_cover(paired):
    columns = [0, 1, 4, 2, 5, 3, 6]
    true = {"harmless": TRUE[0], "harmful": TRUE[1], "difference": TRUE[1] - TRUE[0]}
    point, band = [], []
    for seed in range(80):
        result = decomposed(seed, paired=paired)
        for name, value in true.items():
            figures = [getattr(t, name) for t in result.terms]
            inside = [
                [e.lower <= v <= e.upper for e, v in zip(es, value[columns], strict=True)]
                for es in (
                    [f.pointwise for f in figures],
                    [f.simultaneous for f in figures],
                )
            ]
            point.append(inside[0])
            band.append(all(inside[1]))
    # 80 runs of three contrasts: the standard errors are about 0.006 and 0.016.
    assert 0.93 < np.mean(point) < 0.97
    assert 0.89 < np.mean(band) < 0.99
    # Negative control: pointwise intervals do not hold all at once.
    assert np.mean(np.all(point, axis=1)) < 0.85


def test_prompts_taken_for_independent_cover_too_rarely():
    """Negative control: intents share their noise, and leaving that out shows."""
    inside = []
    for seed in range(40):
        base, tuned, labels, _ = draw(seed)
        result = decompose(base, tuned, labels, Clusters.of(list(range(len(labels))), labels))
        inside.append([t.harmful.pointwise.lower <= 0 <= t.harmful.pointwise.upper
                       for t in result.terms[:2]])  # fmt: skip
    assert np.mean(inside) < 0.9


def test_refuses_what_does_not_add_up():
    base, tuned, labels, intents = draw(3)
    clusters = Clusters.of(intents.tolist(), labels)
    fine = decompose(base, tuned, labels, clusters).closing
    assert fine.relative < 1e-12

    def moved(by, rounding=1e-7):
        resid = tuned.resid.copy()
        resid[5] += by
        return replace(tuned, resid=resid, rounding=np.full(len(resid), rounding))

    size = np.abs(tuned.terms - base.terms).sum(axis=1)[5]
    closing = decompose(base, moved(0.5e-4 * size), labels, clusters).closing
    assert closing.relative == pytest.approx(0.5e-4)
    assert closing.absolute == pytest.approx(0.5e-4 * size)
    with pytest.raises(CaptureError, match=r"do not add up.*prompt 5"):
        decompose(base, moved(2e-4 * size), labels, clusters)
    # The rounding of a coarser dtype accounts for as much, but not for a part left out.
    coarse = decompose(base, moved(2e-4 * size, rounding=1e-3), labels, clusters).closing
    assert coarse.relative == pytest.approx(2e-4)
    for column in ("attn", "mlp"):
        emptied = {column: np.zeros_like(tuned.attn)}
        with pytest.raises(CaptureError, match="do not add up"):
            decompose(base, replace(tuned, rounding=np.full(len(labels), 1e-3), **emptied),
                      labels, clusters)  # fmt: skip
    with pytest.raises(CaptureError, match="do not add up"):
        decompose(base, moved(np.nan), labels, clusters)


def test_refuses_contributions_of_different_things():
    base, tuned, labels, intents = draw(4)
    clusters = Clusters.of(intents.tolist(), labels)
    for other, said in (
        (replace(tuned, rendered_hash="two"), "rendered prompts"),
        (replace(tuned, site=replace(SITE, position=-2)), "site"),
        (replace(tuned, direction=np.eye(4)[1]), "different directions"),
    ):
        with pytest.raises(CaptureMismatchError, match=said):
            decompose(base, other, labels, clusters)
    with pytest.raises(CaptureMismatchError, match="number of labels"):
        decompose(base, tuned, labels[1:], clusters)
    with pytest.raises(CaptureMismatchError, match="in clusters"):
        decompose(base, tuned, labels, Clusters.of(intents[1:].tolist()))
    with pytest.raises(PromptError, match="harmful and harmless"):
        decompose(base, tuned, np.ones_like(labels), clusters)
    with pytest.raises(PromptError, match="harmful and harmless"):
        decompose(base, tuned, labels + 1, clusters)


def test_one_intent_has_figures_without_intervals():
    base, tuned, labels, _ = draw(5)
    result = decompose(base, tuned, labels, Clusters.of([0] * len(labels), labels))
    figure = result.terms[0].difference
    assert figure.pointwise.value is not None and figure.pointwise.lower is None
    assert figure.simultaneous == figure.pointwise
    assert "one intent" in figure.pointwise.note


def test_goes_to_json_and_is_repeatable():
    result = decomposed(6)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["site"] == {"hook": "resid_pre", "layer": 3, "position": -1}
    assert data["terms"][1]["component"] == "attn" and data["terms"][1]["layer"] == 0
    assert data["terms"][4]["difference"]["simultaneous"]["method"].endswith("over 7 components")
    assert set(data["closing"]) == {"absolute", "relative", "rounding"}
    assert decomposed(6) == result
