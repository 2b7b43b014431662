"""Terminal tables of the link to the mechanism."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from refusaldir.report.layout import Widest, add_numbers, estimate, heading, notes, table
from refusaldir.report.link_rows import PARTS, link_of, part_rows
from refusaldir.report.text import AXIS_TITLES, percent, visible

Row = Mapping[str, Any]

_SPLIT = (
    "Change: share refused, tuned minus base, in points. Encoding: what it would be had only the "
    "projections on base's direction moved; readout: had only the answer to a given projection "
    "changed; each over both orders. Neither: what the two curves of refusal, fitted on all "
    "prompts, do not reproduce."
)


def link_tables(document: Row) -> list[RenderableType]:
    """Return the change of refusals taken apart, and drift against behaviour by category.

    Args:
        document: A document with ``behaviour``.

    Returns:
        No table where there are no projections.
    """
    link = link_of(document)
    if link is None:
        return []
    asked = [name for name in PARTS if link[name] is not None]
    found: list[RenderableType] = [
        _split(name, link[name], explained=name == asked[0]) for name in asked
    ]
    axes = link["categories"]["axes"]
    known = [name for name in AXIS_TITLES if axes[name] is not None]
    for name in known:
        limit = link["categories"]["note"] if name == known[0] else ""
        found.append(_categories(AXIS_TITLES[name], axes[name], limit))
    return found


def _split(name: str, part: Row, *, explained: bool) -> RenderableType:
    level = percent(part["level"]).replace(" ", "")
    rows = list(part_rows(name, part))
    layouts = [_split_layout(rows, part["group_kind"], level, wide) for wide in (3, 2, 1, 0)]
    lines = [_SPLIT, f"[{level}]: intervals, one at a time."] if explained else []
    lines += [_sentence(note) for note in part["notes"]]
    title = f"Through the direction or past it: {PARTS[name]}"
    return Group(heading(title), Widest(*layouts), *([notes(lines)] if lines else []))


def _sentence(note: str) -> str:
    """A note as a sentence."""
    text = visible(note)
    return f"{text[:1].upper()}{text[1:]}."


def _split_layout(rows: Sequence[tuple[str, Row, bool]], kind: str, level: str, wide: int) -> Table:
    """``wide``: 3 gives every figure its interval, 2 the two parts, 1 none, 0 the parts alone."""
    layout = table()
    # Long names go on in the next line where that leaves room for intervals in 80 columns.
    layout.add_column(kind, overflow="fold", min_width=10, max_width=16 if wide == 2 else 22)
    columns = [("n", False), ("observed", wide == 3), ("encoding", wide >= 2)]
    columns += [("readout", wide >= 2), ("residual", wide == 3)]
    if wide == 0:
        columns = [("encoding", False), ("readout", False)]
    titles = {"n": "n", "observed": "change", "residual": "neither"}
    for name, interval in columns:
        title = titles.get(name, name)
        add_numbers(layout, f"{title} [{level}]" if interval else title)
    for i, (label, parts, bold) in enumerate(rows):
        cells = [
            str(parts["n"])
            if name == "n"
            else estimate(parts[name], 1, interval=interval, scale=100.0, signed=True)
            for name, interval in columns
        ]
        last = bold and i + 1 < len(rows) and not rows[i + 1][2]
        layout.add_row(
            Text(label), *map(Text, cells), style="bold" if bold else "", end_section=last
        )
    return layout


def _categories(title: str, found: Row, limit: str) -> RenderableType:
    """One axis; without a limit, also without the words that the first one had."""
    layout, words = correlation_table(
        found["correlations"], found, over="categories", limits=[limit]
    )
    head = heading(f"Drift against behaviour by category: {title[0].lower()}{title[1:]}")
    return Group(head, layout, *([words] if limit else []))


def correlation_table(
    correlations: Sequence[Row], about: Row, *, over: str, limits: Sequence[str] = ()
) -> tuple[RenderableType, RenderableType]:
    """Return a row a measure, rivals marked, and what the figures mean.

    Args:
        correlations: Of each measure with the change of the refusal rate.
        about: Holds ``measures`` and ``rivals``.
        over: What the rows of the correlation are, in the plural.
        limits: What it cannot tell.
    """
    level = percent(correlations[0]["kendall"]["level"]).replace(" ", "")
    with_ends = any(each["kendall"]["lower"] is not None for each in correlations)
    layouts = [_correlation_layout(correlations, about, level, wide) for wide in (2, 1, 0)]
    lines = [
        f"Rank correlation, over the {over}, of each measure with the change of the refusal rate."
    ]
    if with_ends:
        lines.append(
            f"[{level}]: by drawing {over} with replacement; a measure orders them as behaviour "
            "does where it leaves out 0."
        )
    lines += [_sentence(f"{name}: {said}") for name, said in about["measures"].items()]
    if about["rivals"]:
        lines.append("°: knows nothing of refusal, a rival to hold the others against.")
    lines += map(_sentence, limits)
    # Said once: what is missing from a figure, or from its interval.
    lines += map(
        _sentence, dict.fromkeys(filter(None, (e["kendall"]["note"] for e in correlations)))
    )
    return Widest(*layouts), notes(lines)


def _correlation_layout(correlations: Sequence[Row], about: Row, level: str, wide: int) -> Table:
    """``wide``: 2 gives both correlations, 1 the first with its interval, 0 without."""
    layout = table()
    layout.add_column("measure", overflow="fold", min_width=10, max_width=20)
    add_numbers(layout, "n")
    with_ends = any(each["kendall"]["lower"] is not None for each in correlations)
    ends = f" [{level}]" if with_ends else ""
    add_numbers(layout, f"Kendall τ{ends}" if wide else "Kendall τ")
    if wide == 2:
        add_numbers(layout, f"Spearman ρ{ends}")
    for each in correlations:
        name = visible(each["measure"]) + ("°" if each["measure"] in about["rivals"] else "")
        cells = [
            str(len(each["rows"])),
            estimate(each["kendall"], 2, interval=wide > 0, signed=True),
        ]
        if wide == 2:
            cells.append(estimate(each["spearman"], 2, signed=True))
        layout.add_row(Text(name), *map(Text, cells))
    return layout
