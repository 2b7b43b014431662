"""The checkpoints of a series: named one by one, or found in a folder of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from refusaldir.errors import ModelSpecError
from refusaldir.models.spec import AdapterRef, ModelSpec
from refusaldir.pipeline.arm import is_capture
from refusaldir.pipeline.choices import Side
from refusaldir.store import peek

#: What a folder of one checkpoint is called, and its step.
_STEP = re.compile(r"(?:checkpoint|ckpt|global_step|step|epoch|iter)[-_]?(\d+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One checkpoint of a series.

    Attributes:
        name: What it is called in tables and folders, once in a series.
        step: Its training step, where its name says so.
        side: What to open.
    """

    name: str
    step: int | None
    side: Side


def is_series(tuned: Sequence[Side]) -> bool:
    """Whether these are several checkpoints, or a folder of them, rather than one model."""
    return len(tuned) != 1 or bool(checkpoint_folders(tuned[0]))


def checkpoint_folders(side: Side) -> list[Path]:
    """The checkpoints in a folder that is no model itself, in the order of their steps.

    Raises:
        ModelSpecError: It is a folder with neither a model nor checkpoints in it.
    """
    if isinstance(side, ModelSpec) or not Path(side).expanduser().is_dir():
        return []
    folder = Path(side).expanduser()
    files = {path.name for path in folder.iterdir()}
    if files & {"config.json", "adapter_config.json"}:
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and _STEP.fullmatch(path.name)]
    if not found:
        if any(any(folder.glob(f"*{end}")) for end in (".gguf", "/config.json", "/*_config.json")):
            return []  # whoever opens it says which of them may be meant
        named = ", ".join(sorted(files)[:4]) + (", …" if len(files) > 4 else "")
        raise ModelSpecError(
            "This folder holds neither a model nor checkpoints",
            expected="config.json, adapter_config.json, or folders such as checkpoint-100",
            got=named or "an empty folder",
            where=folder,
        )
    return sorted(found, key=lambda path: (_step(path.name) or 0, path.name))


def _step(name: str) -> int | None:
    found = _STEP.search(name)
    return None if found is None else int(found[1])


def find_stops(base: Side, tuned: Sequence[Side]) -> list[Stop]:
    """The checkpoints that were asked for; those of a folder in the order of their steps.

    An adapter in a folder of checkpoints is stacked on base. Specs and captures are taken as
    they are.

    Raises:
        ModelSpecError: A folder holds neither a model nor checkpoints.
    """
    sides: list[Side] = []
    for side in tuned:
        inside = checkpoint_folders(side)
        sides += [_on_base(base, path) for path in inside] if inside else [side]
    stops: list[Stop] = []
    for side in sides:
        name, several = short_name(side), 1
        while any(name == stop.name for stop in stops):
            several += 1
            name = f"{short_name(side)}-{several}"
        stops.append(Stop(name=name, step=_step(name), side=side))
    return stops


def _on_base(base: Side, checkpoint: Path) -> ModelSpec:
    """A checkpoint in a folder: a whole model, or an adapter stacked on base."""
    from refusaldir.models.resolve import is_adapter

    if not is_adapter(checkpoint):
        return ModelSpec(where=str(checkpoint))
    below = ModelSpec.parse(
        peek(Path(str(base))).model.spec
        if is_capture(base)
        else str(base)
        if isinstance(base, Path)
        else base
    )
    return replace(below, adapters=(*below.adapters, AdapterRef(where=str(checkpoint))))


def short_name(side: Side) -> str:
    """The last part of a side's name, as a folder may be called."""
    if is_capture(side):
        text = Path(str(side)).stem
    else:
        spec = ModelSpec.parse(str(side) if isinstance(side, Path) else side)
        last = spec.adapters[-1].where if spec.adapters else spec.where
        text = Path(last).name if _STEP.fullmatch(Path(last).name) else spec.name
    return re.sub(r"[^\w.@+-]+", "-", text, flags=re.ASCII).strip(".-") or "checkpoint"
