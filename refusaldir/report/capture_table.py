"""What is in a capture, for a terminal: built from `refusaldir.store.summary`."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from refusaldir.report.layout import Widest, add_numbers, heading, notes, select_layers, table
from refusaldir.report.text import number, visible

Row = Mapping[str, Any]


def capture_table(summary: Row) -> RenderableType:
    """Return the contents of a capture: what was captured, and how large the difference is.

    Args:
        summary: From `refusaldir.store.summary`.

    Returns:
        A rich renderable: the facts, then the norm of the mean difference per layer and
        position, a table a hook.
    """
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(summary):
        facts.add_row(name, Text(visible(value)))
    parts: list[RenderableType] = [facts]
    for hook, norms in summary["mean_diff_norm"].items():
        parts.append(_norm_table(summary, hook, norms))
    return Group(*parts)


def _facts(summary: Row) -> list[tuple[str, str]]:
    provenance = summary["provenance"]
    model, template, prompts = provenance["model"], provenance["template"], summary["prompts"]
    classes, tokens = prompts["classes"], prompts["n_tokens"]
    splits = [
        f"{name} {count['harmful']} + {count['harmless']}"
        for name, count in prompts["splits"].items()
    ]
    precision = model["dtype"] + (f", {model['quantization']}" if model["quantization"] else "")
    rendering = f"system prompt {template['system']!r}"
    if template["thinking"] is not None:
        rendering += f", thinking {'on' if template['thinking'] else 'off'}"
    positions = [f"{number(p['offset'], 0)} “{p['label']}”" for p in summary["positions"]]
    layers = summary["layers"]
    return [
        ("capture", summary["path"]),
        ("model", f"{model['name']} ({model['architecture']}, {precision}, {model['backend']})"),
        ("spec", model["spec"]),
        (
            "prompts",
            f"{prompts['name']}: {classes['harmful']} harmful and {classes['harmless']} harmless "
            f"from {prompts['n_intents']} intents in {len(prompts['categories'])} categories",
        ),
        *([("splits", f"{', '.join(splits)} (harmful + harmless)")] if len(splits) > 1 else []),
        (
            "tokens",
            f"{tokens['min']} to {tokens['max']} a prompt, median {number(tokens['median'], 1)}",
        ),
        ("template", f"{template['template_hash']}, {rendering}"),
        ("hooks", ", ".join(summary["hooks"])),
        ("layers", f"{_ranges(layers)} of {model['n_layers']}"),
        ("positions", ", ".join(positions)),
        (
            "size",
            " × ".join(str(length) for length in summary["shape"].values())
            + f" ({', '.join(summary['shape'])}) in {summary['storage_dtype']}, "
            + _bytes(summary["size_bytes"]),
        ),
        ("created", f"{provenance['created']}, fingerprint {summary['fingerprint']}"),
        *(("note", note) for note in prompts["notes"]),
    ]


def _norm_table(summary: Row, hook: str, norms: Sequence[Sequence[float]]) -> RenderableType:
    rows = [
        {"layer": layer, "norms": values}
        for layer, values in zip(summary["layers"], norms, strict=True)
    ]
    shown, left_out = select_layers(rows)
    offsets = [p["offset"] for p in summary["positions"]]
    labels = [p["label"] for p in summary["positions"]]
    # From the last position backwards, as many as fit.
    layouts = []
    for first in range(len(offsets)):
        layout = table()
        add_numbers(layout, "layer")
        for offset, label in zip(offsets[first:], labels[first:], strict=True):
            token = visible(label)
            token = token if len(token) <= 12 else token[:11] + "…"
            add_numbers(layout, f"{number(offset, 0)}\n{token}")
        for row in shown:
            cells = [number(value, 2) for value in row["norms"][first:]]
            layout.add_row(str(row["layer"]), *map(Text, cells))
        if first:
            layout.caption = f"The last {len(offsets) - first} of {len(offsets)} positions fit."
            layout.caption_justify = "left"
        layouts.append(layout)
    lines = ["Columns: token offset from the end of the prompt, and the token."]
    return Group(
        heading(f"Norm of the mean difference at {hook} (raw, residual norm)"),
        Widest(*layouts),
        notes([*lines, *([left_out] if left_out else [])]),
    )


def _ranges(values: Sequence[int]) -> str:
    """Write 0, 1, 2, 5 as ``0–2, 5``."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][-1] + 1:
            parts[-1][1:] = [value]
        else:
            parts.append([value])
    return ", ".join("–".join(map(str, part)) for part in parts)


def _bytes(size: int) -> str:
    """Write a file size with its unit, e.g. ``1.5 MB``."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
