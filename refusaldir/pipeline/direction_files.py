"""Direction files brought in from elsewhere, and exported."""

from pathlib import Path

from refusaldir.directions.exchange import direction_bytes, load_direction
from refusaldir.directions.mean_diff import Direction
from refusaldir.errors import DirectionError, OutputExistsError
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.opening import Opening


def import_file(
    path: str | Path,
    out: str | Path,
    *,
    layer: int | None = None,
    position: int | None = None,
    metadata: str | Path | None = None,
    model: str | ModelSpec | None = None,
    options: LoadOptions | None = None,
    force: bool = False,
) -> Direction:
    """Turn a direction of the reference code into a direction file.

    Args:
        path: A ``direction.pt`` or ``mean_diffs.pt``; see
            `refusaldir.directions.reference.import_direction`.
        out: The file to write.
        layer: Block whose input it was read at.
        position: Token offset from the end of the prompt.
        metadata: JSON that says both.
        model: The model it is meant for; its width and depth are checked, no weight is loaded.
        options: As in `refusaldir.pipeline.extract`.
        force: Overwrite the output.

    Returns:
        The direction written.

    Raises:
        OutputExistsError: The output exists and ``force`` is not set.
        RefusaldirError: The file or the model cannot be used.
    """
    from refusaldir.directions.reference import import_direction
    from refusaldir.report.files import write_atomic

    _refuse_existing(Path(out), force=force)
    identity = None
    if model is not None:
        opening = Opening(
            spec=ModelSpec.parse(model), options=options or LoadOptions(), backend="auto"
        )
        identity = opening.identity()
    direction = import_direction(
        path, layer=layer, position=position, metadata=metadata, model=identity
    )
    write_atomic(out, direction_bytes(direction), force=force)
    return direction


def export_file(
    path: str | Path, out: str | Path, *, format: str, force: bool = False
) -> Direction:
    """Write a direction for a tool that steers; see `refusaldir.directions.steering`.

    Args:
        path: A direction file.
        out: The file to write.
        format: ``"gguf"`` (a control vector of llama.cpp) or ``"steering-vectors"``.
        force: Overwrite the output.

    Returns:
        The direction exported.

    Raises:
        DirectionError: There is no such format, or the tool cannot add at the direction's site.
        OutputExistsError: The output exists and ``force`` is not set.
        StoreError: A file cannot be read or written.
    """
    from refusaldir.directions.steering import EXPORTS
    from refusaldir.report.files import write_atomic

    if format not in EXPORTS:
        raise DirectionError(
            "There is no such format", expected=" or ".join(EXPORTS), got=format, where="--format"
        )
    _refuse_existing(Path(out), force=force)
    direction = load_direction(path)
    write_atomic(out, EXPORTS[format](direction), force=force)
    return direction


def _refuse_existing(out: Path, *, force: bool) -> None:
    """Refuse before any work what writing would refuse after it."""
    if out.exists() and not force:
        raise OutputExistsError(
            "The output file exists already",
            where=out,
            next_step="Choose another --out, or overwrite it with --force",
        )
