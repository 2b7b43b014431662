"""Loading prompts: built-in sets, files, public sets by name, Hugging Face data sets.

For example::

    load_prompts()                                    # the built-in set "contrast"
    load_prompts("battery")                           # or "escalations": of several turns
    load_prompts("mine.jsonl")
    load_prompts("goals.csv", label="harmful", column_map={"text": "Goal"})
    load_prompts("xstest")                            # a public set, downloaded
    load_prompts("org/name:config@revision#split", column_map={"text": "q", "label": "y"})
    load_pair("harmful.txt", "harmless.txt")
"""

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

from refusaldir.errors import PromptError
from refusaldir.prompts.files import read_rows
from refusaldir.prompts.hub import HubSpec, read_data_set, read_preset
from refusaldir.prompts.limit import spread_head
from refusaldir.prompts.presets import PRESETS, preset_key
from refusaldir.prompts.rows import Draft, Reading, build_set, read_drafts
from refusaldir.prompts.schema import PromptSet

#: Sets that come with refusaldir, by name.
BUILT_IN = ("contrast", "battery", "escalations")

_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt")


def load_prompts(
    source: str | Path = "contrast",
    *,
    label: str | None = None,
    column_map: Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> PromptSet:
    """Load one prompt set.

    Args:
        source: ``contrast``, ``battery`` or ``escalations``; a .jsonl, .json, .csv, .tsv or .txt
            file; the name of a public set (see `refusaldir.prompts.presets`); a Hugging Face data
            set ``name[:config][@revision][#split]``; or a data set folder.
        label: ``harmful`` or ``harmless`` for a source without labels; of a public set that has
            both classes, the one to keep.
        column_map: Prompt field (or ``text``) → column of the source. Columns it does not name
            are ignored; without it, a column that is not a prompt field is an error.
        split: Keep the prompts whose ``split`` is ``train``, ``validation`` or ``test``. (The
            split of a Hugging Face data set is written after ``#`` in its name.)
        limit: At most this many prompts of each class, as many of one as of the other, twins
            and the framings of an intent together, spread over splits and categories, always
            the same ones.

    Returns:
        The prompts, in the order of the source.

    Raises:
        PromptError: The source is missing, malformed, empty, or lacks what was asked for.
        MissingExtraError: A data set needs ``pip install 'refusaldir[datasets]'``.
    """
    reading = Reading(label=label, columns=column_map)
    name, drafts, downloaded = _read(source, reading)
    prompts = build_set(name, drafts, drop_duplicates=downloaded)
    return _narrow(prompts, split, limit)


def load_pair(
    harmful: str | Path,
    harmless: str | Path,
    *,
    column_map: Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> PromptSet:
    """Load a harmful and a harmless source as one set.

    Ids get the prefix ``harmful-`` or ``harmless-``. Prompts without an ``intent_id`` are each
    an intent of their own, so the two sources count as unmatched; ``twin_of`` names a prompt of
    the other source.

    Args:
        harmful: Source of the harmful prompts, in any form that `load_prompts` takes.
        harmless: Source of the harmless prompts.
        column_map: As for `load_prompts`, for both sources.
        split: As for `load_prompts`.
        limit: As for `load_prompts`.

    Returns:
        The harmful prompts, then the harmless ones.

    Raises:
        PromptError: As for `load_prompts`; also when a prompt stands in both sources.
        MissingExtraError: As for `load_prompts`.
    """
    names: list[str] = []
    drafts: list[Draft] = []
    downloads: list[bool] = []
    labels = ("harmful", "harmless")
    for source, label, other in zip((harmful, harmless), labels, labels[::-1], strict=True):
        reading = Reading(
            label=label, columns=column_map, prefix=f"{label}-", twin_prefix=f"{other}-"
        )
        name, read, downloaded = _read(source, reading)
        names.append(name)
        drafts.extend(read)
        downloads.append(downloaded)
    prompts = build_set("+".join(names), drafts, drop_duplicates=any(downloads))
    return _narrow(prompts, split, limit)


def _read(source: str | Path, reading: Reading) -> tuple[str, list[Draft], bool]:
    """Return the set's name, its drafts, and whether it was downloaded."""
    text = str(source)
    if text in BUILT_IN:
        with resources.as_file(
            resources.files("refusaldir.prompts") / "data" / f"{text}.jsonl"
        ) as path:
            return text, read_drafts(read_rows(path), reading), False
    path = Path(text).expanduser()
    if path.is_file():
        return path.stem, read_drafts(read_rows(path), reading), False
    if text and path.is_dir():
        return _hub(HubSpec(name=str(path)), reading, path.name)
    spec = None if isinstance(source, Path) else HubSpec.parse(text)
    if spec is not None and spec.name in BUILT_IN:
        raise PromptError(
            "A built-in set takes no config, revision or split in its name",
            expected=spec.name,
            got=text,
            next_step="Choose the split with the option for it",
        )
    if spec is not None and preset_key(spec.name) in PRESETS:
        return _preset(spec, reading)
    if spec is None or not _may_be_on_hub(spec):
        raise _not_found(text, path)
    if (folder := Path(spec.name).expanduser()).is_dir():
        return _hub(HubSpec(**{**vars(spec), "name": str(folder)}), reading, folder.name)
    return _hub(spec, reading, text)


def _hub(spec: HubSpec, reading: Reading, name: str) -> tuple[str, list[Draft], bool]:
    columns = None
    if reading.columns is not None and {"text", "turns"} & set(reading.columns):
        columns = reading.columns.values()
    return name, read_drafts(read_data_set(spec, columns), reading), True


def _preset(spec: HubSpec, reading: Reading) -> tuple[str, list[Draft], bool]:
    key = preset_key(spec.name)
    preset = PRESETS[key]
    if spec.config or spec.split or reading.columns is not None:
        raise PromptError(
            "A public set by name takes no config, split or column map",
            expected=f"{key} or {key}@revision",
            got=str(spec),
            next_step=f"Load {preset.dataset} by its id to choose them",
        )
    drafts = read_preset(key, preset, revision=spec.revision, prefix=reading.prefix)
    if reading.label is not None:
        # In a pair, the other class of a set that has both is left out.
        drafts = [draft for draft in drafts if draft[1]["label"] == reading.label]
        for _, fields in drafts:
            fields.pop("twin_of", None)
        if not drafts:
            raise PromptError(
                f"{preset.title} has no {reading.label} prompts",
                got=f"{preset.labels} prompts",
                where=key,
            )
    name = key if spec.revision is None else f"{key}@{spec.revision}"
    return name, drafts, True


def _may_be_on_hub(spec: HubSpec) -> bool:
    if Path(spec.name).suffix.lower() in _SUFFIXES or spec.name.startswith((".", "/", "~", "\\")):
        return Path(spec.name).expanduser().is_dir()
    return spec.name.count("/") == 1 or bool(spec.config or spec.revision or spec.split)


def _not_found(text: str, path: Path) -> PromptError:
    names = [*BUILT_IN, *PRESETS]
    close = get_close_matches(preset_key(text), names, n=1)
    if path.parent.is_dir():
        files = [p.name for p in path.parent.iterdir() if p.suffix.lower() in _SUFFIXES]
        close += [str(path.parent / f) for f in get_close_matches(path.name, files, n=2)]
    return PromptError(
        "There is no such prompt file or set",
        expected=f"a file, a Hugging Face id owner/name, or one of {', '.join(names)}",
        got=repr(text),
        next_step=f"Did you mean {' or '.join(repr(c) for c in close)}?" if close else None,
    )


def _narrow(prompts: PromptSet, split: str | None, limit: int | None) -> PromptSet:
    if split is not None:
        kept = prompts.select(split=split)
        if not kept:
            there = sorted({p.split for p in prompts if p.split is not None})
            raise PromptError(
                "No prompt is in this split",
                expected=", ".join(there) or "no split: these prompts are not divided",
                got=repr(split),
                where=prompts.name,
            )
        prompts = kept
    return prompts if limit is None else spread_head(prompts, limit)
