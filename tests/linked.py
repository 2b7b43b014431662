"""Two runs with projections on which refusal hangs as told, in prompts and escalations."""

from dataclasses import replace

import numpy as np
from scipy.special import expit

from refusaldir.probes.behaviour import Behaviour, BehaviourProvenance, BehaviourRow
from refusaldir.probes.plan import SamplingPlan
from refusaldir.probes.refusal_tokens import RefusalTokens
from refusaldir.probes.run import ProbeRun
from refusaldir.records import ModelIdentity, TemplateIdentity

#: P(refuse | z) = σ(INTERCEPT + SLOPE z) in base.
INTERCEPT, SLOPE = 0.5, 2.0
DIRECTION = "resid_pre.16@-1 0123456789abcdef"


def behaviour(name, rows, *, mode=None, direction=DIRECTION):
    """An arm of rows."""
    return Behaviour(
        provenance=BehaviourProvenance(
            model=ModelIdentity(
                spec=name, name=name, weights_hash=name, architecture="LlamaForCausalLM",
                n_layers=30, d_model=576, vocab_size=49152, dtype="float32",
            ),
            template=TemplateIdentity(
                tokenizer_hash="t", template_hash="c", post_tokens=("<|im_end|>",)
            ),
            prompts_name="battery",
            prompts_hash="p",
            rendered_hash="r",
            sampling=SamplingPlan(),
            mode=mode,
            judges=("phrases-1",),
            direction=direction,
            stop_ids=(2,),
            versions={},
            created="2026-01-01T00:00:00+00:00",
        ),
        refusal_tokens=RefusalTokens(
            ids=(), texts=(), source="found", counts=(), n_refusals=0, n_answers=0, coverage=0.0,
            leakage=0.0, note="fewer than 8 refusals",
        ),
        rows=tuple(rows),
    )  # fmt: skip


def make_rows(prompts, z, offset, luck, *, temperature=0.0):
    """A row a reply; `luck` is one logistic number each, ``[prompt, sample]``."""
    refused = INTERCEPT + offset[:, None] + SLOPE * z[:, None] + luck > 0
    return [
        BehaviourRow(
            **prompt,
            rendered_hash="h" + prompt["id"],
            temperature=temperature,
            sample=k,
            response="SECRET RESPONSE",
            n_tokens=3,
            finished=True,
            first_token=1,
            label="full_refusal" if said else "compliance",
            projection=float(z[i]),
        )
        for i, prompt in enumerate(prompts)
        for k, said in enumerate(refused[i])
    ]


def prompt(number, side, category, turn=None, text=None):
    name = f"i{number:03d}" + ("" if turn is None else "-escalation")
    return {
        "id": f"{name}-{side}",
        "intent_id": name,
        "harmful": side == "harmful",
        "category": category,
        "severity": None,
        "framing": "plain" if turn is None else "escalation",
        "domain": "general",
        "twin_of": f"{name}-{'harmless' if side == 'harmful' else 'harmful'}",
        "prompt": text or f"SECRET PROMPT {name} {side}",
        "turn": turn,
    }


def pair_of_rows(prompts, z, shift, offset, rng, *, samples=1, same=0.7):
    """Rows of base and tuned: projections moved by ``shift``, intercepts by ``offset``."""
    n = len(prompts)
    luck = rng.logistic(size=(n, samples))
    kept = rng.random((n, samples)) < same
    other = np.where(kept, luck, rng.logistic(size=(n, samples)))
    moved = z + shift + rng.normal(0, 0.3, n)
    temperature = 0.0 if samples == 1 else 0.7
    zero = np.zeros(n)
    return (
        make_rows(prompts, z, zero, luck, temperature=temperature),
        make_rows(prompts, moved, np.broadcast_to(offset, n), other, temperature=temperature),
    )


def runs(
    *, categories=10, each=8, shift=-0.8, offset=-0.5, graded=True, samples=1, turns=0, scripts=12,
    seed=0,
):  # fmt: skip
    """Base's and tuned's run.

    Args:
        categories: Number of categories.
        each: Intents a category, each with a harmful and a harmless prompt.
        shift: Mean shift of harmful projections; graded from 0 to twice it over the categories.
        offset: Change of the intercept, of every prompt.
        graded: Whether the shift differs by category.
        samples: Replies a prompt.
        turns: Turns of escalations, the first of them shared by twins; 0 for none.
        scripts: Number of escalations.
        seed: Seed.
    """
    rng = np.random.default_rng(seed)
    number = np.arange(categories * each)
    prompts = [
        prompt(int(i), side, f"category {i // each}")
        for i in number
        for side in ("harmful", "harmless")
    ]
    harmful = np.array([p["harmful"] for p in prompts])
    share = 2 * (np.repeat(number, 2) // each) / max(categories - 1, 1) if graded else 1.0
    z = np.where(harmful, 1.2, -1.2) + rng.normal(0, 1.0, len(prompts))
    base, tuned = pair_of_rows(prompts, z, shift * harmful * share, offset, rng, samples=samples)
    parts = {"single": (behaviour("base", base), behaviour("tuned", tuned))}
    if turns:
        played = [
            prompt(
                i, side, "category 0", turn, f"opening {i}" if turn == 1 else f"{side} {i} {turn}"
            )
            for i in range(scripts)
            for side in ("harmful", "harmless")
            for turn in range(1, turns + 1)
        ]
        grown = np.array([p["harmful"] * (p["turn"] - 1) for p in played]) * 0.8 - 1.2
        for mode in ("frozen", "live"):
            own = grown + rng.normal(0, 0.8, len(played))
            both = pair_of_rows(played, own, shift, offset, rng)
            parts[mode] = tuple(
                behaviour(name, rows, mode=mode)
                for name, rows in zip(("base", "tuned"), both, strict=True)
            )
    return tuple(ProbeRun(**{part: both[i] for part, both in parts.items()}) for i in (0, 1))


def curve(z, offset=0.0):
    """The planted curve."""
    return expit(INTERCEPT + offset + SLOPE * np.asarray(z))


def with_rows(run, change, part="single"):
    """The same run with rows changed by a function of index and row."""
    own = getattr(run, part)
    rows = tuple(change(i, row) for i, row in enumerate(own.rows))
    return replace(run, **{part: replace(own, rows=rows)})
