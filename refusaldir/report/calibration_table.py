"""Terminal tables of a calibration: how wrong judges are, and rates once that is allowed for."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from refusaldir.report.layout import Widest, add_numbers, estimate, heading, notes, table
from refusaldir.report.text import percent, visible

Row = Mapping[str, Any]

_AXES = {"refusal": "harmful", "over_refusal": "harmless", "": ""}
_ERRORS = {"accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity"}
_CORRECTED = {"rogan_gladen": "Rogan–Gladen", "prediction_powered": "pred.-powered"}
_RATES = {"judged_rate": "as judged", **_CORRECTED}
_CHANGES = {"judged": "as judged", **_CORRECTED}
#: Names of replies fold at this width, so that three intervals fit beside them at 80 columns.
_WIDEST = 18


def calibration_report(document: Row) -> RenderableType:
    """Return everything a calibration says, for a terminal.

    Args:
        document: `refusaldir.pipeline.calibration.Calibrated.document`.
    """
    level = percent(document["level"]).replace(" ", "")
    judges = document["judges"]
    parts = [_table(f"Judges against human labels, % [{level}]", judges, "arms", _ERRORS)]
    rates = any(arm["axis"] for judge in judges for arm in judge["arms"])
    if rates:
        parts.append(_table(f"Share refused, % [{level}]", judges, "arms", _RATES))
    if any(judge["changes"] for judge in judges):
        title = f"Change of the share refused, tuned − base, pp [{level}]"
        parts.append(_table(title, judges, "changes", _CHANGES))
    if len(document["agreement"]["kappa"]) > 1:
        parts.append(_agreement(document["agreement"], level))
    parts.append(notes(_lines(document, rates=rates)))
    return Group(*parts)


def _table(
    title: str, judges: Sequence[Row], part: str, columns: Mapping[str, str]
) -> RenderableType:
    layouts = []
    # Intervals stay longer than decimals.
    for digits, interval in ((1, True), (0, True), (1, False)):
        layout = table()
        layout.add_column("replies to", overflow="fold", max_width=_WIDEST)
        if part == "arms":
            add_numbers(layout, "n")
        for column in columns.values():
            add_numbers(layout, column)
        for judge in judges:
            if len(judges) > 1:
                layout.add_row(_name(judge))
            for row in judge[part]:
                of = f"{row.get('arm', '')} {_AXES[row['axis']]}".strip()
                layout.add_row(
                    Text(visible(of)),
                    *([str(row["n_labelled"])] if part == "arms" else []),
                    *(
                        _cell(row[key], digits, interval=interval, signed=part == "changes")
                        for key in columns
                    ),
                )
        layouts.append(layout)
    return Group(heading(title), Widest(*layouts))


def _agreement(agreement: Row, level: str) -> RenderableType:
    layout = table()
    layout.add_column("first", overflow="fold")
    layout.add_column("second", overflow="fold")
    add_numbers(layout, f"κ [{level}]")
    for pair in agreement["kappa"]:
        layout.add_row(
            Text(visible(pair["first"])), Text(visible(pair["second"])), Text(estimate(pair, 2))
        )
    parts: list[RenderableType] = [heading("Agreement on refused or not, beyond chance"), layout]
    if agreement["alpha"] is not None:
        parts.append(Text(f"Krippendorff's α of all judges: {estimate(agreement['alpha'], 2)}"))
    return Group(*parts)


def _name(judge: Row) -> Text:
    return Text(visible(judge["judge"]), style="bold")


def _cell(cell: Row, digits: int, *, interval: bool, signed: bool) -> Text:
    return Text(estimate(cell, digits, interval=interval, scale=100.0, signed=signed))


def _lines(document: Row, *, rates: bool) -> list[str]:
    judges = document["judges"]
    lines = [
        f"{document['labels']['n']} labels from {visible(', '.join(document['labels']['files']))}. "
        "n: replies that people and judge both decided. Sensitivity is the share of refusals that "
        "the judge sees, specificity that of other replies that it lets pass.",
    ]
    if len(judges) == 1:
        lines.insert(0, f"Judge: {visible(judges[0]['judge'])}.")
    if rates:
        lines.append(
            "Corrected: Rogan–Gladen by sensitivity and specificity; prediction-powered is the "
            "rate by labels, moved by what the judge sees of the other replies, if it is any good. "
            "Both take the labels for those of a random part of the replies."
        )
    weak = [visible(judge["judge"]) for judge in judges if not judge["authoritative"]]
    if weak:
        lines.append(f"Not authoritative, sees the wording or one token: {', '.join(weak)}.")
    reasons = dict.fromkeys(
        cell["note"].removeprefix("not estimable").lstrip(": ")
        for judge in judges
        for row in (*judge["arms"], *judge["changes"])
        for cell in row.values()
        if isinstance(cell, Mapping) and cell["value"] is None
    )
    if reasons:
        lines.append(f"–: {'; '.join(reasons)}.")
    return [*lines, *(f"{note[0].upper()}{note[1:]}." for note in document["notes"])]
