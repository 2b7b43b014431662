"""What is known of one direction, for a terminal."""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from refusaldir.report.layout import add_numbers, estimate, heading, notes, table
from refusaldir.report.text import number, percent, visible

Row = Mapping[str, Any]


def direction_table(about: Row) -> RenderableType:
    """The facts of a direction file.

    Args:
        about: `refusaldir.directions.mean_diff.Direction.to_dict`, with or without the vector.
    """
    return _grid(_facts(about))


def reading_report(reading: Row) -> RenderableType:
    """Facts, tokens, and, where there were prompts, separation and reliability.

    Args:
        reading: `refusaldir.directions.reading.Reading.to_dict`.
    """
    top = reading["top_share"]
    facts = [
        *_facts(reading["direction"]),
        ("read in", visible(reading["model"])),
        ("concentration", f"{percent(top['share'], 1)} of ‖v‖² in dimension {top['index']}"),
    ]
    parts = [_grid(facts), _tokens(reading["vocabulary"])]
    if reading["prompts"] is not None:
        parts.append(_figures(reading))
    if reading["notes"]:
        parts.append(notes(["", *map(visible, reading["notes"])]))
    return Group(*parts)


def _facts(about: Row) -> list[tuple[str, str]]:
    site, made = about["site"], about["provenance"]
    facts = [
        ("site", f"{site['hook']}.{site['layer']}@{number(site['position'], 0)}"),
        ("estimator", visible(about["estimator"])),
        ("norm", f"{number(about['norm'], 3)} (raw, residual norm)"),
    ]
    if made is None:
        return [*facts, ("fitted on", "not recorded")]
    counts = f"{about['n_harmful']} harmful and {about['n_harmless']} harmless prompts"
    fitted = f"{counts} of {made['prompts_name']}, in {made['model']['name']}"
    return [*facts, ("fitted on", visible(fitted))]


def _grid(facts: list[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(name, Text(value))
    return grid


def _tokens(vocabulary: Row) -> RenderableType:
    layout = table()
    for title in ("for", "against"):
        layout.add_column(title, no_wrap=True)
        add_numbers(layout, "weight")
    for pair in zip_longest(vocabulary["top"], vocabulary["bottom"]):
        cells: list[Text] = []
        for token in pair:
            quoted = "" if token is None else f"“{visible(token['text'])}”"
            weight = "" if token is None else number(token["weight"], 3, signed=True)
            cells += [Text(quoted), Text(weight)]
        layout.add_row(*cells)
    line = (
        "Weight: what the direction adds to a token's logit through the final norm and the "
        "unembedding, times the size (RMS) of the stream there; standard deviation over "
        f"{vocabulary['n_tokens']} tokens {number(vocabulary['spread'], 3)}. Later blocks may read "
        "the direction otherwise."
    )
    return Group(heading("Tokens it speaks for and against"), layout, notes([line]))


def _figures(reading: Row) -> RenderableType:
    layout = table()
    layout.add_column("", no_wrap=True)
    add_numbers(layout, "value")
    lines = []
    moved, halves = reading["transfer"], reading["split_half"]
    if moved is not None:
        layout.add_row("AUROC", Text(estimate(moved["auroc"], 3)))
        layout.add_row("d′", Text(estimate(moved["d_prime"], 2)))
        lines.append(
            f"AUROC and d′ of the fixed direction on {moved['n_harmful']} harmful and "
            f"{moved['n_harmless']} harmless prompts, with "
            f"{percent(moved['auroc']['level'])} intervals."
        )
    layout.add_row("split-half cosine", Text(number(halves["cosine"], 3)))
    layout.add_row("reliability", Text(number(halves["reliability"], 3)))
    if halves["signal_share"] is not None:
        layout.add_row("signal share of ‖r‖²", Text(estimate(halves["signal_share"], 3)))
    lines.append(
        f"Split halves: how alike directions are that are estimated at this site from two halves "
        f"of these prompts ({halves['repeats']} splits). Reliability takes that to all of them: 1 "
        "is no noise, 0 no signal."
    )
    title = f"On the prompts of {visible(reading['prompts'])}"
    return Group(heading(title), layout, notes(lines))
