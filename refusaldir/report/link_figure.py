"""The figure of the link to the mechanism: curves, projections, and the change taken apart."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from refusaldir.report.canvas import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    SHADE,
    VERMILLION,
    WIDTH,
    footnote,
    heading,
    style,
    text_width,
    wrap,
)
from refusaldir.report.link_rows import PARTS, link_of, part_rows
from refusaldir.report.text import model_names, percent, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

#: Heights and gaps in inches.
_TOP, _CURVE, _HISTOGRAM, _GAP, _BOTTOM, _ROW = 0.9, 1.75, 1.0, 0.3, 0.85, 0.21


def has_link(document: Row) -> bool:
    """Whether there is anything for `link_figure` to draw."""
    return link_of(document) is not None


def link_figure(document: Row) -> "Figure":
    """Draw how refusal hangs on the projection, and what that makes of the change.

    Above, for prompts by themselves (escalations where there are none): the chance of a refusal
    at each projection in both models, over the histograms of their projections. Below, the change
    of every group taken apart into encoding and readout, escalations by turn.

    Args:
        document: A document whose ``behaviour.link`` has a part.

    Returns:
        The figure; `refusaldir.report.canvas.save_figure` writes it.

    Raises:
        ValueError: The document has no link.
    """
    link = link_of(document)
    if link is None:
        raise ValueError("the document has no link to draw")
    name = next(part for part in PARTS if link[part])
    part = link[name]
    rows = list(_rows(link))
    with style():
        from matplotlib.figure import Figure

        labels = ["\n".join(wrap(label, 2.3, max_lines=1)) for label, _, _ in rows]
        left = 0.32 + max(text_width(label) for label in [*labels, "chance of a refusal"])
        right, gap = 0.35, 0.62
        body = _ROW * len(rows) + 0.1
        total = _TOP + _CURVE + _GAP / 3 + _HISTOGRAM + gap + _GAP + body + _BOTTOM
        figure = Figure(figsize=(WIDTH, total))
        heading(
            figure,
            "Refusal and the projection on base's direction",
            f"{model_names(document)} · {visible(link['direction'] or '')} · {PARTS[name]}",
        )

        def axes_at(down: float, height: float) -> "Axes":
            return figure.add_axes(
                (
                    left / WIDTH,
                    (total - down - height) / total,
                    (WIDTH - left - right) / WIDTH,
                    height / total,
                )
            )

        above = axes_at(_TOP, _CURVE)
        below = axes_at(_TOP + _CURVE + _GAP / 3, _HISTOGRAM)
        below.sharex(above)
        _curves(above, part)
        _histograms(below, part)
        split = axes_at(total - _BOTTOM - body, body)
        _split(split, rows, labels)
        level = percent(link["level"])
        footnote(
            figure,
            f"Bands and bars: {level} intervals, one at a time. Encoding: the projections moved. "
            "Readout: the same projection is answered otherwise. | change observed; what it has "
            "beyond the two is the residual. Groups are read off the curves of all prompts.",
        )
        return figure


def _curves(axes: "Axes", part: Row) -> None:
    """The chance of a refusal at each projection."""
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100 %"])
    axes.set_title("chance of a refusal at each projection", loc="left", fontsize=9, pad=4)
    axes.tick_params(labelbottom=False)
    missing = []
    for model, colour, line in (("base", GREY, "--"), ("tuned", BLACK, "-")):
        curve = part[model]
        if not curve["z"]:
            missing.append(f"{model}: no curve ({visible(curve['note'])})")
            continue
        axes.plot(
            curve["z"], curve["probability"], color=colour, ls=line, lw=1.5, label=model, zorder=3
        )
        if curve["lower"]:
            axes.fill_between(
                curve["z"], curve["lower"], curve["upper"], color=colour, alpha=0.15, lw=0
            )
    for i, text in enumerate(missing):
        axes.text(
            0.01, 0.9 - 0.12 * i, "\n".join(wrap(text, 4.5, max_lines=1)),
            transform=axes.transAxes, fontsize=8, color=GREY,
        )  # fmt: skip
    if len(missing) < 2:
        axes.legend(loc="center right", frameon=False, fontsize=8.5)


def _histograms(axes: "Axes", part: Row) -> None:
    """Projections of both models: base upwards, tuned downwards."""
    found = part["histogram"]
    edges = found["edges"]
    tallest = max(
        max(found[model][side], default=0)
        for model in ("base", "tuned")
        for side in ("harmful", "harmless")
    )
    for model, sign in (("base", 1), ("tuned", -1)):
        for side, colour, hatch in (("harmful", VERMILLION, ""), ("harmless", BLUE, "////")):
            counts = [sign * count for count in found[model][side]]
            axes.stairs(counts, edges, color=colour, lw=1.0)
            axes.stairs(counts, edges, color=colour, alpha=0.25, fill=True, hatch=hatch, lw=0)
    axes.axhline(0, color=BLACK, lw=0.7)
    axes.set_ylim(-1.25 * tallest, 1.25 * tallest)
    axes.set_yticks([-tallest / 1.6, tallest / 1.6], ["tuned", "base"])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("projection, residual norm")
    for x, text, colour in ((0.995, "harmful", VERMILLION), (0.005, "harmless (hatched)", BLUE)):
        axes.text(
            x, 0.97, text, transform=axes.transAxes, color=colour, fontsize=8.5, va="top",
            ha="right" if x > 0.5 else "left",
        )  # fmt: skip


def _rows(link: Row) -> Iterator[tuple[str, Row, bool]]:
    """Label, parts and weight of every row of the lower panel."""
    for name in PARTS:
        if link[name] is not None:
            yield from part_rows(name, link[name])


def _split(axes: "Axes", rows: Sequence[tuple[str, Row, bool]], labels: Sequence[str]) -> None:
    """Encoding and readout of every row, with intervals, and the change observed."""
    axes.set_title("change of refusals taken apart, points", loc="left", fontsize=9, pad=16)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=BLACK, lw=0.7, zorder=1)
    axes.grid(axis="x", color="#DDDDDD", lw=0.6)
    for text, (_, _, bold) in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_fontweight("bold" if bold else "normal")
    drawn: dict[str, Any] = {}
    for y, (_, parts, bold) in enumerate(rows):
        if bold:
            axes.axhspan(y - 0.5, y + 0.5, color=SHADE, lw=0, zorder=0)
        observed = parts["observed"]["value"]
        if observed is not None:
            drawn["observed"] = axes.plot(
                100 * observed, y, "|", color=BLACK, ms=11, mew=1.4, zorder=4
            )[0]
        for key, colour, marker, off in (
            ("encoding", GREEN, "o", -0.17),
            ("readout", GREY, "s", 0.17),
        ):
            cell = parts[key]
            if cell["value"] is None:
                continue
            if cell["lower"] is not None:
                ends = [100 * cell["lower"], 100 * cell["upper"]]
                axes.plot(ends, [y + off] * 2, color=colour, lw=1.2, alpha=0.7, zorder=2)
            drawn[key] = axes.plot(
                100 * cell["value"], y + off, marker, color=colour, ms=4.2, ls="", zorder=3
            )[0]
    axes.legend(
        drawn.values(), drawn.keys(), loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3,
        frameon=False, fontsize=8.5, borderaxespad=0.1, handletextpad=0.2, columnspacing=1.0,
    )  # fmt: skip
