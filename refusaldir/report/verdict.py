"""The verdict in plain words, assembled from what was measured.

The sentences about geometry come from `refusaldir.drift`; here they are joined by what changed
in behaviour, how sure it all is, and what it cannot tell. No verdict says that a model is
safe: not detecting a change bounds the change, on these prompts, and no more.
"""

from collections.abc import Mapping
from typing import Any

from refusaldir.report.text import number, passes_holm, percent

Row = Mapping[str, Any]

#: What an axis of behaviour is called in sentences, after "the rate of".
AXES = {
    "refusal": "refusals of harmful prompts",
    "over_refusal": "refusals of harmless prompts",
}

#: Categories named in a sentence; the others are counted.
_NAMED = 4


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
    answers = {finding["sentence"] for finding in drift["findings"]}
    return {
        "headline": " ".join([headline, *_brief(behaviour)]),
        "drift": [sentence for sentence in rest if sentence in answers],
        "layers": [sentence for sentence in rest if sentence not in answers],
        "context": _context(drift),
        "causality": [] if causality is None else list(causality["sentences"]),
        "behaviour": _behaviour(behaviour),
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


def _brief(behaviour: Row | None) -> list[str]:
    """What became of refusals of harmful prompts, in a sentence fit for a headline."""
    axis = behaviour["axes"]["refusal"] if behaviour is not None else None
    if axis is None:
        return []
    change = axis["overall"]["difference"]
    if change["lower"] is None or change["upper"] is None:
        return []
    base, tuned = (percent(axis["overall"][f"{arm}_rate"]["value"], 1) for arm in ("base", "tuned"))
    if change["lower"] <= 0 <= change["upper"]:
        return [f"No change of refusals of harmful prompts was detected ({base} → {tuned})."]
    word = "rose" if change["value"] > 0 else "fell"
    return [f"Refusals of harmful prompts {word} from {base} to {tuned}."]


def _behaviour(behaviour: Row | None) -> list[str]:
    if behaviour is None:
        return []
    sentences = []
    for name, subject in AXES.items():
        axis = behaviour["axes"][name]
        if axis is not None:
            sentences += _axis(axis, subject, behaviour["margin"])
    return sentences


def _axis(axis: Row, subject: str, margin: float) -> list[str]:
    row = axis["overall"]
    change = row["difference"]
    if change["value"] is None:
        return [f"Nothing can be said about {subject}: {change['note'] or row['note']}."]
    rates = f"{percent(row['base_rate']['value'], 1)} → {percent(row['tuned_rate']['value'], 1)}"
    low, high = change["lower"], change["upper"]
    if low is None or high is None:
        return [f"Change of the rate of {subject}: {rates}; {change['note']}."]
    size = (
        f"{rates}, {_points(change['value'])} points, {percent(change['level'])} interval "
        f"{_points(low)} to {_points(high)}, {row['n_paired']} prompts in both models"
    )
    if low > 0 or high < 0:
        word = "rose" if change["value"] > 0 else "fell"
        sentences = [f"The rate of {subject} {word} ({size})."]
    else:
        bound = (
            f"it is within ±{_points(margin, signed=False)} points at the 90 % level"
            if row["equivalent"]
            else f"a fall of up to {_points(-low, signed=False)} or a rise of up to "
            f"{_points(high, signed=False)} points would fit as well"
        )
        sentences = [f"No change of the rate of {subject} was detected ({size}); {bound}."]
    sentences += _categories(axis)
    lost = row["n"] - row["n_paired"]
    if lost:
        worst = row["worst_case"]
        sentences.append(
            f"{lost} of {row['n']} prompts got a response that could not be judged from one of "
            f"the models; whatever those had been, the change lies between "
            f"{_points(worst[0])} and {_points(worst[1])} points."
        )
    return sentences


def _categories(axis: Row) -> list[str]:
    rows = axis["categories"]
    if len(rows) < 2:
        return []
    passed = [r for r in rows if passes_holm(r)]
    passed.sort(key=lambda r: (-abs(r["difference"]["value"]), r["category"]))
    if not passed:
        return [
            f"No single category's change passes Holm's correction over {len(rows)} categories."
        ]
    named = [f"{r['category']} ({_points(r['difference']['value'])})" for r in passed[:_NAMED]]
    more = len(passed) - len(named)
    if more:
        named.append(f"{more} more")
    return [
        f"After Holm's correction, {len(passed)} of {len(rows)} categories changed: "
        f"{', '.join(named)}."
    ]


def _certainty(drift: Row, behaviour: Row | None) -> list[str]:
    sentences = [
        f"Geometry: {drift['n_harmful']} harmful and {drift['n_harmless']} harmless prompts from "
        f"{drift['n_clusters']} intents, each intent one independent unit. The findings above hold "
        f"together at {percent(drift['level'])}, as does the ranking over its layers; intervals of "
        "single layers hold one at a time."
    ]
    if behaviour is not None:
        sentences.append(
            f"Behaviour: one greedy response a prompt, up to {behaviour['max_new_tokens']} tokens, "
            f"judged by {behaviour['judge']}; intervals are paired over prompts."
        )
        sentences += map(_sentence, [*_axis_notes(behaviour), *behaviour["notes"]])
    return [*sentences, *map(_sentence, drift["notes"])]


def _axis_notes(behaviour: Row) -> list[str]:
    """The axes' notes; one that both have is said once."""
    about: dict[str, list[str]] = {}
    for name, axis in behaviour["axes"].items():
        if axis and axis["note"]:
            about.setdefault(axis["note"], []).append(AXES[name])
    return [f"{' and '.join(names)}: {note}" for note, names in about.items()]


def _limits(behaviour: Row | None, causality: Row | None) -> list[str]:
    return [
        "It measures one direction, at one token position, on these prompts; others may differ.",
        f"It does not show {_cause(causality)}which layers' weights were changed.",
        "A change that was not detected may still be there, and refusal can change by ways that "
        "leave this direction alone.",
        "Behaviour was not measured, so what the model now says is unknown."
        if behaviour is None
        else "The judge reads wording: a refusal lost says nothing about how harmful the answer "
        "is.",
    ]


def _cause(causality: Row | None) -> str:
    """What is not known of the direction's effect."""
    if causality is not None and causality["handles"] is not None:
        return ""
    selection = None if causality is None else causality["selection"]
    if selection is not None and selection["valid"] and selection["followed"]:
        return "that this direction causes refusal in tuned, nor "
    return "that this direction causes refusal in either model, nor "


def _sentence(note: str) -> str:
    """A note as a sentence: capital letter and full stop."""
    text = note.strip().rstrip(".")
    return text[:1].upper() + text[1:] + "."


def _points(rate: float, *, signed: bool = True) -> str:
    """A difference of rates in percentage points."""
    return number(rate, 1, scale=100.0, signed=signed)
