"""The toolkit's lenses on one pair: measured by prompt once, turned into scores when read."""

import numpy as np

from refusaldir.layers.effects import Effects, outcome_change, shares
from refusaldir.layers.exchange.transplant import transplant
from refusaldir.layers.lenses import INJECT, PATH, RESTORE, combine, path_effects
from refusaldir.layers.outcomes import RefusalScore
from refusaldir.layers.path.attribution import attribute
from refusaldir.layers.ranking import rank_layers
from refusaldir.layers.residual.contributions import collect_contributions
from refusaldir.layers.weight_pair import WeightPair
from refusaldir.models.options import LoadOptions

from .score import LayerScores

PATH_KEY, SWAP_KEY, RESIDUAL_KEY = "path", "transplant", "residual"


def open_pair(base, tuned):
    """Both models as one, on the CPU in float32."""
    return WeightPair.open(base, tuned, LoadOptions(device="cpu", dtype="float32"))


def measure_path(pair, sequences, tokens):
    """Path attribution by layer: arrays to keep."""
    found = attribute(pair, sequences, RefusalScore(tokens))
    effects = path_effects(found.changes, found.values)
    return {
        "layers": np.array(effects.layers),
        "effects": effects.values,
        "base": found.base,
        "tuned": found.tuned,
    }


def measure_transplant(pair, sequences, tokens):
    """Every block that changed exchanged, and fronts: arrays to keep."""
    found = transplant(pair, sequences, RefusalScore(tokens))
    return {
        "layers": np.array(found.layers),
        "restored": found.restored,
        "injected": found.injected,
        "fronts": found.fronts,
        "base": found.base,
        "tuned": found.tuned,
    }


def measure_residual(pair, sequences, direction, site):
    """What each layer's attention and MLP write along a direction, tuned less base."""
    terms = []
    for choose in (pair.set_base, pair.set_tuned):
        choose()
        found = collect_contributions(pair.model, sequences, direction, site)
        names, values = found.names, found.terms
        layers = sorted({layer for _, layer in names if layer is not None})
        terms.append(
            np.stack([values[:, [k == layer for _, k in names]].sum(axis=1) for layer in layers], 1)
        )
    pair.set_base()
    return {"layers": np.array(layers), "effects": terms[1] - terms[0]}


def scores_of(kept, clusters, n_layers):
    """Scores of every lens there are measurements of, and of the verdict.

    Args:
        kept: Arrays by lens key.
        clusters: Of the prompts.
        n_layers: Blocks of the model.
    """
    lenses, effects = {}, {}
    change = None
    if PATH_KEY in kept:
        data = kept[PATH_KEY]
        change = data["base"], data["tuned"]
        effects[PATH] = _effects(PATH, data["layers"], data["effects"])
    if SWAP_KEY in kept:
        data = kept[SWAP_KEY]
        change = data["base"], data["tuned"]
        base, tuned = (data[name][:, None] for name in ("base", "tuned"))
        effects[RESTORE] = _effects(RESTORE, data["layers"], tuned - data["restored"])
        effects[INJECT] = _effects(INJECT, data["layers"], data["injected"] - base)
        steps = -np.diff(data["fronts"], axis=1)
        effects["front steps"] = _effects("front steps", range(n_layers), steps)
    if RESIDUAL_KEY in kept:
        data = kept[RESIDUAL_KEY]
        means = data["effects"].mean(axis=0) * np.sign(data["effects"].sum(axis=1).mean())
        lenses["residual decomposition"] = _spread(data["layers"], means, n_layers)
    if change is None:
        return lenses
    compared = outcome_change(*change, clusters)
    for name, effect in effects.items():
        lenses[name] = _judged(effect, change, compared, clusters, n_layers)
    lenses["verdict"] = _verdict(effects, change, compared, clusters, n_layers)
    return lenses


def _effects(lens, layers, values):
    return Effects(lens=lens, layers=tuple(int(k) for k in layers), values=np.asarray(values))


def _spread(layers, values, n_layers, flagged=None):
    full = np.zeros(n_layers)
    full[list(layers)] = values
    return LayerScores(scores=tuple(full.tolist()), flagged=flagged)


def _judged(effects, change, compared, clusters, n_layers):
    """Mean effects in the direction of the whole change; flagged are those whose band says so."""
    difference = change[1] - change[0]
    means = effects.values.mean(axis=0) * np.sign(difference.mean())
    flagged = ()
    if compared.attributable and effects.layers:
        found = shares(effects.values, difference, clusters, over="over the layers")
        flagged = tuple(k for k, s in zip(effects.layers, found, strict=True) if s.disturbs)
    return _spread(effects.layers, means, n_layers, flagged)


def _verdict(effects, change, compared, clusters, n_layers):
    """The order that the toolkit reports: by absolute share, nothing where nothing changed."""
    if not compared.attributable:
        return _spread((), (), n_layers, ())
    combined, names = combine(effects.get(PATH), effects.get(RESTORE), effects.get(INJECT))
    ranking = rank_layers(combined, change[1] - change[0], clusters, lenses=names)
    rows = [row for row in ranking.layers if row.layer is not None]
    return _spread(
        [row.layer for row in rows],
        [abs(row.band.value) for row in rows],
        n_layers,
        tuple(row.layer for row in ranking.disturbing),
    )
