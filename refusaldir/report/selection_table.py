"""What causal selection found, for a terminal."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from refusaldir.directions.candidates import Thresholds
from refusaldir.report.direction_table import reading_report
from refusaldir.report.layout import Bullet, add_numbers, estimate, heading, notes, table
from refusaldir.report.text import number, percent, visible

Row = Mapping[str, Any]

#: Largest mean KL in Arditi et al. (2024), in nats.
PUBLISHED_KL = Thresholds().kl


def selection_report(document: Row, *, limit: int = 12) -> RenderableType:
    """The verdict, the best candidates, and why the others were dropped.

    Args:
        document: The content of ``select.json``.
        limit: Most candidates shown.
    """
    found = document["selection"]
    model = visible(document["provenance"]["model"]["name"])
    panel = Panel(Group(*map(Bullet, sentences(document))), title=f"Refusal direction of {model}")
    ranked = sorted(found["candidates"], key=_rank)
    parts = [
        panel,
        _table(document, ranked[:limit], len(ranked)),
        notes(_legend(document, ranked)),
    ]
    if len(document["estimators"]) > 1:
        parts.append(_estimators(document))
    if document["categories"] is not None:
        parts.append(_categories(document["categories"], document["selection"]))
    if document["reading"] is not None:
        parts += [heading("The direction"), reading_report(document["reading"])]
    if document["check"] is not None:
        parts.append(_check(document["check"]))
    return Group(*parts)


def headline(document: Row) -> str:
    """Whether there is a direction that causes refusal, in a sentence or two."""
    found = document["selection"]
    chosen, near, limits = found["chosen"], found["nearest"], found["thresholds"]
    if chosen is None:
        line = "No valid direction: no candidate meets every criterion."
        if near is not None:
            line += f" The nearest, {_site(near)}, fails {_failing(near, limits)}; {_effect(near)}."
        return line
    kl = (
        f"ablating it changes the first token of harmless answers by {number(chosen['kl'], 3)} "
        f"nats of KL (at most {number(limits['kl'], 2)} allowed"
        + (f"; the published limit is {PUBLISHED_KL})" if limits["kl"] > PUBLISHED_KL else ")")
    )
    if document["criterion"] == "cosmic":
        return (
            f"The direction at {_site(chosen)} is the one that COSMIC chooses: {_effect(chosen)} "
            f"(a direction that does nothing scores {number(2 * found['clean_cosine'], 3)}), "
            f"and {kl}."
        )
    line = (
        f"The direction at {_site(chosen)} meets every criterion: ablating it takes the mean "
        f"refusal score of harmful prompts from {_score(found['clean_harmful'])} to "
        f"{_score(chosen['bypass'])}, adding it takes that of harmless prompts from "
        f"{_score(found['clean_harmless'])} to {_score(chosen['induce'])}, and {kl}."
    )
    if chosen["bypass"] >= 0:
        line += (
            " Yet with it ablated the model would still rather refuse harmful prompts: refusal "
            "does not hang on this direction alone."
        )
    return line


def sentences(document: Row) -> list[str]:
    """The result in words."""
    tokens = document["refusal_tokens"]
    lines = [headline(document)]
    counts = [
        f"{side} {part['used']} of {part['given']} ({name})"
        for name, sides in document["prompts"].items()
        for side, part in sides.items()
    ]
    kept = "kept by the model's own refusal score" if document["filtered"] else "used unfiltered"
    lines.append(f"Prompts {kept}: {', '.join(counts)}; {document['split']}.")
    if tokens["texts"]:
        source = "named by you" if tokens["source"] == "given" else "read off its own refusals"
        names = ", ".join(f"“{visible(text)}”" for text in tokens["texts"])
        lines.append(f"Refusal tokens, {source}: {names}.")
    else:
        lines.append(
            f"No refusal tokens were found ({tokens['note']}), so candidates were scored by "
            "COSMIC, which needs none. Name tokens with --refusal-token."
        )
    return lines


#: Scores by criterion: column, field, digits, signed.
_SCORES = {
    "refusal_score": (("bypass", "bypass", 2, True), ("induce", "induce", 2, True)),
    "cosmic": (
        ("COSMIC", "cosmic", 3, False),
        ("ablated", "ablated_cosine", 3, False),
        ("added", "added_cosine", 3, False),
    ),
}


def _table(document: Row, rows: Sequence[Row], total: int) -> RenderableType:
    labels = {p["offset"]: visible(p["label"]) for p in document["positions"]}
    scores = _SCORES[document["criterion"]]
    layout = table()
    for title in ("layer", "position"):
        add_numbers(layout, title)
    layout.add_column("token", no_wrap=True)
    for title in (*(title for title, *_ in scores), "KL", "norm"):
        add_numbers(layout, title)
    layout.add_column("", no_wrap=True)
    chosen = document["selection"]["chosen"]
    for row in rows:
        site = row["site"]
        mark = "chosen" if chosen and site == chosen["site"] else row["dropped"] or "valid"
        layout.add_row(
            str(site["layer"]),
            number(site["position"], 0),
            Text(labels[site["position"]]),
            *(number(row[key], digits, signed=signed) for _, key, digits, signed in scores),
            _kl(row),
            number(row["norm"], 2),
            Text(mark, style="bold" if mark == "chosen" else "dim"),
        )
    shown = f", the best {len(rows)} of {total}" if total > len(rows) else ""
    return Group(heading(f"Candidates{shown}"), layout)


def _kl(row: Row) -> str:
    text = number(row["kl"], 3)
    return text if row["kl_exact"] or row["kl"] is None else f"≥ {text}"


def _legend(document: Row, rows: Sequence[Row]) -> list[str]:
    found = document["selection"]
    limits = found["thresholds"]
    dropped = Counter(row["dropped"] for row in rows if row["dropped"])
    why = ", ".join(f"{reason} {count}" for reason, count in dropped.most_common())
    kl = f"KL: of harmless answers' first token, at most {number(limits['kl'], 2)}."
    if document["criterion"] == "cosmic":
        layers = ", ".join(map(str, found["cosmic_layers"]))
        meaning = (
            f"ablated: cosine of {found['n_harmful']} harmful prompts with the direction ablated "
            f"to {found['n_harmless']} harmless ones; added: of harmless ones with it added to "
            f"harmful ones; both in layers {layers}, where nothing changed gives "
            f"{number(found['clean_cosine'], 3)}; COSMIC: their sum; {kl}"
        )
    else:
        meaning = (
            f"bypass: mean refusal score of {found['n_harmful']} harmful prompts with the "
            f"direction ablated (clean {_score(found['clean_harmful'])}); induce: of "
            f"{found['n_harmless']} harmless ones with it added (clean "
            f"{_score(found['clean_harmless'])}), at least {number(limits['induce'], 1)}; {kl}"
        )
    return [
        meaning,
        f"Dropped by: {why}." if why else "None was dropped.",
        "–: not measured, since it could not change the choice (--exhaustive measures it). "
        "≥: given up there.",
    ]


def _estimators(document: Row) -> RenderableType:
    """The best candidate of every estimator, side by side."""
    scores = _SCORES[document["criterion"]]
    layout = table()
    layout.add_column("estimator", no_wrap=True)
    for title in ("layer", "position", *(title for title, *_ in scores), "KL", "norm"):
        add_numbers(layout, title)
    layout.add_column("", no_wrap=True)
    for name, best in document["estimators"].items():
        row = best["chosen"] or best["nearest"]
        if row is None:
            layout.add_row(name, *["–"] * (4 + len(scores)), Text("no candidate", style="dim"))
            continue
        layout.add_row(
            name,
            str(row["site"]["layer"]),
            number(row["site"]["position"], 0),
            *(number(row[key], digits, signed=signed) for _, key, digits, signed in scores),
            _kl(row),
            number(row["norm"], 2),
            Text("valid" if best["chosen"] else f"fails {row['dropped']}", style="dim"),
        )
    lines = [f"{name}: {visible(why)}" for name, why in document["estimators_left_out"].items()]
    return Group(heading("Best candidate of each estimator"), layout, notes(lines))


def _categories(found: Row, selection: Row) -> RenderableType:
    """How many directions the categories share, and what ablating all of them does."""
    title = heading("By category, at the same site")
    if found["note"]:
        return Group(title, notes([visible(found["note"])]))
    axes, by = found["subspace"], found["directions"]
    single = selection["chosen"] or selection["nearest"]
    layout = table()
    layout.add_column("", no_wrap=True)
    for name in ("dimensions", "bypass", "KL"):
        add_numbers(layout, name)
    layout.add_row("the direction alone", "1", _score(single["bypass"]), number(single["kl"], 3))
    layout.add_row(
        "subspace of the categories", str(axes["k"]), _score(axes["bypass"]), number(axes["kl"], 3)
    )
    lines = [
        f"Effective rank of {len(by['categories'])} category directions: "
        f"{estimate(by['effective_rank'], 2)}; 1 means that all categories share one direction.",
        f"Subspace: the axes that unseen intents confirm ({axes['k']}); it holds "
        f"{percent(axes['direction_inside'] ** 2)} of the selected direction.",
    ]
    if by["left_out"]:
        lines.append(f"Too few prompts: {', '.join(map(visible, by['left_out']))}.")
    return Group(title, layout, notes(lines))


def _check(check: Row) -> RenderableType:
    """Refusals in held-out responses: clean, under the direction, under random ones."""
    layout = table()
    layout.add_column("held-out responses refused", no_wrap=True)
    for title in ("n", "left out", "% [95%]"):
        add_numbers(layout, title)
    for side, change in (("harmful", "ablated"), ("harmless", "added")):
        part = check[side]
        random = part["random"]
        rows = [
            (f"{side} prompts", part["clean"]),
            (f"  direction {change}", part[change]),
            *((f"  random direction {change}, {i + 1}", r) for i, r in enumerate(random)),
        ]
        for i, (title, cell) in enumerate(rows):
            layout.add_row(
                Text(title),
                str(cell["refused"]["n"]),
                str(cell["left_out"]),
                Text(estimate(cell["refused"], 1, interval=True, scale=100.0)),
                style="" if i else "bold",
                end_section=i == len(rows) - 1,
            )
    line = (
        f"Greedy, {check['max_new_tokens']} tokens, {check['held_out']}; judged by phrases. "
        "Left out: responses that say nothing (incoherent, empty). Random directions match the "
        "covariance of the activations and the direction's norm."
    )
    return Group(heading("Does it cause refusal in what the model says?"), layout, notes([line]))


def _rank(row: Row) -> tuple[int, float]:
    """Valid ones by effect, then those that fail induce, then by KL, then what was not run."""
    if not row["dropped"]:
        return 0, row["bypass"] if row["cosmic"] is None else -row["cosmic"]
    if row["dropped"] == "induce":
        return 1, -row["induce"]
    return (2, row["kl"]) if row["kl"] is not None else (3, row["site"]["layer"])


def _effect(row: Row) -> str:
    """What is known of a candidate, by either criterion."""
    if row["bypass"] is not None:
        return f"its bypass is {_score(row['bypass'])}, its induce {_score(row['induce'])}"
    if row["cosmic"] is not None:
        return f"its COSMIC score is {number(row['cosmic'], 3)} of 2"
    return "its effect was not measured"


def _failing(row: Row, limits: Row) -> str:
    if row["dropped"] == "induce":
        return f"induce ({_score(row['induce'])}, at least {number(limits['induce'], 1)} asked)"
    return f"KL ({number(row['kl'], 3)} nats, at most {number(limits['kl'], 2)} asked)"


def _site(row: Row) -> str:
    site = row["site"]
    return f"{site['hook']}.{site['layer']}@{number(site['position'], 0)}"


def _score(value: float | None) -> str:
    return number(value, 2, signed=value is not None)
