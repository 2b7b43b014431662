"""Rows and files of responses made by hand."""

from refusaldir.probes.behaviour import Behaviour, BehaviourProvenance, BehaviourRow, ServedModel
from refusaldir.probes.plan import SamplingPlan
from refusaldir.probes.refusal_tokens import RefusalTokens

FIRST = "phrases-1"


def row(id, label, *, harmful=True, response="said", prompt="asked", **fields):
    return BehaviourRow(
        **{
            "id": id,
            "intent_id": id,
            "harmful": harmful,
            "category": "c",
            "severity": None,
            "framing": "plain",
            "domain": "general",
            "twin_of": None,
            "prompt": prompt,
            "rendered_hash": id,
            "response": response,
            "n_tokens": 3,
            "finished": True,
            "first_token": None,
            "label": label,
            **fields,
        }
    )


def behaviour(rows, *, judges=(FIRST,), **fields):
    return Behaviour(
        provenance=BehaviourProvenance(
            **{
                "model": ServedModel(name="m", where="here"),
                "template": None,
                "prompts_name": "few",
                "prompts_hash": "p",
                "rendered_hash": "r",
                "sampling": SamplingPlan(max_new_tokens=8),
                "judges": judges,
                "stop_ids": (),
                "versions": {},
                "created": "2026-01-01T00:00:00+00:00",
                **fields,
            }
        ),
        refusal_tokens=RefusalTokens(ids=(), texts=(), source="found", note="none"),
        rows=tuple(rows),
    )
