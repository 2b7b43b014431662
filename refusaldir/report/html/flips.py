"""Prompts whose answer changed; what was asked and said comes from the run folders."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from refusaldir.report.html.figure import Cell, Table
from refusaldir.report.html.section import Block, Flips, Texts
from refusaldir.report.text import AXIS_TITLES, visible

if TYPE_CHECKING:
    from refusaldir.probes.behaviour import BehaviourRow
    from refusaldir.probes.run import ProbeRun

Row = Mapping[str, Any]

#: Prompts listed, prompts with texts, and characters of a text: a page stays small.
MOST, MOST_TEXTS, LONGEST = 2000, 300, 1500


def flips_block(behaviour: Row, base: "ProbeRun | None", tuned: "ProbeRun | None") -> Block | None:
    """List them; None where there is no axis."""
    axes = {name: axis for name, axis in behaviour["axes"].items() if axis is not None}
    if not axes:
        return None
    rows: list[tuple[Cell, ...]] = []
    for name, axis in axes.items():
        side = "harmful" if name == "refusal" else "harmless"
        for flip in axis["flips"]:
            rows.append(
                (
                    visible(str(flip["id"])),
                    side,
                    str(flip["to"]),
                    *(visible(str(flip[key] or "")) for key in ("category", "framing", "severity")),
                    100.0 * flip["base"],
                    100.0 * flip["tuned"],
                )
            )
    columns = [
        "prompt", "class", "flipped to", "category", "framing", "severity", "base refused %",
        "tuned refused %",
    ]  # fmt: skip
    columns, rows = _without_empty(columns, rows)
    notes = [f"The first {MOST} of {len(rows)}; all are in the JSON."] if len(rows) > MOST else []
    rows = rows[:MOST]
    texts: dict[str, Texts] = {}
    if base is None or tuned is None or base.single is None or tuned.single is None:
        notes.append("The responses are not beside the document, so there are no texts to show.")
    else:
        wanted = [str(row[0]) for row in rows][:MOST_TEXTS]
        texts = _texts(wanted, base, tuned)
        if len(rows) > MOST_TEXTS:
            notes.append(
                f"Texts of the first {MOST_TEXTS}; all are in base/ and tuned/ beside this page."
            )
    titles = ", ".join(AXIS_TITLES[name].lower() for name in axes)
    flips = Flips(table=Table(columns=columns, rows=rows), texts=texts, note=" ".join(notes))
    title = "Prompts whose answer changed"
    if not rows:
        return Block(title=title, note=f"None ({titles}).")
    return Block(title=title, flips=flips)


def _without_empty(
    columns: list[str], rows: list[tuple[Cell, ...]]
) -> tuple[list[str], list[tuple[Cell, ...]]]:
    """Leave out columns in which nothing stands."""
    keep = [
        j for j in range(len(columns)) if not rows or any(row[j] not in ("", None) for row in rows)
    ]
    return [columns[j] for j in keep], [tuple(row[j] for j in keep) for row in rows]


def _texts(wanted: list[str], base: "ProbeRun", tuned: "ProbeRun") -> dict[str, Texts]:
    """Prompt and both answers; of several, the first one with the commonest label."""
    found = {}
    arms = []
    for run in (base, tuned):
        replies: dict[str, list[BehaviourRow]] = {}
        for row in run.single.rows if run.single is not None else ():
            replies.setdefault(visible(str(row.id)), []).append(row)
        arms.append(replies)
    for name in wanted:
        if name not in arms[0] or name not in arms[1]:
            continue
        ours, theirs = (_typical(replies[name]) for replies in arms)
        found[name] = Texts(
            prompt=_short(ours.prompt),
            base=_short(ours.response),
            tuned=_short(theirs.response),
            base_label=ours.label,
            tuned_label=theirs.label,
        )
    return found


def _typical(rows: "list[BehaviourRow]") -> "BehaviourRow":
    """The first reply with the commonest label."""
    labels = [row.label for row in rows]
    return next(row for row in rows if row.label == max(labels, key=labels.count))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
