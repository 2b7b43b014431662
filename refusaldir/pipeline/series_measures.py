"""What moved in each fine-tune of a series, and how its behaviour changed, from its documents."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from refusaldir.errors import RefusaldirError
from refusaldir.probes.link.series import SeriesLink, series_link

if TYPE_CHECKING:
    from refusaldir.models.spec import ModelSpec

#: Name of each measure, where it stands in the site's row of a diff document, and what it is.
_AT_SITE = {
    "rotation": (("angle",), "angle between base's and tuned's direction at the site, degrees"),
    "norm ratio": (("shrinkage",), "norm of tuned's direction over base's"),
    "shift harmful": (("translation", "harmful"), "shift of harmful prompts, base SDs"),
    "shift harmless": (("translation", "harmless"), "shift of harmless prompts, base SDs"),
    "d′ change": (("d_prime_change", "base_direction"), "change of d′ along base's direction"),
    "1 − CKA": (
        ("cka",),
        "one minus linear CKA between base's and tuned's activations at the site",
    ),
    "relative change": (
        ("relative_change",),
        "mean norm of the change of an activation at the site over the norm in base",
    ),
}

_DISTANCE = "weight distance"

_RIVALS = (_DISTANCE, "1 − CKA", "relative change")


def series_measures(
    names: Sequence[str],
    documents: Sequence[Mapping[str, Any]],
    distances: Sequence[float | None],
    *,
    independent: bool,
    level: float,
    seed: int,
) -> SeriesLink | None:
    """Hold drift against behaviour over the fine-tunes of a series.

    Args:
        names: Of the fine-tunes.
        documents: The diff document of each.
        distances: Weight distance of each from base; None where it is not known.
        independent: Whether they were made apart, rather than in one run.
        level: Nominal coverage.
        seed: Seed of the draws.

    Returns:
        The link; None where behaviour was not measured in all of them.
    """
    if any(document["behaviour"] is None for document in documents):
        return None
    rows = [_site_row(document["drift"]) for document in documents]
    measures: dict[str, list[float | None]] = {
        name: [_value(row, path) for row in rows] for name, (path, _) in _AT_SITE.items()
    }
    measures["1 − CKA"] = [None if v is None else 1 - v for v in measures["1 − CKA"]]
    measures[_DISTANCE] = list(distances)
    said = {name: words for name, (_, words) in _AT_SITE.items()}
    said[_DISTANCE] = "Frobenius norm of the change of all matrices of the blocks"
    return series_link(
        names,
        measures,
        {
            axis: [_change(document["behaviour"]["axes"][axis]) for document in documents]
            for axis in ("refusal", "over_refusal")
        },
        said=said,
        rivals=_RIVALS,
        independent=independent,
        level=level,
        seed=seed,
    )


def distance_between(base: "ModelSpec", tuned: "ModelSpec") -> float | None:
    """Weight distance of two models from their files; None where that cannot be read."""
    from refusaldir.layers.weights.distance import weight_distance
    from refusaldir.models.resolve import resolve

    try:
        return weight_distance(resolve(base), resolve(tuned))
    except RefusaldirError:  # quantised, of an unknown architecture, or gone
        return None


def _site_row(drift: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(
        row for row in drift["layers"] if row["layer"] == drift["site"]["layer"]
    )
    return found


def _value(row: Mapping[str, Any], path: Sequence[str]) -> float | None:
    cell: Any = row
    for key in path:
        cell = cell[key]
    value: float | None = cell["value"]
    return value


def _change(axis: Mapping[str, Any] | None) -> float | None:
    if axis is None:
        return None
    value: float | None = axis["overall"]["difference"]["value"]
    return value
