"""How many prompts a comparison needs, for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from refusaldir.report.layout import Widest, add_numbers, heading, notes, table
from refusaldir.report.text import number, percent, visible

Row = Mapping[str, Any]

#: The most that is counted out.
_MANY = "over a million"


def plan_report(document: Row) -> RenderableType:
    """Return what a plan says: needed, smallest changes seen, and the noise behind it.

    Args:
        document: `refusaldir.pipeline.planning.Planned.document`.
    """
    chance = percent(document["power"])
    parts: list[RenderableType] = [
        heading(f"Needed to see a change with {chance} power"),
        _needed(document),
        heading(f"Smallest change seen with {chance} power"),
        _sizes(document),
        notes(_notes(document)),
    ]
    return Group(*parts)


def _count(n: int | None) -> str:
    return _MANY if n is None else str(n)


def _needed(document: Row) -> Table:
    titles = {
        "rotation": ("the direction turns by {}°", 1.0, 1),
        "norm": ("its norm shrinks by {} %", 100.0, 1),
        "translation": ("either class shifts by {} base SDs", 1.0, 2),
        "refusals": ("the refusal rate falls by {} points", 100.0, 1),
    }
    layout = table()
    layout.add_column("change", overflow="fold")
    add_numbers(layout, "intents")
    add_numbers(layout, "prompts")
    for row in document["needed"]:
        title, scale, digits = titles[row["effect"]]
        text = title.format(number(row["size"], digits, scale=scale))
        # Refusals are counted in harmful prompts, whatever their intents.
        intents = "" if row["effect"] == "refusals" else _count(row["intents"])
        prompts = _count(row["prompts"])
        layout.add_row(Text(text), intents, prompts)
    return layout


def _sizes(document: Row) -> RenderableType:
    layouts = []
    rows = [(row, "") for row in document["table"]]
    if (own := document["pilot_could_see"]) is not None:
        rows.append((own, "▸ "))
    for spare in (False, True):
        layout = table()
        for title in (
            "intents",
            *(() if spare else ("prompts",)),
            "rotation",
            "norm",
            "shift\nharmful",
            "shift\nharmless",
            "refusals\n(of n)" if spare else "refusals\n(n harmful)",
        ):
            add_numbers(layout, title)
        for row, mark in rows:
            cells = [
                f"{mark}{row['intents']}",
                *(() if spare else (str(row["prompts"]),)),
                _figure(row["rotation"], "{}°", 1),
                _figure(row["norm"], "{} %", 1, 100.0),
                _figure(row["translation_harmful"], "{} SD", 2),
                _figure(row["translation_harmless"], "{} SD", 2),
                _figure(row["refusals"], "{} pts", 1, 100.0),
            ]
            layout.add_row(*map(Text, cells), style="bold" if mark else "")
        layouts.append(layout)
    return Widest(*layouts)


def _figure(value: float | None, form: str, digits: int, scale: float = 1.0) -> str:
    return "–" if value is None else form.format(number(value, digits, scale=scale))


def _notes(document: Row) -> list[str]:
    pilot, noise = document["pilot"], document["noise"]
    lines = []
    if pilot is None:
        lines.append(
            "No pilot: the noise is that of smollm2-135m+aligned against its tuned version, on "
            "the built-in set. A capture of your own model gives its own."
        )
    else:
        site = pilot["site"]
        lines.append(
            f"▸ the pilot itself: {visible(pilot['base'])}"
            + ("" if pilot["tuned"] is None else f" and {visible(pilot['tuned'])}")
            + f" at {site['hook']}.{site['layer']}@{number(site['position'], 0)}."
        )
    how = "measured" if noise["measured"] else "assumed (give a capture of tuned to measure it)"
    lines += [
        f"Noise of one intent: {number(noise['ratio'], 1)} times the direction's squared norm, in "
        f"{number(noise['dimension'], 0)} effective dimensions; share that base and tuned have "
        f"in common {number(noise['shared'], 2)}, {how}.",
        f"Findings hold together at {percent(document['level'])}, as in diff: intervals of "
        f"{percent(document['interval_level'], 1)}. An intent is one independent request; its "
        "twin and its framings are more prompts, not more intents. –: not even the largest "
        "change.",
        f"Refusals: harmful prompts that both models answer (in diff those of the test split), a "
        f"fall from {percent(document['base_rate'])}, {percent(document['discordant'])} flipping "
        "without a net change, McNemar's test by itself.",
    ]
    return lines
