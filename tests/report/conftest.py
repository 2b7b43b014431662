"""Comparisons to report on: one really computed, and made-up ones of any size."""

import json
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from refusaldir.directions.site import SiteChoice
from refusaldir.drift.compare import compare
from refusaldir.drift.layer_result import ByClass, Change, Crossed, LayerDrift, TopDimension
from refusaldir.drift.ranking import RANKING_RULE
from refusaldir.drift.result import DriftResult, RankedLayer, SiteRotation
from refusaldir.drift.verdict import findings, sentences
from refusaldir.probes.behaviour import Behaviour, BehaviourProvenance, BehaviourRow
from refusaldir.probes.comparison import compare_runs
from refusaldir.probes.plan import SamplingPlan
from refusaldir.probes.refusal_tokens import RefusalTokens
from refusaldir.probes.run import ProbeRun
from refusaldir.prompts.schema import Prompt, Turn
from refusaldir.records import (
    Estimate,
    ModelIdentity,
    Positions,
    Provenance,
    Site,
    TemplateIdentity,
)
from refusaldir.report.document import build_document, to_json

NO_SIGNAL = "no signal: harmful and harmless activations are the same in both models"
HAZARDS = (
    "violent crimes", "non-violent crimes", "sex-related crimes", "child exploitation",
    "defamation", "specialized advice", "privacy", "intellectual property",
    "indiscriminate weapons (CBRNE)", "hate", "self-harm", "elections",
)  # fmt: skip
TEMPLATE = TemplateIdentity(
    tokenizer_hash="a" * 16, template_hash="b" * 16, post_tokens=("<|im_end|>", "\n", "assistant")
)


def model(name, layers=30):
    return ModelIdentity(
        spec=name,
        name=name,
        weights_hash=name,
        architecture="LlamaForCausalLM",
        n_layers=layers,
        d_model=576,
        vocab_size=49152,
        dtype="float32",
    )


def provenance(name, layers):
    return Provenance(
        model=model(name, layers),
        template=TEMPLATE,
        prompts_name="contrast",
        prompts_hash="c" * 16,
        rendered_hash="d" * 16,
        hooks=("resid_pre",),
        layers=tuple(range(layers)),
        positions=Positions(offsets=(-2, -1), labels=("<|im_end|>", "assistant\n")),
        versions={"refusaldir": "0.1.0", "torch": "2.6.0"},
        created="2026-01-01T00:00:00+00:00",
    )


def est(value, half=0.05, n=288, note="", **kwargs):
    if value is None:
        return Estimate(value=None, n=n, note=note or NO_SIGNAL)
    return Estimate(
        value=float(value),
        lower=float(value - half),
        upper=float(value + half),
        n=n,
        method="cluster jackknife",
        note=note,
        **kwargs,
    )


def layer_row(layer, depth, size, rng, lost):
    """One layer: drift sets in around mid-depth and grows to `size` of its full extent."""
    site = Site(hook="resid_pre", layer=layer, position=-1)
    bump = size / (1 + np.exp(-(depth - 0.5) * 14))
    jitter = rng.normal(0, 0.01 * min(size, 1), 8)
    none = est(None) if lost else None
    cosine = 1 - 0.45 * bump - abs(jitter[0])
    half = 0.01 + 0.08 * bump
    rise = min(1.0, 3 * depth)
    areas = [
        0.5 + 0.485 * rise,
        0.5 + 0.47 * rise - 0.06 * bump,
        0.5 + 0.46 * rise,
        0.5 + 0.48 * rise,
    ]
    primes = [4 * rise, 3.6 * rise - bump, 3.2 * rise, 3.9 * rise]
    top = TopDimension(index=7, share=est(0.1, 0.02))
    return LayerDrift(
        site=site,
        signal=not lost,
        identical=False,
        rotation=none or est(cosine, half),
        rotation_raw=none or est(cosine - 0.02, half),
        angle=none or est(np.degrees(np.arccos(min(1, cosine))), 3.0),
        shrinkage=none or est(1 - 0.2 * bump + jitter[1], 0.06),
        norm_base=none or est(10.0, 1.0),
        norm_tuned=none or est(8.0, 1.0),
        translation=ByClass(
            harmful=none or est(-1.6 * bump + jitter[2], 0.2),
            harmless=none or est(0.2 * bump + jitter[3], 0.12),
        ),
        auroc=Crossed(**dict(zip(CROSSED, [none or est(a, 0.015) for a in areas], strict=True))),
        d_prime=Crossed(**dict(zip(CROSSED, [none or est(p, 0.3) for p in primes], strict=True))),
        auroc_change=Change(own=none or est(-0.01, 0.02), base_direction=none or est(-0.05, 0.02)),
        d_prime_change=Change(own=none or est(-0.1, 0.3), base_direction=none or est(-bump, 0.3)),
        top_base=None if lost else top,
        top_tuned=None if lost else top,
        relative_change=est(0.3 * bump, 0.02),
        cka=est(1 - 0.2 * bump, 0.05),
    )


