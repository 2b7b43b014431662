"""`refusaldir view`: the prompts of two captures in a plane."""

from pathlib import Path
from typing import Annotated

import typer

from refusaldir.errors import RefusaldirError

from . import options

EXAMPLES = """[bold]Examples[/bold]

refusaldir view base.h5 tuned.h5

refusaldir view base.h5 tuned.h5 --layer 4 --layer 12 --layer 20 --method direction

refusaldir view base.h5 tuned.h5 --method umap --out views
"""


def view(
    base: Annotated[
        Path, typer.Argument(help="A capture of base (.h5).", metavar="BASE", show_default=False)
    ],
    tuned: Annotated[
        Path,
        typer.Argument(
            help="A capture of tuned on the same prompts.", metavar="TUNED", show_default=False
        ),
    ],
    layer: Annotated[
        list[int] | None,
        typer.Option(
            help="Layer to look at (repeatable); otherwise the one where base separates best.",
            show_default=False,
        ),
    ] = None,
    position: Annotated[
        int | None,
        typer.Option(
            help="Token offset from the end; otherwise the one where base separates best.",
            show_default=False,
        ),
    ] = None,
    hook: Annotated[str, typer.Option(help="Hook point.")] = "resid_pre",
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="direction, pca or umap (extra: umap; repeatable); otherwise direction and pca.",
            show_default=False,
        ),
    ] = None,
    allow_dtype_mismatch: Annotated[
        bool,
        typer.Option("--allow-dtype-mismatch", help="Take captures in different precision."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of UMAP.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the figure; otherwise one in the store.", show_default=False),
    ] = None,
    json: options.Json = False,
) -> None:
    """Draw harmful and harmless prompts of both models in one plane.

    The plane is made from base alone: along its direction and across it,
    its main components, or UMAP. Loads neither torch nor a model.
    """
    from refusaldir.drift.geometry_view import METHODS
    from refusaldir.pipeline.viewing import PLANES
    from refusaldir.pipeline.viewing import view as look
    from refusaldir.report.geometry_table import geometry_table

    from .console import put, stderr

    asked = [known for known in METHODS if method and known in method]
    if method and len(asked) < len(set(method)):
        raise RefusaldirError(
            "Unknown kind of view",
            expected=" | ".join(METHODS),
            got=", ".join(method),
            where="--method",
        )
    found = look(
        base,
        tuned,
        hook=hook,
        layers=layer or (),
        position=position,
        methods=asked or PLANES,
        allow_dtype_mismatch=allow_dtype_mismatch,
        seed=seed,
        out=out,
    )
    put(found.document, geometry_table, json=json)
    stderr().print(f"Figure: {found.files['geometry.png']}")
