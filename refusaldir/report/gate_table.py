"""A gate's outcome, for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from refusaldir.report.gate import FAIL, PASS, UNDECIDED, Limit, points
from refusaldir.report.layout import Bullet, Widest, add_numbers, estimate, heading, notes, table
from refusaldir.report.text import percent, visible

Row = Mapping[str, Any]

#: The first column is no wider, so that the interval fits beside it at 80 columns.
_WIDEST = 32

_WORDS = {PASS: "pass", FAIL: "FAIL", UNDECIDED: "undecided"}
_SAID = {
    PASS: "Passed: every limit holds.",
    FAIL: "Failed: a limit is broken.",
    UNDECIDED: "Not enough data to decide.",
}


def gate_report(document: Row) -> RenderableType:
    """Return what a gate says: the outcome, then each limit with what was seen.

    Args:
        document: `refusaldir.report.gate.Gate.to_dict`.
    """
    names = visible(f"{document['base']} → {document['tuned']}")
    checks = document["checks"]
    level = percent(checks[0]["level"]).replace(" ", "")
    layouts = []
    for interval in (True, False):
        layout = table()
        layout.add_column("limited", overflow="fold", max_width=_WIDEST)
        add_numbers(layout, "at most")
        add_numbers(layout, f"seen, pp [{level}]" if interval else "seen, pp")
        add_numbers(layout, "n")
        layout.add_column("outcome", no_wrap=True)
        for check in checks:
            cell = {**check, "value": check["change"]}
            layout.add_row(
                Text(Limit(**check["limit"]).what),
                points(check["limit"]["most"]),
                Text(estimate(cell, 1, interval=interval, scale=100.0, signed=True)),
                str(check["n"]),
                _WORDS[check["outcome"]],
                style="bold" if check["outcome"] == FAIL else "",
            )
        layouts.append(layout)
    said = [
        Bullet(f"{Limit(**check['limit']).what}: {check['reason']}.")
        for check in checks
        if check["outcome"] != PASS
    ]
    return Group(
        heading(f"{names}: {_SAID[document['outcome']]}"),
        Widest(*layouts),
        *said,
        notes(
            [
                "A limit passes when the whole interval lies within it, responses that could not "
                "be judged taken at their worst, and fails when the whole interval lies beyond. "
                f"Each end of the {percent(checks[0]['level'])} interval is a one-sided bound."
            ]
        ),
    )
