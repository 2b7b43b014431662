"""The figure of behaviour by category."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from refusaldir.report.behaviour_verdict import responses
from refusaldir.report.canvas import (
    BLACK,
    BLUE,
    GREY,
    VERMILLION,
    WIDTH,
    footnote,
    heading,
    style,
    text_width,
    wrap,
)
from refusaldir.report.text import (
    ALPHA,
    AXIS_TITLES,
    category_order,
    model_names,
    passes_holm,
    percent,
    visible,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]


def behaviour_figure(document: Row) -> "Figure":
    """Draw refusal rates by category, base → tuned, on harmful and on harmless prompts.

    The bar behind each pair is the interval of the paired difference, drawn from the base rate:
    a bar that reaches the base marker means a change that the data do not show. Categories
    come in the order of the change on harmful prompts, the largest drop first.

    Args:
        document: A diff or behaviour document whose ``behaviour`` is not null.

    Returns:
        The figure; `save_figure` writes it.

    Raises:
        ValueError: The document has no behaviour.
    """
    behaviour = document["behaviour"]
    if not has_behaviour(document):
        raise ValueError("the document has no behaviour to draw")
    with style():
        from matplotlib.figure import Figure

        level = next(a for a in behaviour["axes"].values() if a)["overall"]["difference"]["level"]
        axes_shown = [name for name in AXIS_TITLES if behaviour["axes"][name]]
        names = category_order(behaviour)
        labels = ["\n".join(wrap(visible(name), 2.1, max_lines=2)) for name in names]
        heights = [0.33 if "\n" in label else 0.25 for label in labels]
        pitch = [0.3, 0.12, *heights]
        left = 0.2 + max(
            text_width(line) for text in (*labels, "all prompts") for line in text.split("\n")
        )
        right, middle, top, bottom = 0.62, 0.72, 1.12, 1.12
        total = top + bottom + sum(pitch)
        width = max(WIDTH, left + right + 4.4)
        figure = Figure(figsize=(width, total))
        heading(figure, "Refusals by category, base → tuned", _subtitle(document))
        each = (width - left - right - middle * (len(axes_shown) - 1)) / len(axes_shown)
        ends = [sum(pitch[: i + 1]) for i in range(len(pitch))]
        centres = [end - step / 2 for end, step in zip(ends, pitch, strict=True)]
        where: dict[str | None, float] = {None: centres[0]}
        where.update(zip(names, centres[2:], strict=True))
        for i, name in enumerate(axes_shown):
            x = left + i * (each + middle)
            axes = figure.add_axes(
                (x / width, bottom / total, each / width, (total - top - bottom) / total)
            )
            axes.set_ylim(sum(pitch), 0)
            axes.set_yticks(list(where.values()), ["all prompts", *labels] if i == 0 else [])
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.axhline(0.36, color=GREY, lw=0.6, xmin=0)
            _draw_dumbbells(axes, behaviour["axes"][name], where, name)
        footnote(
            figure,
            f"○ base   ● tuned   Bar: {percent(level)} interval of the paired change, drawn from "
            "the base rate and cut at 0 and 100 %; where it reaches ○, no change was detected.",
            f"* change with Holm-adjusted p < {ALPHA} over the categories",
        )
        return figure


def has_behaviour(document: Row) -> bool:
    """Whether there is anything for `behaviour_figure` to draw."""
    return document["behaviour"] is not None and any(document["behaviour"]["axes"].values())


def _subtitle(document: Row) -> str:
    """Say which models and judge the rates come from."""
    behaviour = document["behaviour"]
    said = f"{responses(behaviour)} a prompt"
    return f"{model_names(document)} · judge: {visible(behaviour['judge'])} · {said}"


def _draw_dumbbells(axes: "Axes", axis: Row, where: Mapping[str | None, float], name: str) -> None:
    """Draw one behaviour axis: a row for all prompts, then one for each category."""
    colour = VERMILLION if name == "refusal" else BLUE
    axes.set_title(AXIS_TITLES[name], loc="left", fontsize=9, pad=18)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25", "50", "75", "100"])
    axes.set_xlabel("prompts refused, %")
    axes.grid(axis="x", color="#DDDDDD", lw=0.6)
    axes.text(1.04, 1.0, "n", transform=axes.transAxes, fontsize=8.5, color=GREY, va="bottom")
    rows: list[tuple[str | None, Row]] = [(None, axis["overall"])]
    rows += [(row["name"], row) for row in axis["breakdowns"]["category"]["groups"]]
    for key, row in rows:
        y = where[key]
        base, tuned = row["base_rate"]["value"], row["tuned_rate"]["value"]
        change = row["difference"]
        thick = 1.25 if key is None else 1.0
        star = " *" if passes_holm(row) else ""
        axes.text(
            1.04,
            y,
            f"{row['n_paired']}{star}",
            transform=axes.get_yaxis_transform(),
            fontsize=8.5,
            color=BLACK if star else GREY,
            va="center",
        )
        if base is None or tuned is None:
            axes.text(0.5, y, "no usable answers", fontsize=8, color=GREY, ha="center", va="center")
            continue
        if change["lower"] is not None and change["upper"] is not None:
            low, high = (min(1.0, max(0.0, base + change[k])) for k in ("lower", "upper"))
            axes.plot(
                [low, high], [y, y], color=colour, alpha=0.28, lw=6 * thick,
                solid_capstyle="butt", zorder=2,
            )  # fmt: skip
        axes.plot([base, tuned], [y, y], color=colour, lw=1.2 * thick, zorder=3)
        axes.plot(base, y, "o", ms=6.5 * thick, mfc="white", mec=BLACK, mew=1.0, zorder=4)
        axes.plot(tuned, y, "o", ms=4.2 * thick, color=colour, zorder=5)