CROSSED = (
    "base_direction_on_base",
    "base_direction_on_tuned",
    "tuned_direction_on_base",
    "tuned_direction_on_tuned",
)


def made_up_drift(layers=30, size=1.0, lost=1, seed=0, names=("base", "tuned"), site=None):
    """A drift result of any depth; `size` 0 is no drift, 1 a strong one."""
    rng = np.random.default_rng(seed)
    depth = np.linspace(0, 1, layers) if layers > 1 else np.array([0.6])
    rows = [layer_row(i, depth[i], size, rng, i < lost) for i in range(layers)]
    site = Site(hook="resid_pre", layer=int(layers * 0.6) if site is None else site, position=-1)
    usable = [row for row in rows if row.rotation.value is not None]
    ranking = []
    previous = None
    for row in usable:
        value = 1 - row.rotation.value
        half = 1.4 * (row.rotation.upper - row.rotation.value)
        step = None if previous is None else est(value - previous, 0.03)
        ranking.append((value - half, row.site.layer, est(value, half), step))
        previous = value
    ranking.sort(key=lambda entry: (-entry[0], entry[1]))
    ranked = tuple(
        RankedLayer(rank=i, layer=layer, drift=drift, increment=step)
        for i, (_, layer, drift, step) in enumerate(ranking, 1)
    )
    at_site = next(row for row in rows if row.site == site)
    answers = findings(at_site)
    shape = (layers, 2)
    positions = Positions(offsets=(-2, -1), labels=("<|im_end|>", "assistant\n"))
    other = Site(hook="resid_pre", layer=0, position=-2)
    return DriftResult(
        hook="resid_pre",
        site=SiteChoice(
            site=site,
            layers=tuple(range(layers)),
            positions=positions,
            d_prime=np.full(shape, 2.0),
            auroc=np.full(shape, 0.9),
            norm=np.full(shape, 10.0),
            signal=np.full(shape, True),
            method="direction from the train split, scored on the validation split",
            n_train=384,
            n_scored=96,
        ),
        layers=tuple(rows),
        grid=(
            *(SiteRotation(site=r.site, rotation=r.rotation, shrinkage=r.shrinkage) for r in rows),
            SiteRotation(site=other, rotation=est(None), shrinkage=est(None)),
        ),
        ranking=ranked,
        ranking_rule=RANKING_RULE,
        findings=answers,
        verdict=sentences(at_site, answers, ranked, 0.95),
        notes=(),
        n_prompts=576,
        n_harmful=288,
        n_harmless=288,
        n_clusters=288,
        level=0.95,
        seed=0,
        base=provenance(names[0], layers),
        tuned=provenance(names[1], layers),
        methods={"rotation": "corrected cosine"},
    )


def behaviour_arm(name, labels, categories, max_new_tokens=64):
    """An arm from a label per prompt; `categories` gives (category, harmful) of each."""
    rows = tuple(
        BehaviourRow(
            id=f"p{i}",
            intent_id=f"i{i}",
            harmful=harmful,
            category=category,
            severity=None,
            framing="plain",
            domain="general",
            twin_of=None,
            prompt="SECRET PROMPT",
            rendered_hash=f"h{i}",
            response="SECRET RESPONSE",
            n_tokens=3,
            finished=True,
            first_token=1,
            label=label,
            score=None,
        )
        for i, (label, (category, harmful)) in enumerate(zip(labels, categories, strict=True))
    )
    return Behaviour(
        provenance=BehaviourProvenance(
            model=model(name),
            template=TEMPLATE,
            prompts_name="contrast",
            prompts_hash="c" * 16,
            rendered_hash="d" * 16,
            sampling=SamplingPlan(max_new_tokens=max_new_tokens),
            judges=("phrases-1",),
            stop_ids=(2,),
            versions={"refusaldir": "0.1.0"},
            created="2026-01-01T00:00:00+00:00",
        ),
        refusal_tokens=RefusalTokens(
            ids=(), texts=(), source="found", counts=(), n_refusals=0, n_answers=0, coverage=0.0,
            leakage=0.0, note="fewer than 8 refusals",
        ),
        rows=rows,
    )  # fmt: skip


