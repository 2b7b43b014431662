"""What the root attributes of a capture file say about it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusaldir.errors import StoreError
from refusaldir.records import HOOKS, Provenance
from refusaldir.store import hdf5
from refusaldir.store.columns import storable
from refusaldir.store.schema import FORMAT, STORAGE_DTYPES, VERSION, Layout


@dataclass(frozen=True, kw_only=True)
class Header:
    """Format, provenance and layout of one capture file.

    Attributes:
        provenance: What decided the values.
        layout: Shape and storage of each activation dataset.
        complete: False while the capture is being written.
        notes: What the prompt loader had to say.
    """

    provenance: Provenance
    layout: Layout
    complete: bool
    notes: tuple[str, ...] = ()

    def needed(self) -> dict[str, str | int | bool]:
        """Root attributes from which `read_header` rebuilds the header."""
        return {
            "format": FORMAT,
            "format_version": VERSION,
            "complete": self.complete,
            "n_prompts": self.layout.n_prompts,
            "dtype": self.layout.storage_dtype,
            "provenance": json.dumps(self.provenance.to_dict()),
            "prompts_notes": json.dumps(list(self.notes)),
        }

    def readable(self) -> dict[str, Any]:
        """Root attributes for people and other programs; `read_header` does without them."""
        prov = self.provenance
        attributes = {
            "fingerprint": prov.fingerprint(),
            "model": prov.model.name,
            "model_spec": prov.model.spec,
            "revision": prov.model.revision or "",
            "adapters": list(prov.model.adapters),
            "weights_hash": prov.model.weights_hash,
            "architecture": prov.model.architecture,
            "model_dtype": prov.model.dtype,
            "quantization": prov.model.quantization or "",
            "tokenizer_hash": prov.template.tokenizer_hash,
            "template_hash": prov.template.template_hash,
            "system": prov.template.system,
            "prompts": prov.prompts_name,
            "prompts_hash": prov.prompts_hash,
            "rendered_hash": prov.rendered_hash,
            "hooks": list(prov.hooks),
            "created": prov.created,
            **{f"version_{name}": version for name, version in prov.versions.items()},
        }
        return {name: _readable(value) for name, value in attributes.items()}


def read_header(file: Any, path: Path) -> Header:
    """Read and check the root attributes.

    Raises:
        StoreError: The file is foreign, newer than this program, or damaged.
    """
    hdf5.check_format(file, FORMAT, path)
    version = hdf5.attribute(file, "format_version", int, path)
    if version != VERSION:
        raise StoreError(
            "The capture was written by another version of refusaldir",
            expected=f"format version {VERSION}",
            got=version,
            where=path,
            next_step="Update refusaldir" if version > VERSION else hdf5.RECAPTURE,
        )
    text = hdf5.attribute(file, "provenance", str, path)
    notes = hdf5.attribute(file, "prompts_notes", str, path)
    n_prompts = hdf5.attribute(file, "n_prompts", int, path)
    storage_dtype = hdf5.attribute(file, "dtype", str, path)
    with hdf5.guarded(path, "The provenance of the capture cannot be read"):
        provenance = Provenance.from_dict(json.loads(text))
        check_provenance(provenance)
        if storage_dtype not in STORAGE_DTYPES:
            raise ValueError(f"storage dtype {storage_dtype!r:.40}")
        layout = Layout(
            n_prompts=n_prompts,
            n_layers=len(provenance.layers),
            n_positions=len(provenance.positions.offsets),
            d_model=provenance.model.d_model,
            storage_dtype=storage_dtype,
        )
        return Header(
            provenance=provenance,
            layout=layout,
            complete=hdf5.attribute(file, "complete", bool, path),
            notes=tuple(map(str, json.loads(notes))),
        )


def check_provenance(provenance: Provenance) -> None:
    """Refuse what cannot label the axes of a capture.

    Raises:
        ValueError: Layers or positions are not ascending whole numbers, or hooks are unknown.
    """
    layers, hooks = provenance.layers, provenance.hooks
    whole = (*layers, *provenance.positions.offsets, provenance.model.d_model)
    if not all(type(number) is int for number in whole):
        raise ValueError("layers, positions and d_model must be whole numbers")
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
        raise ValueError(f"layers must be ascending and unique: {layers!r:.60}")
    if not hooks or len(set(hooks)) < len(hooks) or not set(hooks) <= set(HOOKS):
        raise ValueError(f"hooks must be unique and among {', '.join(HOOKS)}: {hooks!r:.60}")
    if provenance.model.d_model < 1:
        raise ValueError(f"d_model must be positive: {provenance.model.d_model}")


def peek(path: str | Path) -> Provenance:
    """Read only the provenance of a complete capture.

    Args:
        path: The HDF5 file.

    Raises:
        StoreError: It is missing, foreign, newer, damaged or incomplete.
    """
    return complete_header(Path(path)).provenance


def complete_header(path: Path) -> Header:
    """Open a file, read its header and close it; refuse an incomplete capture."""
    file = hdf5.open_file(path, "r")
    try:
        header = read_header(file, path)
        if not header.complete:
            raise incomplete(file, path, header)
        return header
    finally:
        file.close()


def incomplete(file: Any, path: Path, header: Header) -> StoreError:
    """Say how far an unfinished capture got."""
    n = header.layout.n_prompts
    done = hdf5.array(file, "done", path, shape=(n,), dtype="u1")
    return StoreError(
        "The capture is incomplete",
        expected=f"{n} prompts",
        got=int(done.astype(bool).sum()),
        where=path,
        next_step="Run the 'refusaldir extract' that wrote it again with --resume",
    )


def changes(old: Provenance, new: Provenance) -> list[str]:
    """Name what decides the values and differs; empty when the fingerprints are equal."""
    if old.fingerprint() == new.fingerprint():
        return []
    before, after = _flat(_deciding(old)), _flat(_deciding(new))
    changed = [
        f"{key} {_short(before.get(key))} → {_short(after.get(key))}"
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]
    return changed or ["fingerprint"]


def _deciding(provenance: Provenance) -> dict[str, Any]:
    data = provenance.to_dict()
    for key in ("versions", "created", "prompts_name"):
        del data[key]
    data["positions"] = list(provenance.positions.offsets)
    for key in ("spec", "name", "revision", "adapters", "backend"):
        del data["model"][key]
    return data


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    return [storable(item) for item in value] or ""
