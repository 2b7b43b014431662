"""Results as a notebook shows them: the tables of the terminal, and the figures below."""

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console, RenderableType

#: Columns of the tables.
WIDTH = 92

_TABLE = (
    '<pre style="white-space:pre;overflow-x:auto;line-height:1.25;font-family:Menlo,'
    "'DejaVu Sans Mono',consolas,monospace\">{code}</pre>"
)
# Without colours of its own a notebook's dark theme shows dark text on dark: figures are white
# cards, text takes the notebook's colour.
_FIGURE = (
    '<img style="max-width:100%;background:#fff;padding:.5em" alt="{name}" '
    'src="data:image/svg+xml;base64,{data}">'
)


def as_html(shown: RenderableType, files: Mapping[str, Path] | None = None) -> str:
    """Return a table, and the figures among the files of a result, as HTML.

    Args:
        shown: What a terminal would print.
        files: What the result wrote, by name; SVG files that are still there are shown.
    """
    console = Console(
        record=True,
        width=WIDTH,
        file=io.StringIO(),
        force_jupyter=False,
        color_system=None,
        highlight=False,
    )
    console.print(shown)
    parts = [console.export_html(inline_styles=True, code_format=_TABLE)]
    for name, path in sorted((files or {}).items()):
        if path.suffix == ".svg" and path.is_file():
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            parts.append(_FIGURE.format(name=html.escape(name, quote=True), data=data))
    return "\n".join(parts)
