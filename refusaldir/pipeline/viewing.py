"""`view`: the prompts of two captures in a plane, at any layers, as figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refusaldir.directions.reader import read_site
from refusaldir.directions.site import choose_site
from refusaldir.drift.comparable import Comparable, require_comparable
from refusaldir.drift.geometry_view import GeometryView, Method, geometry_view
from refusaldir.errors import DirectionError
from refusaldir.records import Site, content_hash
from refusaldir.store import Capture, default_store

#: How the planes are made where nothing is asked.
PLANES: tuple[Method, ...] = ("direction", "pca")


@dataclass(frozen=True, kw_only=True)
class Viewed:
    """What `view` found.

    Attributes:
        document: Models and views, JSON-ready, as in a diff document.
        views: The views, by layer and then by method.
        folder: Where the figure was written.
        files: What was written, by name.
    """

    document: dict[str, Any]
    views: tuple[GeometryView, ...]
    folder: Path
    files: dict[str, Path]


def view(
    base: str | Path,
    tuned: str | Path,
    *,
    hook: str = "resid_pre",
    layers: Sequence[int] = (),
    position: int | None = None,
    methods: Sequence[Method] = PLANES,
    allow_dtype_mismatch: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    store: str | Path | None = None,
) -> Viewed:
    """Put the prompts of two captures into planes and draw them.

    Args:
        base: Capture of base.
        tuned: Capture of tuned, on the same prompts.
        hook: Hook point.
        layers: Layers to look at; none takes the one where base separates best.
        position: Token offset; None takes the one where base separates best.
        methods: How each plane is made; see `refusaldir.drift.geometry_view`.
        allow_dtype_mismatch: Take captures in different precision as they are.
        seed: Seed of UMAP.
        out: Folder for the figure; None names one in the store.
        store: The folder for captures.

    Raises:
        CaptureMismatchError: The captures differ in more than the weights.
        DirectionError: A layer or position was not captured, or there is nothing to see there.
        MissingExtraError: UMAP was asked for and is not installed.
        StoreError: A capture cannot be read, or the figure cannot be written.
    """
    from refusaldir.report.document import plain
    from refusaldir.report.geometry_figure import write_geometry_figure

    with Capture.open(base) as first, Capture.open(tuned) as second:
        pair = require_comparable(first, second, hook, allow_dtype_mismatch=allow_dtype_mismatch)
        wanted = {"layer": tuple(layers), "position": () if position is None else (position,)}
        captured = {"layer": tuple(first.layers), "position": first.positions.offsets}
        for name, asked in wanted.items():
            if not set(asked) <= set(captured[name]):
                raise DirectionError(
                    f"a {name} was not captured", expected=captured[name], got=asked
                )
        best = choose_site(
            pair.base,
            hook,
            positions=wanted["position"] or None,
            layers=layers or None,
            seed=seed,
        ).site
        sites = [
            Site(hook=hook, layer=layer, position=best.position)
            for layer in dict.fromkeys(layers or (best.layer,))
        ]
        views = tuple(found for site in sites for found in _at(pair, site, methods, seed))
        identities = first.provenance, second.provenance
    document = dict(
        plain(
            {
                "base": identities[0].to_dict(),
                "tuned": identities[1].to_dict(),
                "drift": {"views": [found.to_dict() for found in views]},
            }
        )
    )
    folder = Path(out) if out is not None else _default_folder(document, sites, methods, store)
    paths = write_geometry_figure(document, folder)
    return Viewed(
        document=document, views=views, folder=folder, files={path.name: path for path in paths}
    )


def _at(pair: Comparable, site: Site, methods: Sequence[Method], seed: int) -> list[GeometryView]:
    x, y = (read_site(side, site).astype(np.float64) for side in (pair.base, pair.tuned))
    ids = [prompt.id for prompt in pair.base.prompts]
    return [
        geometry_view(x, y, pair.base.labels, ids, site=site, method=method, seed=seed)
        for method in methods
    ]


def _default_folder(
    document: dict[str, Any],
    sites: Sequence[Site],
    methods: Sequence[Method],
    store: str | Path | None,
) -> Path:
    models = [document[arm]["model"] for arm in ("base", "tuned")]
    key = content_hash([m["weights_hash"] for m in models], [*map(str, sites)], list(methods))[:8]
    return default_store(store) / f"view-{'-to-'.join(m['name'] for m in models)}-{key}"
