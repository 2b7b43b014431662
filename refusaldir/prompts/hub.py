"""Prompts from the Hugging Face Hub, from data set folders, and from the presets.

Needs the optional dependency ``datasets``, imported only when a data set is read.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refusaldir.errors import MissingExtraError, PromptError
from refusaldir.prompts.files import Row
from refusaldir.prompts.presets import Preset
from refusaldir.prompts.rows import Draft, Reading, read_drafts

_SPEC = re.compile(
    r"(?P<name>[^:@#\s]+)(:(?P<config>[^@#\s]+))?(@(?P<revision>[^#\s]+))?(#(?P<split>\S+))?"
)


@dataclass(frozen=True, kw_only=True)
class HubSpec:
    """A data set on the Hub: ``name[:config][@revision][#split]``.

    Attributes:
        name: ``owner/name``, a preset's name, or the path of a folder.
        config: Configuration, or None for the only one.
        revision: Branch, tag or commit, or None for the newest.
        split: Split, or None for the only one.
    """

    name: str
    config: str | None = None
    revision: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubSpec | None":
        """Parse a spec; None when the text does not have its form."""
        match = _SPEC.fullmatch(text)
        return cls(**match.groupdict()) if match else None

    def __str__(self) -> str:
        """Return the spec as text; parses to an equal spec."""
        parts = ((":", self.config), ("@", self.revision), ("#", self.split))
        return self.name + "".join(mark + part for mark, part in parts if part)


def read_data_set(spec: HubSpec, columns: Iterable[str] | None = None) -> list[Row]:
    """Read every row of one split of a data set.

    Args:
        spec: The data set, on the Hub or in a folder.
        columns: Columns to read; None for all.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        PromptError: The data set is gated, unreachable, unknown or has no such part.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"Reading the data set {spec}", "datasets") from error
    folder = Path(spec.name)
    try:
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            data = datasets.load_from_disk(spec.name)
            if spec.split is not None and hasattr(data, "keys"):
                data = data[spec.split]
        else:
            data = datasets.load_dataset(
                spec.name, spec.config, split=spec.split, revision=spec.revision
            )
    except Exception as error:  # Whatever the library or the network raises; one clear sentence.
        raise _cannot_load(spec, error) from error
    if hasattr(data, "keys"):  # A DatasetDict: no split was asked for.
        names = list(data)
        if len(names) != 1:
            raise PromptError(
                "The data set has several splits",
                expected=f"one of {', '.join(names)}",
                where=spec,
                next_step=f"Add one to its name, e.g. {replace(spec, split=names[0])}",
            )
        data = data[names[0]]
    if columns is not None and set(columns) <= set(data.column_names):
        data = data.select_columns(list(columns))  # Leaves images and the like undecoded.
    stem = folder.name
    return [
        Row(where=f"{spec}, row {number}", key=f"{stem}-{number}", data=record)
        for number, record in enumerate(data.to_list(), start=1)
    ]


def _cannot_load(spec: HubSpec, error: Exception) -> PromptError:
    said = str(error).strip() or type(error).__name__
    first = said.splitlines()[0].rstrip(".")
    chain = f"{type(error).__name__} {said} {error.__cause__ or ''}".lower()
    login = "run 'hf auth login' (or 'huggingface-cli login')"
    save = "or save it to a .jsonl or .csv file and pass the file"
    if Path(spec.name).is_dir():
        what = "No prompts can be read from this folder"
        step = "Pass a prompt file in it, or a folder that the library 'datasets' can load"
    elif re.search(r"gated|authenticated|\b40[13]\b", chain):
        what = "The data set is gated or private, and the Hub does not know you"
        step = f"Accept its conditions on huggingface.co/datasets/{spec.name} and {login}, {save}"
    elif "offline" in chain or isinstance(error, ConnectionError):
        what = "The data set cannot be reached on the Hugging Face Hub"
        step = f"Check the network and HF_HUB_OFFLINE, {save}"
    elif isinstance(error, FileNotFoundError):
        what = "The data set was not found on the Hugging Face Hub"
        step = f"Check its name; if it is private, {login}, {save}"
    else:
        what = "The data set cannot be loaded"
        step = f"Write it as name[:config][@revision][#split], {save}"
    return PromptError(what, got=first, where=spec, next_step=step)


def read_preset(
    key: str, preset: Preset, *, revision: str | None = None, prefix: str = ""
) -> list[Draft]:
    """Read a preset's parts; twins are linked where the set has them.

    Args:
        key: The preset's key; ids begin with it.
        preset: The preset.
        revision: Revision of the data set, or None for the newest.
        prefix: Put before every id.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        PromptError: The data set is gated, unreachable or has changed its columns.
    """
    drafts: list[Draft] = []
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    used = {*preset.columns.values(), *preset.keep, *preset.empty, *preset.pair_on}
    for part in preset.parts:
        spec = HubSpec(name=preset.dataset, config=part.config, revision=revision, split=part.split)
        rows = read_data_set(spec, used)
        _check_columns(rows, used, preset)
        stem = key if len(preset.parts) == 1 else f"{key}-{part.label}"
        rows = [
            replace(row, key=f"{stem}-{number}")
            for number, row in enumerate(rows, start=1)
            if all(str(row.data[name]) == value for name, value in preset.keep.items())
            and not any(str(row.data[name] or "").strip() for name in preset.empty)
        ]
        reading = Reading(label=part.label, columns=preset.columns, prefix=prefix)
        for row, fields in read_drafts(rows, reading):
            fields.update(source=preset.title, licence=preset.licence, domain=preset.domain)
            fields["category"] = str(fields.get("category", "uncategorised"))
            if preset.pair_on:
                group = tuple(row.data[name] for name in preset.pair_on)
                groups.setdefault(group, []).append(fields)
            drafts.append((row, fields))
    for members in groups.values():
        if sorted(fields["label"] for fields in members) == ["harmful", "harmless"]:
            first, second = members
            first["twin_of"], second["twin_of"] = second["id"], first["id"]
    return drafts


def _check_columns(rows: Sequence[Row], used: Iterable[str], preset: Preset) -> None:
    there: Mapping[str, Any] = rows[0].data if rows else {}
    missing = sorted(set(used) - set(there))
    if missing:
        raise PromptError(
            f"{preset.title} has changed on the Hub: columns are missing",
            expected=", ".join(sorted(used)),
            got=", ".join(there) or "no rows",
            where=preset.dataset,
            next_step=f"Load {preset.dataset} by its id with a column map instead",
        )
