"""Directions from some of a capture's prompts, by any estimator."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from refusaldir.directions.estimators import estimate
from refusaldir.directions.mean_diff import Direction, mean_diff
from refusaldir.directions.reader import CaptureReader, read_layer, read_site
from refusaldir.directions.site import has_signal
from refusaldir.records import HARMFUL, HARMLESS, Site


def estimates(
    capture: CaptureReader,
    rows: Int[np.ndarray, " chosen"],
    hook: str,
    estimator: str,
    *,
    offsets: Sequence[int] | None = None,
) -> Float[np.ndarray, "layer pos d_model"]:
    """Directions at every layer and some positions of a hook point; zero without signal.

    Args:
        capture: The capture.
        rows: The prompts to estimate from.
        hook: Hook point.
        estimator: One of `refusaldir.directions.estimators.ESTIMATORS`.
        offsets: Positions, all of them captured; every one by default.

    Raises:
        DirectionError: As `refusaldir.directions.estimators.estimate` says, but for signal.
    """
    labels, intents = _about(capture, rows)
    there = capture.positions.offsets
    indices = [there.index(offset) for offset in (there if offsets is None else offsets)]
    found = np.zeros((len(capture.layers), len(indices), capture.provenance.model.d_model))
    for row, layer in enumerate(capture.layers):
        x = read_layer(capture, hook, layer)[rows]
        for column, index in enumerate(indices):
            found[row, column] = _vector(x[:, index], labels, intents, estimator)
    return found


def direction_of(
    capture: CaptureReader, rows: Int[np.ndarray, " chosen"], site: Site, estimator: str
) -> Direction:
    """The direction of some prompts at one site; its vector is zero without signal.

    Args:
        capture: The capture.
        rows: The prompts to estimate from.
        site: Where.
        estimator: One of `refusaldir.directions.estimators.ESTIMATORS`.

    Raises:
        DirectionError: The site was not captured, or as `estimates` says.
    """
    labels, intents = _about(capture, rows)
    return Direction(
        vector=_vector(read_site(capture, site)[rows], labels, intents, estimator),
        site=site,
        estimator=estimator,
        n_harmful=int((labels == HARMFUL).sum()),
        n_harmless=int((labels == HARMLESS).sum()),
        provenance=capture.provenance,
    )


def _about(
    capture: CaptureReader, rows: Int[np.ndarray, " chosen"]
) -> tuple[Int[np.ndarray, " chosen"], list[str]]:
    """Labels and intents of some prompts."""
    intents = [prompt.intent_id for prompt in capture.prompts]
    return np.asarray(capture.labels)[rows], [intents[int(i)] for i in rows]


def _vector(
    x: Float[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    intents: Sequence[str],
    estimator: str,
) -> Float[np.ndarray, " d_model"]:
    values = x.astype(np.float64)
    if not has_signal(values, mean_diff(values, labels)):
        return np.zeros(values.shape[1])
    return estimate(values, labels, estimator=estimator, intents=intents)
