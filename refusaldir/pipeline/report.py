"""`report`: one HTML page of everything that lies in a result's folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.errors import StoreError
from refusaldir.report.files import write_atomic

if TYPE_CHECKING:
    from refusaldir.probes.run import ProbeRun
    from refusaldir.report.html import Material, Series

#: The page's name in its folder.
NAME = "report.html"
#: What a page can be about, the first one found.
DOCUMENTS = ("trajectory.json", "diff.json", "behaviour.json", "layers.json")


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a folder: a page that needs nothing beside it and fetches nothing.

    It is about ``trajectory.json`` with the comparisons of its checkpoints, ``diff.json``,
    ``behaviour.json`` or ``layers.json``. Beside a comparison, ``layers.json``, base's selection
    and the responses in ``base/`` and ``tuned/`` go in where they are there.

    Args:
        folder: The folder, or one of these files.
        out: Where to; ``report.html`` in the folder where None.

    Returns:
        The page's path; an earlier page is replaced.

    Raises:
        StoreError: There is nothing to report in the folder, a document is damaged or of another
            version, or the page cannot be written.
        ProbeError: The responses beside it are damaged.
    """
    from refusaldir.report.html import page

    path = _document(Path(folder))
    html = page(_read(path))
    target = path.with_name(NAME) if out is None else Path(out)
    return write_atomic(target, html.encode("utf-8"))


def _document(given: Path) -> Path:
    """The document that a path means."""
    if given.name in DOCUMENTS or given.is_file():
        return given
    for name in DOCUMENTS:
        if (given / name).exists():
            return given / name
    raise StoreError(
        "There is nothing to report here",
        expected=" or ".join(DOCUMENTS),
        where=given,
        next_step="Make a result with refusaldir diff BASE TUNED --out FOLDER",
    )


def _read(path: Path) -> "Material | Series":
    from refusaldir.report.behaviour_document import load_behaviour
    from refusaldir.report.document import load_document
    from refusaldir.report.html import Material, Series
    from refusaldir.report.layers_document import load_layers
    from refusaldir.report.trajectory_document import load_trajectory

    folder = path.parent
    if path.name == "trajectory.json":
        trajectory = load_trajectory(path)
        names = [point["name"] for point in trajectory["checkpoints"]]
        base = _responses(folder / "base")
        # A training monitor writes a trajectory without comparisons of its own.
        stops = tuple(
            _comparison(load_document(folder / name / "diff.json"), folder / name, name, base)
            for name in names
            if (folder / name / "diff.json").exists()
        )
        return Series(trajectory=trajectory, stops=stops)
    if path.name == "behaviour.json":
        document = load_behaviour(path)
        # The runs that were compared stay where they were.
        base, tuned = (_responses(Path(document["options"][arm])) for arm in ("base", "tuned"))
        name = document["tuned"]["model"]["name"]
        return Material(name=name, behaviour=document, base=base, tuned=tuned)
    if path.name == "layers.json":
        document = load_layers(path)
        return Material(name=document["tuned"]["name"], layers=document)
    document = load_document(path)
    name = document["tuned"]["model"]["name"]
    return _comparison(document, folder, name, _responses(folder / "base"))


def _comparison(
    document: dict[str, Any], folder: Path, name: str, base: "ProbeRun | None"
) -> "Material":
    """One comparison with what lies beside it."""
    from refusaldir.pipeline.selected import read_document
    from refusaldir.report.html import Material
    from refusaldir.report.layers_document import load_layers

    causality = document["causality"]
    chosen = None if causality is None else causality["selection"]
    select = None if chosen is None else Path(chosen["folder"]) / "select.json"
    layers = folder / "layers.json"
    return Material(
        name=name,
        diff=document,
        layers=load_layers(layers) if layers.exists() else None,
        selection=read_document(select) if select is not None and select.exists() else None,
        base=base,
        tuned=_responses(folder / "tuned"),
    )


def _responses(folder: Path) -> "ProbeRun | None":
    """A run's responses, where they are there."""
    from refusaldir.probes.run import FILES, ProbeRun

    return (
        ProbeRun.read(folder) if any((folder / name).exists() for name in FILES.values()) else None
    )
