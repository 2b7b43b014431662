"""Figures of a diff document: drift by layer, prompts in a plane, behaviour, and its link to drift.

They are built with matplotlib's object interface, never through ``pyplot``, and need no display.
Colours are Okabe and Ito's, which people with colour-vision deficiencies can tell apart; every
pair of series also differs in line style or marker, so that the figures survive a
black-and-white printer. matplotlib is imported only when a figure is drawn.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refusaldir.report.behaviour_figure import behaviour_figure, has_behaviour
from refusaldir.report.canvas import save_figure
from refusaldir.report.drift_figure import drift_figure
from refusaldir.report.geometry_figure import geometry_figure, has_views, write_geometry_figure
from refusaldir.report.link_figure import has_link, link_figure
from refusaldir.report.text import model_names, visible

__all__ = [
    "behaviour_figure",
    "drift_figure",
    "geometry_figure",
    "link_figure",
    "save_figure",
    "write_behaviour_figures",
    "write_figures",
]

Row = Mapping[str, Any]


def write_figures(document: Row, folder: str | Path) -> tuple[Path, ...]:
    """Draw and write every figure the document has data for.

    Args:
        document: A diff document.
        folder: Where ``drift``, ``geometry``, ``behaviour`` and ``link`` go, each as ``.png`` and
            ``.svg``.

    Returns:
        The paths written.

    Raises:
        StoreError: A file cannot be written.
    """
    folder = Path(folder)
    names = model_names(document)
    words = visible(" ".join([document["verdict"]["headline"], *document["verdict"]["drift"]]))
    paths: tuple[Path, ...] = save_figure(
        drift_figure(document),
        folder / "drift",
        title=f"Refusal-direction drift by layer, {names}",
        description=f"Four charts over layers. {words}",
    )
    if has_views(document):
        paths += write_geometry_figure(document, folder)
    return paths + write_behaviour_figures(document, folder)


def write_behaviour_figures(document: Row, folder: str | Path) -> tuple[Path, ...]:
    """Draw and write the figures of behaviour that the document has data for.

    Args:
        document: A diff or behaviour document.
        folder: Where ``behaviour`` and ``link`` go, each as ``.png`` and ``.svg``.

    Returns:
        The paths written.

    Raises:
        StoreError: A file cannot be written.
    """
    folder = Path(folder)
    names = model_names(document)
    paths: tuple[Path, ...] = ()
    if has_behaviour(document):
        paths += save_figure(
            behaviour_figure(document),
            folder / "behaviour",
            title=f"Refusals by category, {names}",
            description="Refusal rates of both models by category. "
            + visible(" ".join(document["verdict"]["behaviour"])),
        )
    if has_link(document):
        paths += save_figure(
            link_figure(document),
            folder / "link",
            title=f"Refusal and the projection on base's direction, {names}",
            description="Chance of a refusal at each projection in both models, their projections, "
            "and the change of refusals taken apart. "
            + visible(" ".join(document["behaviour"]["link"]["sentences"])),
        )
    return paths
