"""The verdict in plain words, assembled from what was measured.

The sentences about geometry come from `refusaldir.drift`; here they are joined by what changed
in behaviour, how sure it all is, and what it cannot tell. No verdict says that a model is
safe: not detecting a change bounds the change, on these prompts, and no more.
"""

from collections.abc import Mapping
from typing import Any

from refusaldir.report.behaviour_verdict import (
    LIMIT,
    as_sentence,
    brief,
    certainty,
    sentences,
)
from refusaldir.report.text import percent

Row = Mapping[str, Any]


def verdict(drift: Row, behaviour: Row | None, causality: Row | None = None) -> dict[str, Any]:
    """Assemble the verdict from the two parts of a diff document.

    Args:
        drift: The document's ``drift``, with the sentences of `refusaldir.drift` under
            ``verdict``.
        behaviour: The document's ``behaviour``, or None where it was not measured.
        causality: The document's ``causality``, or None where it was not asked for.

    Returns:
        ``headline`` (a sentence) and ``drift``, ``layers``, ``context``, ``causality``,
        ``behaviour``, ``certainty`` and ``limits`` (lists of sentences).
    """
    headline, *rest = drift["verdict"]
    said = None if behaviour is None else brief(behaviour)
    answers = {finding["sentence"] for finding in drift["findings"]}
    return {
        "headline": headline if said is None else f"{headline} {said}",
        "drift": [sentence for sentence in rest if sentence in answers],
        "layers": [sentence for sentence in rest if sentence not in answers],
        "context": _context(drift),
        "causality": [] if causality is None else list(causality["sentences"]),
        "behaviour": [] if behaviour is None else sentences(behaviour),
        "certainty": _certainty(drift, behaviour),
        "limits": _limits(behaviour, causality),
    }


def _context(drift: Row) -> list[str]:
    """What the figures are to be held against, and harmfulness beside refusal."""
    apart, context = drift["harmfulness"], drift["context"]
    return [
        *([] if apart is None else [apart["sentence"]]),
        *([] if context is None else context["sentences"]),
    ]


def _certainty(drift: Row, behaviour: Row | None) -> list[str]:
    said = [
        f"Geometry: {drift['n_harmful']} harmful and {drift['n_harmless']} harmless prompts from "
        f"{drift['n_clusters']} intents, each intent one independent unit. The findings above hold "
        f"together at {percent(drift['level'])}, as does the ranking over its layers; intervals of "
        "single layers hold one at a time."
    ]
    if behaviour is not None:
        said += certainty(behaviour)
    return [*said, *map(as_sentence, drift["notes"])]


def _limits(behaviour: Row | None, causality: Row | None) -> list[str]:
    return [
        "It measures one direction, at one token position, on these prompts; others may differ.",
        f"It does not show {_cause(causality)}which layers' weights were changed.",
        "A change that was not detected may still be there, and refusal can change by ways that "
        "leave this direction alone.",
        "Behaviour was not measured, so what the model now says is unknown."
        if behaviour is None
        else LIMIT,
    ]


def _cause(causality: Row | None) -> str:
    """What is not known of the direction's effect."""
    if causality is not None and causality["handles"] is not None:
        return ""
    selection = None if causality is None else causality["selection"]
    if selection is not None and selection["valid"] and selection["followed"]:
        return "that this direction causes refusal in tuned, nor "
    return "that this direction causes refusal in either model, nor "
