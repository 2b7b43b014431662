"""Model specs: what to open, as one line of text.

``WHERE[@REVISION][+ADAPTER[@REVISION]…]``, for example::

    smollm2-135m+aligned
    org/model@v1.2+org/lora-a@main+./my-lora
    ./runs/tune/checkpoint-500
    ./model.Q4_K_M.gguf
    org/model-gguf/model.Q4_K_M.gguf

WHERE is a bundled name, a Hub id, a local directory, a ``.gguf`` file (local, or
``org/repo/file.gguf`` on the Hub) or a PEFT adapter, which is opened on the base that its
configuration names. Adapters are stacked from left to right.

Two rules settle what a name means. Text that is an existing local path is taken whole, even
where it contains ``+`` or ``@``. The bundled names are reserved: `BUNDLED_MODELS` and
`BUNDLED_ADAPTERS` always mean the bundled ones, whatever lies in the working directory, so that
``smollm2-135m+aligned`` means the same everywhere; write ``./aligned`` for a directory of that
name.

Nothing here imports torch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refusaldir.errors import ModelSpecError

#: Base models that refusaldir knows how to fetch by itself.
BUNDLED_MODELS = ("smollm2-135m",)
#: Adapters that ship inside the package.
BUNDLED_ADAPTERS = ("aligned", "tuned")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9][\w.-]*")
#: Directory names that say nothing alone; the parent's name is put before them.
_VAGUE = re.compile(
    r"(checkpoint|step|epoch|iter)[-_]?\d+|final|last|best|latest|model|merged|adapter|lora|output"
)
_USAGE = "WHERE[@REVISION][+ADAPTER[@REVISION]...], e.g. org/model@main+./my-lora"


def is_local(where: str) -> bool:
    """Whether the text names an existing local file or directory."""
    try:
        return bool(where) and Path(where).expanduser().exists()
    except (OSError, ValueError):  # a name too long or with a null byte
        return False


def looks_like_path(where: str) -> bool:
    """Whether the text can only be meant as a local path, existing or not."""
    return where.startswith(("/", "./", "../", "~", ".\\", "..\\")) or bool(
        re.match(r"[A-Za-z]:[\\/]", where)
    )


def looks_like_hub_id(where: str) -> bool:
    """Whether the text has the form ``org/name`` of a Hub repository."""
    return _HUB_ID.fullmatch(where) is not None and not looks_like_path(where)


def looks_like_hub_gguf(where: str) -> bool:
    """Whether the text has the form ``org/repo/…/file.gguf`` of a file on the Hub."""
    parts = where.split("/")
    return (
        len(parts) >= 3
        and where.lower().endswith(".gguf")
        and not looks_like_path(where)
        and looks_like_hub_id("/".join(parts[:2]))
    )


@dataclass(frozen=True, kw_only=True)
class AdapterRef:
    """One PEFT adapter.

    Attributes:
        where: Bundled name, local directory or Hub id.
        revision: Hub revision, or None for the default one.
    """

    where: str
    revision: str | None = None

    def __str__(self) -> str:
        """Return ``WHERE[@REVISION]``."""
        return self.where if self.revision is None else f"{self.where}@{self.revision}"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What to open: a model and the adapters stacked on it.

    Attributes:
        where: Bundled name, Hub id, local directory, ``.gguf`` file or PEFT adapter.
        revision: Hub revision of ``where``, or None for the default one.
        adapters: Adapters, in the order in which they are applied.
    """

    where: str
    revision: str | None = None
    adapters: tuple[AdapterRef, ...] = ()

    @classmethod
    def parse(cls, text: "str | ModelSpec") -> "ModelSpec":
        """Read a spec; see the module docstring for the grammar.

        Args:
            text: The spec as text; a `ModelSpec` is returned as it is.

        Raises:
            ModelSpecError: An empty part, or a revision on a local path or bundled name.
        """
        if isinstance(text, ModelSpec):
            return text
        text = text.strip()
        if not text:
            raise ModelSpecError("The model spec is empty", expected=_USAGE)
        where, *adapters = (_split_revision(item, spec=text) for item in _split_plus(text))
        return cls(
            where=where.where,
            revision=where.revision,
            adapters=tuple(adapters),
        )

    def __str__(self) -> str:
        """Return the spec as text, which `parse` reads back."""
        return "+".join(
            [str(AdapterRef(where=self.where, revision=self.revision))]
            + [str(adapter) for adapter in self.adapters]
        )

    @property
    def name(self) -> str:
        """A short name for tables and file names: letters, digits, and ``. _ - + @`` only."""
        return "+".join(
            [_short(self.where, self.revision)]
            + [_short(adapter.where, adapter.revision) for adapter in self.adapters]
        )


def _split_plus(text: str) -> list[str]:
    """Split at ``+``, keeping together the longest runs that are existing paths."""
    parts = text.split("+")
    items: list[str] = []
    start = 0
    while start < len(parts):
        stop = next(
            (
                stop
                for stop in range(len(parts), start + 1, -1)
                if _is_path_item("+".join(parts[start:stop]))
            ),
            start + 1,
        )
        items.append("+".join(parts[start:stop]).strip())
        start = stop
    if not all(items):
        raise ModelSpecError("A part of the model spec is empty", expected=_USAGE, got=repr(text))
    return items


def _is_path_item(item: str) -> bool:
    """Whether an item is an existing path (a revision behind it is rejected later)."""
    return is_local(item) or ("@" in item and is_local(item.rsplit("@", 1)[0]))


def _split_revision(item: str, *, spec: str) -> AdapterRef:
    """Split ``WHERE[@REVISION]``."""
    if "@" not in item or is_local(item):
        return AdapterRef(where=item)
    where, revision = item.rsplit("@", 1)
    if not where or not revision:
        raise ModelSpecError("A part of the model spec is empty", expected=_USAGE, got=repr(spec))
    if where in BUNDLED_MODELS + BUNDLED_ADAPTERS or is_local(where) or looks_like_path(where):
        raise ModelSpecError(
            "Only models on the Hub have revisions",
            expected="no @REVISION behind a local path or a bundled name",
            got=repr(item),
            where=spec,
        )
    return AdapterRef(where=where, revision=revision)


def _short(where: str, revision: str | None) -> str:
    """The telling part of a path or Hub id."""
    parts = [part for part in re.split(r"[\\/]+", where) if part not in ("", ".", "..", "~")]
    if not parts and is_local(where):  # "." or ".."
        parts = [Path(where).expanduser().resolve().name]
    name = parts[-1] if parts else "model"
    if name.lower().endswith(".gguf"):
        name = name[: -len(".gguf")]
    if len(parts) > 1 and _VAGUE.fullmatch(name.lower()):
        name = f"{parts[-2]}-{name}"
    if revision is not None:
        name = f"{name}@{revision}"
    return re.sub(r"[^\w.@-]+", "-", name, flags=re.ASCII).strip("-.") or "model"


def close_matches(where: str, *, others: Sequence[str] = ()) -> list[str]:
    """Names like the one given: bundled names and entries beside the path it may mean."""
    import difflib

    path = Path(where).expanduser()
    try:
        prefix = where[: len(where) - len(path.name)]
        beside = [
            f"{prefix}{entry.name}"
            for entry in path.parent.iterdir()
            if entry.is_dir() or entry.suffix == ".gguf"
        ]
    except OSError:
        beside = []
    known = [*BUNDLED_MODELS, *BUNDLED_ADAPTERS, *others, *sorted(beside)]
    lower = {name.lower(): name for name in reversed(known)}
    return [lower[name] for name in difflib.get_close_matches(where.lower(), lower, n=3)]
