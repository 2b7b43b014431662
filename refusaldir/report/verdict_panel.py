"""The verdict of a document, framed for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from refusaldir.report.layout import PROSE_WIDTH, Bullet, heading
from refusaldir.report.text import model_names, visible

#: Parts of a verdict, in the order shown.
_TITLES = {
    "drift": "What drifted",
    "layers": "Which layers",
    "context": "What to hold it against",
    "causality": "What causes refusal",
    "behaviour": "What changed in behaviour",
    "certainty": "How sure",
    "limits": "What this cannot tell",
}


def verdict_panel(document: Mapping[str, Any]) -> RenderableType:
    """Return the verdict in words: what drifted, where, what changed, how sure, what is open.

    Args:
        document: A document with a ``verdict``; parts that it lacks are left out.
    """
    verdict = document["verdict"]
    lines: list[RenderableType] = [Text(visible(verdict["headline"]), style="bold")]
    for key, title in _TITLES.items():
        if verdict.get(key):
            lines.append(heading(title))
            for sentence in verdict[key]:
                lines.append(Padding(Bullet(visible(sentence)), (0, 0, 0, 1)))
    panel = Panel(Group(*lines), title=Text(model_names(document)), title_align="left")
    return Constrain(panel, PROSE_WIDTH)
