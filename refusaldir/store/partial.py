"""Partial files: what a capture is before it has its own name."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refusaldir.errors import OutputExistsError, RefusaldirError, StoreError
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import Provenance
from refusaldir.store import hdf5
from refusaldir.store.columns import JSON_COLUMNS, TEXT_COLUMNS
from refusaldir.store.header import Header, changes, check_provenance, read_header
from refusaldir.store.schema import Layout
from refusaldir.store.skeleton import check_space, create_skeleton, required_bytes


def make_header(provenance: Provenance, prompts: PromptSet, d_model: int, dtype: str) -> Header:
    """Check that provenance, prompts and width belong together and describe the file to come."""
    if d_model != provenance.model.d_model or prompts.hash != provenance.prompts_hash:
        raise StoreError(
            "The provenance is not that of these prompts and this model",
            expected=f"prompts {provenance.prompts_hash}, d_model {provenance.model.d_model}",
            got=f"prompts {prompts.hash}, d_model {d_model}",
        )
    try:
        check_provenance(provenance)
    except ValueError as error:
        raise StoreError("The provenance cannot label a capture", got=error) from None
    layout = Layout(
        n_prompts=len(prompts),
        n_layers=len(provenance.layers),
        n_positions=len(provenance.positions.offsets),
        d_model=d_model,
        storage_dtype=dtype,
    )
    return Header(provenance=provenance, layout=layout, complete=False, notes=prompts.notes)


def begin(
    partial: Path, header: Header, columns: Mapping[str, Sequence[Any]], *, force: bool
) -> None:
    """Put a new partial file in place; one that exists is whole, or was never there."""
    if partial.exists() and not force:
        raise OutputExistsError(
            "An unfinished capture exists already",
            where=partial,
            next_step="Continue it with --resume, or discard it with --force",
        )
    new = partial.with_name(partial.name + ".tmp")
    with writing(partial):
        for leftover in (partial, new):
            leftover.unlink(missing_ok=True)
        try:
            check_space(partial.parent, required_bytes(header, columns), partial)
            create_skeleton(new, header, columns)
            new.replace(partial)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def differences(partial: Path, header: Header, columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """Say in what an unfinished capture differs from the one asked for."""
    file = hdf5.open_file(partial, "r")
    try:
        old = read_header(file, partial)
        found = changes(old.provenance, header.provenance)
        if old.layout != header.layout and not found:
            before, after = old.layout, header.layout
            found.append(
                f"{before.n_prompts} prompts stored as {before.storage_dtype} → "
                f"{after.n_prompts} stored as {after.storage_dtype}"
            )
        if not found:
            n = header.layout.n_prompts
            kept: dict[str, list[Any]] = {
                name: hdf5.text_column(file, f"prompts/{name}", partial, n) for name in TEXT_COLUMNS
            }
            for name in JSON_COLUMNS:
                kept[name] = hdf5.json_lines(file, f"prompts/{name}", partial, n)
            tokens = hdf5.array(file, "prompts/n_tokens", partial, shape=(n,), dtype="<i8")
            kept["n_tokens"] = tokens.tolist()
            found = [f"prompts/{name}" for name in kept if kept[name] != list(columns[name])]
        return found
    finally:
        file.close()


@contextmanager
def writing(path: Path, next_step: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn what the system or HDF5 raises on failed writes into a StoreError."""
    try:
        yield
    except RefusaldirError:
        raise
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error).partition("\n")[0]
        raise StoreError(
            "The capture cannot be written",
            got=reason,
            where=path,
            next_step=next_step() if next_step else "Make room there, or choose another --store",
        ) from error
