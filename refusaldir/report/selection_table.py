"""What causal selection found, for a terminal."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from refusaldir.report.layout import Bullet, add_numbers, heading, notes, table
from refusaldir.report.text import number, visible

Row = Mapping[str, Any]


def selection_report(document: Row, *, limit: int = 12) -> RenderableType:
    """The verdict, the best candidates, and why the others were dropped.

    Args:
        document: The content of ``select.json``.
        limit: Most candidates shown.
    """
    found = document["selection"]
    model = visible(document["provenance"]["model"]["name"])
    panel = Panel(Group(*map(Bullet, sentences(document))), title=f"Refusal direction of {model}")
    if found is None:
        return panel
    ranked = sorted(found["candidates"], key=_rank)
    return Group(
        panel,
        _table(document, ranked[:limit], len(ranked)),
        notes(_legend(document, ranked)),
    )


def sentences(document: Row) -> list[str]:
    """The result in words."""
    tokens, found = document["refusal_tokens"], document["selection"]
    names = ", ".join(f"“{visible(text)}”" for text in tokens["texts"])
    if found is None:
        return [
            f"No refusal tokens were found ({tokens['note']}), so refusal scores cannot be made. "
            "Name them with --refusal-token."
        ]
    lines = []
    chosen, limits = found["chosen"], found["thresholds"]
    if chosen is not None:
        lines.append(
            f"The direction at {_site(chosen)} meets every criterion: ablating it takes the mean "
            f"refusal score of harmful prompts from {_score(found['clean_harmful'])} to "
            f"{_score(chosen['bypass'])}, adding it takes that of harmless prompts from "
            f"{_score(found['clean_harmless'])} to {_score(chosen['induce'])}, and ablating it "
            f"changes the first token of harmless answers by {number(chosen['kl'], 3)} nats of KL "
            f"(at most {number(limits['kl'], 2)} allowed)."
        )
        if chosen["bypass"] >= 0:
            lines.append(
                "Yet with it ablated the model would still rather refuse harmful prompts: refusal "
                "does not hang on this direction alone."
            )
    else:
        lines.append("No valid direction: no candidate meets every criterion.")
        near = found["nearest"]
        if near is not None:
            lines.append(
                f"The nearest, {_site(near)}, fails {_failing(near, limits)}; its bypass is "
                f"{_score(near['bypass'])}, its induce {_score(near['induce'])}."
            )
    counts = [
        f"{side} {part['kept']} of {part['given']} ({name})"
        for name, sides in document["prompts"].items()
        for side, part in sides.items()
    ]
    kept = "kept by the model's own refusal score" if document["filtered"] else "used unfiltered"
    lines.append(f"Prompts {kept}: {', '.join(counts)}; {document['split']}.")
    source = "named by you" if tokens["source"] == "given" else "read off its own refusals"
    lines.append(f"Refusal tokens, {source}: {names}.")
    return lines


def _table(document: Row, rows: Sequence[Row], total: int) -> RenderableType:
    labels = {p["offset"]: visible(p["label"]) for p in document["positions"]}
    layout = table()
    for title in ("layer", "position"):
        add_numbers(layout, title)
    layout.add_column("token", no_wrap=True)
    for title in ("bypass", "induce", "KL", "norm"):
        add_numbers(layout, title)
    layout.add_column("", no_wrap=True)
    chosen = document["selection"]["chosen"]
    for row in rows:
        site = row["site"]
        mark = "chosen" if chosen and site == chosen["site"] else row["dropped"] or "valid"
        kl = number(row["kl"], 3)
        layout.add_row(
            str(site["layer"]),
            number(site["position"], 0),
            Text(labels[site["position"]]),
            _score(row["bypass"]),
            _score(row["induce"]),
            kl if row["kl_exact"] or row["kl"] is None else f"≥ {kl}",
            number(row["norm"], 2),
            Text(mark, style="bold" if mark == "chosen" else "dim"),
        )
    shown = f", the best {len(rows)} of {total}" if total > len(rows) else ""
    return Group(heading(f"Candidates{shown}"), layout)


def _legend(document: Row, rows: Sequence[Row]) -> list[str]:
    found = document["selection"]
    limits = found["thresholds"]
    dropped = Counter(row["dropped"] for row in rows if row["dropped"])
    why = ", ".join(f"{reason} {count}" for reason, count in dropped.most_common())
    return [
        f"bypass: mean refusal score of {found['n_harmful']} harmful prompts with the direction "
        f"ablated (clean {_score(found['clean_harmful'])}); induce: of {found['n_harmless']} "
        f"harmless ones with it added (clean {_score(found['clean_harmless'])}), at least "
        f"{number(limits['induce'], 1)}; KL: of harmless answers' first token, at most "
        f"{number(limits['kl'], 2)}.",
        f"Dropped by: {why}." if why else "None was dropped.",
        "–: not measured, since it could not change the choice (--exhaustive measures it). "
        "≥: given up there.",
    ]


def _rank(row: Row) -> tuple[int, float]:
    """Valid ones by bypass, then those that fail induce, then by KL, then what was not run."""
    if not row["dropped"]:
        return 0, row["bypass"]
    if row["dropped"] == "induce":
        return 1, -row["induce"]
    return (2, row["kl"]) if row["kl"] is not None else (3, row["site"]["layer"])


def _failing(row: Row, limits: Row) -> str:
    if row["dropped"] == "induce":
        return f"induce ({_score(row['induce'])}, at least {number(limits['induce'], 1)} asked)"
    return f"KL ({number(row['kl'], 3)} nats, at most {number(limits['kl'], 2)} asked)"


def _site(row: Row) -> str:
    site = row["site"]
    return f"{site['hook']}.{site['layer']}@{number(site['position'], 0)}"


def _score(value: float | None) -> str:
    return number(value, 2, signed=value is not None)
