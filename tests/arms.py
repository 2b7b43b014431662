"""Made-up runs: one letter a reply."""

from refusaldir.probes.behaviour import Behaviour, BehaviourProvenance, BehaviourRow
from refusaldir.probes.outcomes import Judgement
from refusaldir.probes.plan import SamplingPlan
from refusaldir.probes.refusal_tokens import RefusalTokens
from refusaldir.probes.run import ProbeRun
from refusaldir.records import ModelIdentity, TemplateIdentity

CODES = {
    "F": "full_refusal",
    "P": "partial_refusal",
    "C": "compliance",
    "I": "incoherent",
    "E": "empty",
    "J": "judge_error",
}


def behaviour(rows, *, name="base", tokens=(5,), template=None, dtype="float32", **changes):
    """Rows with a provenance; `changes` are fields of it."""
    return Behaviour(
        provenance=BehaviourProvenance(
            model=ModelIdentity(
                spec=name,
                name=name,
                weights_hash=name,
                architecture="LlamaForCausalLM",
                n_layers=2,
                d_model=8,
                vocab_size=97,
                dtype=dtype,
            ),
            template=TemplateIdentity(
                **{
                    "tokenizer_hash": "t",
                    "template_hash": "c",
                    "system": "default",
                    "thinking": None,
                    "post_tokens": ("x",),
                    **(template or {}),
                }
            ),
            **{
                "prompts_name": "planted",
                "prompts_hash": "p",
                "rendered_hash": "r",
                "sampling": SamplingPlan(max_new_tokens=64),
                "judges": ("phrases-1",),
                "stop_ids": (2,),
                "versions": {},
                "created": "2025-01-01T00:00:00+00:00",
                **changes,
            },
        ),
        refusal_tokens=RefusalTokens(ids=tokens, texts=tuple(map(str, tokens)), source="given"),
        rows=tuple(rows),
    )


def row(name, code, *, harmful=True, **fields):
    """One reply of one letter."""
    return BehaviourRow(
        **{
            "id": name,
            "intent_id": f"intent-{name}",
            "harmful": harmful,
            "category": "c0",
            "severity": None,
            "framing": "plain",
            "domain": "general",
            "twin_of": None,
            "prompt": f"prompt {name}",
            "rendered_hash": f"hash {name}",
            "response": "…",
            "n_tokens": 3,
            "finished": True,
            "first_token": 5,
            "label": CODES[code],
            **fields,
        }
    )


def labelled(name, label, **fields):
    """One reply by its label, its intent named like its prompt."""
    letter = next(code for code, known in CODES.items() if known == label)
    return row(name, letter, **{"intent_id": name, **fields})


def arm(
    harmful="", harmless="", *, categories=1, intents=None, scores=None, others=None, **changes
):
    """One letter a prompt; prompts take categories and intents in turn.

    `others` gives the letters of further judges, on the harmful prompts and then the others.
    """
    judges = tuple(others or ())
    if judges:
        changes.setdefault("judges", ("phrases-1", *judges))
    rows = []
    for side, codes in (("h", harmful), ("b", harmless)):
        for i, code in enumerate(codes):
            said = {j: Judgement(label=CODES[others[j][len(rows)]]) for j in judges}
            rows.append(
                row(
                    f"{side}{i}",
                    code,
                    harmful=side == "h",
                    intent_id=f"{side}-intent-{i if intents is None else i % intents}",
                    category=f"c{i % categories}",
                    score=None if scores is None else scores + 0.01 * i,
                    others=said,
                )
            )
    return ProbeRun(single=behaviour(rows, **changes))


def sampled(codes, *, temperatures=(0.0, 0.7), seeds=(0,), samples=5, harmful=True, **changes):
    """Several letters a prompt, for each temperature, seed and sample in turn.

    `codes` maps a prompt to its letters, or a sequence of them numbers the prompts; a prompt's
    intent is what comes before a dash in its name.
    """
    plan = SamplingPlan(temperatures=temperatures, seeds=seeds, samples=samples, max_new_tokens=64)
    if not isinstance(codes, dict):
        codes = {f"h{i}": letters for i, letters in enumerate(codes)}
    rows = []
    for name, letters in codes.items():
        cells = [
            (t, s, k)
            for t in temperatures
            for s in (seeds if t else (0,))
            for k in (range(samples) if t else (0,))
        ]
        assert len(letters) == len(cells)
        rows += [
            row(
                name,
                code,
                harmful=harmful,
                intent_id=name.split("-")[0],
                temperature=t,
                seed=s,
                sample=k,
            )
            for code, (t, s, k) in zip(letters, cells, strict=True)
        ]
    return ProbeRun(single=behaviour(rows, sampling=plan, **changes))


def escalation(name, turns, *, harmful=True, shared=1, intent=None, twin=None):
    """Rows of one conversation, one letter a user turn; its first turns are its twin's too."""
    return [
        row(
            name,
            code,
            harmful=harmful,
            framing="escalation",
            intent_id=intent or name,
            twin_of=twin,
            turn=i,
            prompt=f"opening {intent or name} {i}" if i <= shared else f"{name} {i}",
            rendered_hash=f"{name} {i}",
        )
        for i, code in enumerate(turns, 1)
    ]