def made_up_behaviour(
    categories=12,
    n=24,
    base=(0.95, 0.08),
    tuned=(0.6, 0.06),
    unusable=0,
    sides=(True, False),
    seed=0,
):
    """A comparison with refusal rates (harmful, harmless) in base and tuned."""
    rng = np.random.default_rng(seed)
    names = [*HAZARDS, *(f"category number {i}" for i in range(categories))][:categories]
    kinds = [(name, side) for side in sides for name in names for _ in range(n)]
    pull = {name: rng.uniform(-0.25, 0.25) for name in names}
    luck = rng.random(len(kinds))
    arms = []
    for rates, sway in ((base, 0.0), (tuned, 1.0)):
        share = [np.clip(rates[0 if h else 1] + sway * h * pull[c], 0, 1) for c, h in kinds]
        if base == tuned:
            share = [rates[0 if h else 1] for _, h in kinds]
        arms.append(
            ["full_refusal" if u < s else "compliance" for u, s in zip(luck, share, strict=True)]
        )
    for i in range(unusable):
        arms[1][i] = "incoherent"
    base, tuned = (
        ProbeRun(single=behaviour_arm(name, labels, kinds))
        for name, labels in zip(("base", "tuned"), arms, strict=True)
    )
    return compare_runs(base, tuned, n_boot=50)


@dataclass
class MemoryCapture:
    """What `refusaldir.store.Capture` offers, held in memory."""

    provenance: Provenance
    prompts: tuple
    values: np.ndarray  # [prompt layer pos d_model]

    @property
    def labels(self):
        return np.array([p.y for p in self.prompts], dtype=np.int64)

    @property
    def lengths(self):
        return np.full(len(self.prompts), 10)

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
        return self.values[:, layer].astype(np.float32)


def computed_drift(degrees=40.0, intents=20, layers=4, d=576, seed=0):
    """A drift result from `refusaldir.drift`, with a planted rotation from layer 2 on."""
    rng = np.random.default_rng(seed)
    prompts = tuple(
        Prompt(id=f"{i}-{y}", intent_id=str(i), label=y, turns=(Turn("user", f"{y} {i}"),))
        for i in range(intents)
        for y in ("harmful", "harmless")
    )
    y = np.array([p.y for p in prompts])
    axes = np.linalg.qr(rng.standard_normal((d, 3)))[0].T
    captures = []
    for name in ("base", "tuned"):
        values = 0.3 * rng.standard_normal((len(prompts), layers, 2, d)) + 5 * axes[2]
        for layer in range(1, layers):
            angle = np.radians(degrees) if name == "tuned" and layer >= 2 else 0.0
            r = 20 * (np.cos(angle) * axes[0] + np.sin(angle) * axes[1])
            values[:, layer] += ((y[:, None] - 0.5) * r)[:, None]
        values[:, 0] = axes[2]
        captures.append(MemoryCapture(provenance(name, layers), prompts, values))
    return compare(*captures, draws=200)


@pytest.fixture(scope="session")
def drift():
    return made_up_drift


@pytest.fixture(scope="session")
def behaviour():
    return made_up_behaviour


@pytest.fixture(scope="session")
def computed():
    """A drift result that `refusaldir.drift` computed."""
    return computed_drift()


@cache
def document_text(layers, categories, options):
    return to_json(
        build_document(
            made_up_drift(layers, **dict(options)),
            made_up_behaviour(categories) if categories else None,
            options={"seed": 0, "out": None},
            created="2026-01-01T00:00:00+00:00",
        )
    )


@pytest.fixture(scope="session")
def make_document():
    """A fresh copy of a made-up document; each kind is computed once."""
    return lambda layers=30, categories=12, **options: json.loads(
        document_text(layers, categories, tuple(sorted(options.items())))
    )


@pytest.fixture(scope="session")
def document(make_document):
    """A full document: 30 layers, 12 categories; not to be changed."""
    return make_document()
