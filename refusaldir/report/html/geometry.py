"""Both models' activations in two dimensions, before and after, with arrows between the two."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from refusaldir.report.html.figure import Cell, Figure, Key, Table, Tip
from refusaldir.report.html.frame import BOTTOM, LEFT, RIGHT, TOP, WIDTH, drawing
from refusaldir.report.html.scale import Scale, labels
from refusaldir.report.html.svg import path, tag
from refusaldir.report.text import number, percent, visible

Row = Mapping[str, Any]

_HEIGHT = 330.0
_CLASSES = (("harmless", 0, "c1"), ("harmful", 1, "c2"))
_TITLES = {
    "direction": "Along base’s direction",
    "pca": "Along the main components",
    "umap": "UMAP",
}


def geometry_figures(drift: Row) -> list[Figure]:
    """Draw every view that a diff document holds."""
    return [_view(view) for view in drift["views"]]


def _view(view: Row) -> Figure:
    points = view["points"]
    both = [*points["base"], *points["tuned"], *_means(view)]
    x = _scale([p[0] for p in both], LEFT, WIDTH - RIGHT)
    y = _scale([p[1] for p in both], TOP + _HEIGHT, TOP)
    parts: list[Markup] = [_axes(view, x, y)]
    for name, label, colour in _CLASSES:
        rows = [i for i, v in enumerate(points["label"]) if v == label]
        parts.append(_cloud(points, rows, colour, f"{name}-base", x, y, tuned=False))
        parts.append(_arrows(points, rows, colour, f"{name}-arrows", x, y))
        parts.append(_cloud(points, rows, colour, f"{name}-tuned", x, y, tuned=True))
    for name, _, colour in _CLASSES:
        parts.append(_mean(view["means"][name], colour, x, y))
    site = view["site"]
    where = f"{site['hook']}, layer {site['layer']}, token {number(site['position'], 0)}"
    title = f"{_TITLES.get(view['method'], view['method'])}: {where}"
    caption = (
        f"A line joins each of {view['n_drawn']} prompts’ place in base (ring) to its place in "
        "tuned (dot); the thick arrows join the class means of all "
        f"{view['n']} prompts."
    )
    keys = []
    for name, _, colour in reversed(_CLASSES):
        keys += [
            Key(label=f"{name}, base", colour=colour, style="ring", series=f"{name}-base"),
            Key(label=f"{name}, tuned", colour=colour, style="dot", series=f"{name}-tuned"),
            Key(label=f"{name}, moves", colour=colour, style="line", series=f"{name}-arrows"),
        ]
    shares = " ".join(
        f"{axis['label'][:1].upper() + axis['label'][1:]}: {percent(axis['share_base'])} of the "
        f"variance of base, {percent(axis['share_tuned'])} of tuned’s"
        + (
            f", {percent(axis['share_change'])} of the change."
            if axis.get("share_change") is not None
            else "."
        )
        for axis in view["axes"]
        if axis.get("share_base") is not None and axis.get("share_tuned") is not None
    )
    return Figure(
        key=f"geometry-{view['method']}-{site['layer']}",
        title=title,
        drawing=drawing(TOP + _HEIGHT + BOTTOM, *parts, label=f"{title}. {caption}"),
        caption=caption,
        definition=" ".join(filter(None, [shares, visible(view["note"])])),
        table=_table(points),
        tips=_tips(points),
        keys=keys,
        near=True,
    )


def _means(view: Row) -> list[Sequence[float]]:
    return [view["means"][name][arm] for name, *_ in _CLASSES for arm in ("base", "tuned")]


def _scale(values: Sequence[float], start: float, end: float) -> Scale:
    low, high = min(values), max(values)
    pad = 0.04 * (high - low) or 1.0
    return Scale(low=low - pad, high=high + pad, start=start, end=end)


def _axes(view: Row, x: Scale, y: Scale) -> Markup:
    across, up = (visible(axis["label"]) for axis in view["axes"])
    parts = [tag("text", up, x=0, y=11, class_="axis")]
    for scale, flat in ((x, True), (y, False)):
        values = scale.ticks()
        for value, text in zip(values, labels(values), strict=True):
            at = scale(value)
            if flat:
                parts.append(tag("line", x1=at, x2=at, y1=TOP, y2=TOP + _HEIGHT, class_="grid"))
                parts.append(tag("text", text, x=at, y=TOP + _HEIGHT + 17, class_="tick mid"))
            else:
                parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="grid"))
                parts.append(tag("text", text, x=LEFT - 7, y=at + 4, class_="tick end"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(tag("text", across, x=middle, y=TOP + _HEIGHT + 34, class_="axis mid"))
    return tag("g", *parts, aria_hidden="true")


def _cloud(
    points: Row, rows: Sequence[int], colour: str, series: str, x: Scale, y: Scale, *, tuned: bool
) -> Markup:
    places = points["tuned" if tuned else "base"]
    form, size = ("dot", 2.4) if tuned else ("ring faint", 2.2)
    return tag(
        "g",
        *(
            tag(
                "circle",
                cx=x(places[i][0]),
                cy=y(places[i][1]),
                r=size,
                class_=f"{form} {colour}",
                data_i=str(i) if tuned else None,
            )
            for i in rows
        ),
        data_series=series,
    )


def _arrows(
    points: Row, rows: Sequence[int], colour: str, series: str, x: Scale, y: Scale
) -> Markup:
    d = "".join(
        path([(x(points[arm][i][0]), y(points[arm][i][1])) for arm in ("base", "tuned")])
        for i in rows
    )
    return tag("g", tag("path", d=d, class_=f"hair {colour}"), data_series=series)


def _mean(means: Row, colour: str, x: Scale, y: Scale) -> Markup:
    """An arrow from base's mean to tuned's, on a halo that sets it off from the points."""
    (ax, ay), (bx, by) = ((x(means[arm][0]), y(means[arm][1])) for arm in ("base", "tuned"))
    size = ((bx - ax) ** 2 + (by - ay) ** 2) ** 0.5 or 1.0
    ux, uy = (bx - ax) / size, (by - ay) / size
    head = [
        (bx, by),
        (bx - 9 * ux + 4.5 * uy, by - 9 * uy - 4.5 * ux),
        (bx - 9 * ux - 4.5 * uy, by - 9 * uy + 4.5 * ux),
    ]
    stem = path([(ax, ay), (bx - 6 * ux, by - 6 * uy)])
    return tag(
        "g",
        tag("path", d=stem, class_="halo"),
        tag("path", d=path(head, closed=True), class_="halo"),
        tag("path", d=stem, class_=f"arrow {colour}"),
        tag("path", d=path(head, closed=True), class_=f"head {colour}"),
        tag("circle", cx=ax, cy=ay, r=4.4, class_=f"ring {colour}"),
    )


def _place(point: Sequence[float]) -> str:
    return f"{point[0]:.4g}, {point[1]:.4g}".replace("-", "−")


def _tips(points: Row) -> list[Tip]:
    names = {label: name for name, label, _ in _CLASSES}
    return [
        Tip(
            title=visible(str(name)),
            lines=[
                (None, "class", names[label]),
                (None, "base", _place(base)),
                (None, "tuned", _place(tuned)),
            ],
        )
        for name, label, base, tuned in zip(
            points["id"], points["label"], points["base"], points["tuned"], strict=True
        )
    ]


def _table(points: Row) -> Table:
    names = {label: name for name, label, _ in _CLASSES}
    rows: list[tuple[Cell, ...]] = [
        (str(name), names[label], *base, *tuned)
        for name, label, base, tuned in zip(
            points["id"], points["label"], points["base"], points["tuned"], strict=True
        )
    ]
    columns = ["prompt", "class", "base x", "base y", "tuned x", "tuned y"]
    return Table(columns=columns, rows=rows)
