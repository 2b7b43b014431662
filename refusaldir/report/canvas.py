"""What all figures share: style, heading, footnote and how they are written."""

import html
import io
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from refusaldir.report.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#00795A", "#6B6B6B", "#000000"
SHADE = "#EDEDED"

STYLE = {
    "axes.axisbelow": True,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    "svg.hashsalt": "refusaldir",
    "text.parse_math": False,
    "xtick.labelsize": 8.5,
    "xtick.major.width": 0.7,
    "ytick.labelsize": 8.5,
    "ytick.major.width": 0.7,
}

TITLE, NOTE = 11, 8.5
#: Space at the edges of a figure, inches.
MARGIN = 0.1
#: Width of a figure in inches: two columns of a paper, or a page of a report.
WIDTH = 7.6


@contextmanager
def style() -> Iterator[None]:
    """Draw with our settings whatever the user's matplotlibrc says, and restore theirs."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A script that the bundled font lacks: boxes in the PNG, the true text in the SVG.
        warnings.filterwarnings("ignore", message=".*missing from font.*")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def heading(figure: "Figure", title: str, subtitle: str) -> None:
    """Put a title and up to two lines of context at the top left."""
    width, height = figure.get_size_inches()
    figure.text(MARGIN / width, 1 - 0.1 / height, title, fontsize=TITLE, weight="bold", va="top")
    figure.text(
        MARGIN / width,
        1 - 0.32 / height,
        "\n".join(wrap(subtitle, width - 2 * MARGIN, max_lines=2)),
        fontsize=NOTE,
        color=GREY,
        va="top",
        linespacing=1.3,
    )


def footnote(figure: "Figure", *lines: str) -> None:
    """Put wrapped notes at the bottom left."""
    width, height = figure.get_size_inches()
    figure.text(
        MARGIN / width,
        0.1 / height,
        "\n".join(part for line in lines for part in wrap(line, width - 2 * MARGIN)),
        fontsize=NOTE,
        color=GREY,
        va="bottom",
        linespacing=1.3,
    )


def wrap(text: str, width: float, *, max_lines: int | None = None) -> list[str]:
    """Break text into lines no wider than ``width`` inches at the size of notes.

    With ``max_lines``, what does not fit ends in "…".
    """
    characters = int(width * 18)
    while True:
        lines = textwrap.wrap(text, characters, max_lines=max_lines, placeholder="…")
        if characters <= 8 or all(text_width(line) <= width for line in lines):
            return lines
        characters -= 2


def text_width(text: str) -> float:
    """Width of one line at the size of notes, inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=NOTE)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72


def save_figure(
    figure: "Figure", stem: str | Path, *, title: str, description: str
) -> tuple[Path, Path]:
    """Write a figure as ``stem.png`` and ``stem.svg``, the same bytes every time.

    The SVG keeps text as text and carries a title and a description for screen readers.

    Args:
        figure: The figure to write.
        stem: Path without suffix.
        title: Title of the picture, kept in both files.
        description: What the picture shows, in words.

    Returns:
        The paths of the PNG and the SVG.

    Raises:
        StoreError: A file cannot be written.
    """
    stem = Path(stem)
    with style():
        png, svg = io.BytesIO(), io.BytesIO()
        about = {"Title": title, "Description": description}
        figure.savefig(png, format="png", metadata={**about, "Software": None})
        figure.savefig(svg, format="svg", metadata={**about, "Date": None, "Creator": "refusaldir"})
    return (
        write_atomic(stem.with_name(stem.name + ".png"), png.getvalue()),
        write_atomic(
            stem.with_name(stem.name + ".svg"),
            _accessible(svg.getvalue().decode("utf-8"), title, description).encode("utf-8"),
        ),
    )


def _accessible(svg: str, title: str, description: str) -> str:
    """Give the SVG element a role, a title and a description for assistive technology."""
    title, description = (html.escape(text, quote=False) for text in (title, description))
    start = svg.index("<svg")
    end = svg.index(">", start) + 1
    tag = svg[start : end - 1] + ' role="img" aria-labelledby="figure-title figure-desc">'
    rest = svg[end:].replace(f"<title>{title}</title>", "", 1).lstrip()
    head = (
        f'\n <title id="figure-title">{title}</title>'
        f'\n <desc id="figure-desc">{description}</desc>\n '
    )
    return svg[:start] + tag + head + rest
