"""Effects of layers with known shares, prompts in clusters of two."""

from dataclasses import dataclass

import numpy as np

from refusaldir.layers.measured import Measured
from refusaldir.statistics import Clusters


@dataclass(frozen=True)
class Change:
    layer: int | None
    component: str | None
    name: str


@dataclass(frozen=True, eq=False)
class Path:
    """Path attribution that closes up to ``gap``."""

    changes: tuple
    values: np.ndarray
    base: np.ndarray
    tuned: np.ndarray
    nodes: int = 4


@dataclass(frozen=True, eq=False)
class Transplanted:
    layers: tuple
    base: np.ndarray
    tuned: np.ndarray
    restored: np.ndarray
    injected: np.ndarray
    fronts: np.ndarray | None = None
    restored_outside: np.ndarray | None = None
    injected_outside: np.ndarray | None = None
    recovery_depth: int | None = None


def effects(true, *, n=24, whole=-3.0, noise=0.5, between=1.0, seed=0):
    """Effects ``[prompt, layer]`` with shares ``true`` of a change of mean ``whole``."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(n), 2)
    shared = rng.normal(0, between, n)[ids]
    own = rng.normal(0, noise, (n, len(true)))[ids] + rng.normal(0, noise, (2 * n, len(true)))
    values = (whole + shared)[:, None] * np.asarray(true) + own
    return values, Clusters.of([f"i{k}" for k in ids])


def path_of(values, *, base=2.5, components=("attn", "mlp"), seed=0, gap=0.0):
    """Each layer's effect split between its components as 1 : 3."""
    rng = np.random.default_rng(seed)
    n, layers = values.shape
    start = base + rng.normal(0, 1.5, n)
    weights = np.array([0.25, 0.75]) if len(components) == 2 else np.ones(1)
    changes = tuple(Change(layer, c, f"{c}_proj") for layer in range(layers) for c in components)
    split = (values[:, :, None] * weights).reshape(n, -1)
    return Path(changes, split, start, start + values.sum(axis=1) + gap)


def transplanted_of(values, *, base, tuned, noise=0.1, seed=1):
    rng = np.random.default_rng(seed)
    n, layers = values.shape
    restored, injected = (values + rng.normal(0, noise, values.shape) for _ in range(2))
    fronts = tuned[:, None] - np.concatenate([np.zeros((n, 1)), np.cumsum(values, axis=1)], axis=1)
    return Transplanted(
        tuple(range(layers)),
        base,
        tuned,
        tuned[:, None] - restored,
        base[:, None] + injected,
        fronts,
        recovery_depth=1,
    )


def measured(path, clusters, **changes):
    n_layers = 1 + max(c.layer for c in path.changes if c.layer is not None)
    fields = {
        "name": "refusal score",
        "unit": "nats",
        "subject": f"the refusal score of {len(path.base)} harmful prompts",
        "n_prompts": len(path.base),
        "n_clusters": clusters.n,
        "n_layers": n_layers,
        "changed": tuple(range(n_layers)),
        "outside": False,
    }
    return Measured(**{**fields, **changes})


def model(name):
    from refusaldir.records import ModelIdentity

    return ModelIdentity(
        spec=name, name=name, weights_hash="0" * 16, architecture="LlamaForCausalLM",
        n_layers=8, d_model=16, vocab_size=97, dtype="float32",
    )  # fmt: skip


def weights(n_layers):
    """A change of every matrix, the later the larger."""
    from refusaldir.layers.weights.alignment import (
        MatrixAlignment,
        WeightAlignment,
        component_totals,
    )

    matrices = tuple(
        MatrixAlignment(
            layer=layer, component=component, name=name, side=side, change_norm=0.1 * (layer + 1),
            base_norm=4.0, relative_change=0.025 * (layer + 1), participation_ratio=2.0,
            alignment=1.5, chance_sd=0.9,
        )
        for layer in range(n_layers)
        for component, name, side in (("attn", "q_proj", "reads"), ("mlp", "down_proj", "writes"))
    )  # fmt: skip
    return WeightAlignment(
        base="a", tuned="b", d_model=16, matrices=matrices, totals=component_totals(matrices),
        elsewhere=("model.norm.weight",),
    )  # fmt: skip


def contributions(n, n_layers, *, seed, heads=False):
    """Of prompts that are harmful and harmless in turn, read before the last layer."""
    from refusaldir.layers.residual.components import Contributions, HeadContributions
    from refusaldir.records import Site

    rng = np.random.default_rng(seed)
    attn, mlp = rng.normal(size=(2, n, n_layers - 1))
    embed = rng.normal(size=n)
    by_head = rng.normal(size=(n, n_layers - 1, 3))
    by_head[..., -1] += attn - by_head.sum(axis=2)
    return Contributions(
        site=Site(hook="resid_pre", layer=n_layers - 1, position=-1),
        direction=np.eye(16)[0],
        rendered_hash="x",
        embed=embed,
        attn=attn,
        mlp=mlp,
        resid=embed + attn.sum(axis=1) + mlp.sum(axis=1),
        rounding=np.full(n, 1e-7),
        heads=HeadContributions(
            values=by_head, bias=np.zeros((n, n_layers - 1)),
            rounding=np.full((n, n_layers - 1), 1e-7),
        )
        if heads
        else None,
    )  # fmt: skip


def residual_of(n_layers, *, heads=False, n=24):
    """A decomposition, and the same on the harmful prompts by layer."""
    from refusaldir.layers.agreement import residual_order
    from refusaldir.layers.residual.decomposition import decompose

    base, tuned = (contributions(n, n_layers, seed=seed, heads=heads) for seed in (1, 2))
    labels = np.arange(n) % 2
    ids = [f"p{k // 2}" for k in range(n)]
    harmful = np.flatnonzero(labels)
    order = residual_order(base, tuned, harmful, Clusters.of([ids[int(i)] for i in harmful]))
    return decompose(base, tuned, labels, Clusters.of(ids, labels)), order


def document(true=(0.0, 0.02, 0.5, 0.4, 0.0, 0.05, 0.03, 0.0), *, full=True, heads=False, **given):
    """A layers document; ``whole`` 0 for one without a change to attribute."""
    from refusaldir.layers.conclude import conclude
    from refusaldir.report.layers_document import build_layers

    values, clusters = effects(true, noise=0.1, whole=given.pop("whole", -3.0))
    path = path_of(values)
    residual, order = residual_of(len(true), heads=heads) if full else (None, None)
    result = conclude(
        measured(path, clusters, **given),
        clusters,
        path=path,
        transplant=transplanted_of(values, base=path.base, tuned=path.tuned) if full else None,
        residual=residual,
        residual_order=order,
        weights=weights(len(true)) if full else None,
        notes=("a note",),
    )
    site = {"hook": "resid_pre", "layer": 7, "position": -1, "reason": "as given"}
    return build_layers(
        result,
        base=model("base"),
        tuned=model("tuned"),
        prompts={"name": "contrast", "which": "the set's test split", "rendered_hash": "abc"},
        refusal_tokens=("I", "Sorry"),
        site=site if full else None,
        options={"seed": 0},
        created="now",
    )
