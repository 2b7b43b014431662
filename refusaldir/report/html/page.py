"""The whole page: sections put into the template, with its style, script and policy."""

import base64
import gzip
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from refusaldir import __version__
from refusaldir.report.html.behaviour import behaviour_section
from refusaldir.report.html.cause import cause_section
from refusaldir.report.html.certainty import certainty_section
from refusaldir.report.html.drift import drift_section
from refusaldir.report.html.figure import Cell, Figure, Table
from refusaldir.report.html.how import how_section
from refusaldir.report.html.layers import layers_section
from refusaldir.report.html.material import Material, Series
from refusaldir.report.html.section import Flips, Section
from refusaldir.report.html.summary import tiles
from refusaldir.report.html.trajectory import trajectory_section
from refusaldir.report.text import number, visible

#: Most characters of comparisons that are not shown at first; a page stays under 8 MB.
BUDGET = 5_000_000

_TEMPLATES = Path(__file__).parent / "templates"


def page(material: Material | Series, *, budget: int = BUDGET) -> str:
    """Return the page, with everything it needs inside.

    Args:
        material: One comparison, or a series of them.
        budget: Most characters of the comparisons that are not shown at first, compressed; the
            earliest are left out where they take more.

    Returns:
        HTML. Names, notes, prompts and responses are escaped wherever they stand; the page's
        policy lets it run its own script and style, and fetch nothing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        together=together, cell=cell_text, raw=raw_text, tips=_tips, texts=_texts, digits=digits
    )
    style, script = ((_TEMPLATES / name).read_text("utf-8") for name in ("page.css", "page.js"))
    stops = list(material.stops) if isinstance(material, Series) else [material]
    panel = environment.get_template("panel.html.j2")
    # The last checkpoint is what came of the training: it is the one shown first.
    shown = panel.render(_panel(stops[-1])) if stops else ""
    others: list[str] = []
    for stop in stops[-2::-1]:
        packed = _packed(panel.render(_panel(stop)))
        if sum(map(len, others)) + len(packed) > budget:
            break
        others.insert(0, packed)
    stops = stops[len(stops) - 1 - len(others) :] if stops else []
    return environment.get_template("page.html.j2").render(
        title=_title(material),
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        version=__version__,
        trajectory=_trajectory(material, environment),
        names=[visible(stop.name) for stop in stops],
        left_out=len(material.stops) - len(stops) if isinstance(material, Series) else 0,
        panel=Markup(shown),
        others=others,
    )


def sections(material: Material) -> list[Section]:
    """The answers, in the order of the questions."""
    document = material.document
    found = [
        drift_section(material.diff) if material.diff is not None else None,
        layers_section(material.diff, material.layers) if not material.behaviour else None,
        behaviour_section(material) if document is not material.layers else None,
        cause_section(material.diff, material.selection),
        certainty_section(document) if document is not material.layers else None,
        how_section(material),
    ]
    return [section for section in found if section is not None]


def digits(table: Table) -> list[int]:
    """Decimals of each column's numbers: 3 or more digits of the largest.

    Ends of intervals have as many as what they belong to, which stands before them.
    """
    found: list[int] = []
    for j, title in enumerate(table.columns):
        if found and title.rpartition(", ")[2].startswith(("lower", "upper")):
            found.append(found[-1])
            continue
        values = [row[j] for row in table.rows]
        largest = max((abs(v) for v in values if isinstance(v, float)), default=0.0)
        found.append(1 if largest >= 50 else 2 if largest >= 5 else 3)
    return found


def cell_text(value: Cell, decimals: int) -> str:
    """A table's cell as it is shown."""
    return number(value, decimals) if isinstance(value, float) else str(value).replace("-", "−")


def together(text: str) -> str:
    """Keep a number and its % sign on one line."""
    return text.replace(" %", "\u00a0%")


def raw_text(value: Cell) -> str:
    """A number for sorting and saving: 7 digits are more than any figure here is good for."""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _tips(figure: Figure) -> list[Any]:
    return [[tip.title, [list(line) for line in tip.lines]] for tip in figure.tips]


def _texts(flips: Flips) -> dict[str, list[str]]:
    return {
        name: [each.prompt, each.base_label, each.base, each.tuned_label, each.tuned]
        for name, each in flips.texts.items()
    }


def _title(material: Material | Series) -> str:
    if isinstance(material, Series):
        base = visible(material.trajectory["base"]["model"]["name"])
        return f"{base} → {len(material.trajectory['checkpoints'])} checkpoints"
    document = material.document
    names = [
        (document[arm]["model"] if "model" in document[arm] else document[arm])["name"]
        for arm in ("base", "tuned")
    ]
    return visible(" → ".join(names))


def _panel(material: Material) -> dict[str, Any]:
    return {
        "headline": material.document["verdict"]["headline"],
        "tiles": tiles(material.document) if material.document is not material.layers else [],
        "sections": sections(material),
    }


def _trajectory(material: Material | Series, environment: Any) -> Markup | None:
    if not isinstance(material, Series):
        return None
    section = trajectory_section(material.trajectory)
    html = environment.get_template("trajectory.html.j2").render(
        headline=material.trajectory["verdict"]["headline"],
        section=section,
        last=visible(material.stops[-1].name) if material.stops else "",
    )
    return Markup(html)


def _packed(html: str) -> str:
    """A panel that is not shown at first, compressed, as text."""
    return base64.b64encode(gzip.compress(html.encode("utf-8"), mtime=0)).decode("ascii")


def _policy(style: str, script: str) -> str:
    """What the page may do: run this script, use this style, show pictures made by itself."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")

    parts: Sequence[str] = (
        "default-src 'none'",
        f"script-src 'sha256-{digest(script)}'",
        f"style-src 'sha256-{digest(style)}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(parts)
