"""Captures in memory with a planted direction, a known rotation and known noise."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from refusaldir.drift.contrasts import Design
from refusaldir.prompts.schema import Prompt, Turn
from refusaldir.records import (
    ModelIdentity,
    Positions,
    Provenance,
    Site,
    TemplateIdentity,
    content_hash,
)
from refusaldir.statistics import Clusters


@dataclass
class MemoryCapture:
    """What `refusaldir.store.Capture` offers, held in memory."""

    provenance: Provenance
    prompts: tuple
    values: dict  # hook -> float32 [prompt layer pos d_model]

    @property
    def labels(self):
        return np.array([p.y for p in self.prompts], dtype=np.int64)

    @property
    def ids(self):
        return tuple(p.id for p in self.prompts)

    @property
    def lengths(self):
        return np.array([10 + len(p.text) for p in self.prompts])

    @property
    def hooks(self):
        return self.provenance.hooks

    @property
    def layers(self):
        return self.provenance.layers

    @property
    def positions(self):
        return self.provenance.positions

    def read(self, hook, *, layer):
        return self.values[hook][:, self.layers.index(layer)]

    def reordered(self, order):
        """The same capture with its prompts in another order."""
        prompts = tuple(self.prompts[i] for i in order)
        hashes = {"prompts_hash": prompts_hash(prompts), "rendered_hash": str(list(order))}
        return MemoryCapture(
            provenance=replace(self.provenance, **hashes),
            prompts=prompts,
            values={k: v[order] for k, v in self.values.items()},
        )

    def mapped(self, function):
        """The same capture with other values."""
        values = {k: np.asarray(function(v), dtype=np.float32) for k, v in self.values.items()}
        return replace(self, values=values)


def prompts_hash(prompts):
    return content_hash([(p.id, p.label, [t.to_dict() for t in p.turns]) for p in prompts])


def make_prompts(intents, *, twins=True, split=False):
    """One harmful and one harmless prompt per intent (twins), or an intent for each."""
    prompts = []
    for i in range(intents):
        part = ("train" if i % 4 < 2 else "validation" if i % 4 == 2 else "test") if split else None
        for label in ("harmful", "harmless"):
            prompts.append(
                Prompt(
                    id=f"p{i:03d}-{label}",
                    intent_id=f"i{i:03d}" if twins else f"i{i:03d}-{label}",
                    label=label,
                    turns=(Turn("user", f"{label} request {i}"),),
                    split=part,
                )
            )
    return tuple(prompts)


def make_capture(values, prompts, *, name="base", hook="resid_pre", labels=None):
    """Wrap values ``[prompt layer pos d_model]``."""
    values = np.asarray(values, dtype=np.float32)
    _, n_layers, n_pos, d = values.shape
    offsets = tuple(range(-n_pos, 0))
    provenance = Provenance(
        model=ModelIdentity(
            spec=name,
            name=name,
            weights_hash=name,
            architecture="LlamaForCausalLM",
            n_layers=n_layers,
            d_model=d,
            vocab_size=100,
            dtype="float32",
        ),
        template=TemplateIdentity(
            tokenizer_hash="tok", template_hash="tpl", post_tokens=("<end>", "\n")
        ),
        prompts_name="planted",
        prompts_hash=prompts_hash(prompts),
        rendered_hash="rendered",
        hooks=(hook,),
        layers=tuple(range(n_layers)),
        positions=Positions(offsets=offsets, labels=labels or tuple(f"t{o}" for o in offsets)),
        versions={"refusaldir": "0.1.0"},
        created="2026-01-01T00:00:00Z",
    )
    return MemoryCapture(provenance=provenance, prompts=prompts, values={hook: values})


def plant(
    *,
    intents=40,
    d=24,
    layers=3,
    pos=2,
    norm=6.0,
    degrees=0.0,
    ratio=1.0,
    shift=(0.0, 0.0),
    noise=1.0,
    shared=0.0,
    topic=0.0,
    twins=True,
    split=False,
    seed=0,
    origin=20.0,
):
    """Base and tuned captures with a known geometry.

    Args:
        intents: Number of intents, each with a harmful and a harmless prompt.
        d: Width.
        layers: Layers; layer 0 has no signal, the others are alike but for the noise.
        pos: Positions.
        norm: Norm of the base direction.
        degrees: Angle between the directions.
        ratio: Norm of the tuned direction over the base's.
        shift: Shift of (harmless, harmful) means along the base unit direction.
        noise: SD of a prompt's noise, each coordinate.
        shared: Correlation of that noise between base and tuned.
        topic: SD of the noise shared by twins (and by base and tuned as `shared` says).
        twins: Whether twins form one intent.
        split: Whether prompts carry splits.
        seed: Seed.
        origin: Size of the common offset.
    """
    rng = np.random.default_rng(seed)
    prompts = make_prompts(intents, twins=twins, split=split)
    y = np.array([p.y for p in prompts])
    n = len(prompts)
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    a, b = axes[:, 0], axes[:, 1]
    angle = np.radians(degrees)
    r_base = norm * a
    r_tuned = norm * ratio * (np.cos(angle) * a + np.sin(angle) * b)
    middle = origin * axes[:, 2]
    topics = np.arange(n) // 2

    def pair_noise(scale, count):
        common = rng.standard_normal((count, layers, pos, d))
        own = rng.standard_normal((2, count, layers, pos, d))
        return scale * (np.sqrt(shared) * common + np.sqrt(1 - shared) * own)

    prompt_noise, topic_noise = pair_noise(noise, n), pair_noise(topic, intents)
    captures = []
    for side, r in enumerate((r_base, r_tuned)):
        means = middle + (y[:, None] - 0.5) * r
        if side == 1:
            means = means + np.asarray(shift)[y][:, None] * a
        values = means[:, None, None] + prompt_noise[side] + topic_noise[side][topics]
        values[:, 0] = middle  # nothing has reached the template tokens yet
        captures.append(make_capture(values, prompts, name=("base", "tuned")[side]))
    return captures[0], captures[1]


def site(layer=0):
    """The last token's site at a layer."""
    return Site(hook="resid_pre", layer=layer, position=-1)


def design_of(n, matched):
    """``n`` intents with twins, or ``n`` intents of each class."""
    y = np.tile([0, 1], n)
    ids = np.repeat(np.arange(n), 2) if matched else np.arange(2 * n)
    clusters = Clusters.of(ids.tolist(), y)
    return Design(y, clusters, np.zeros(2 * n, dtype=np.int64))


@pytest.fixture(name="plant")
def plant_fixture():
    return plant


@pytest.fixture(name="make_capture")
def make_capture_fixture():
    return make_capture


@pytest.fixture(name="make_prompts")
def make_prompts_fixture():
    return make_prompts
