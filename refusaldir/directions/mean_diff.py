"""The mean-difference refusal direction."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from refusaldir.directions.reader import CaptureReader, read_site
from refusaldir.errors import DirectionError
from refusaldir.geometry import unit
from refusaldir.records import HARMFUL, HARMLESS, Provenance, Site


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """A direction from harmless to harmful at one site, with its scale.

    Attributes:
        vector: Raw vector in float64; its norm is in units of the residual stream.
        site: Where it lives.
        estimator: How it was estimated.
        n_harmful: Number of harmful prompts behind it.
        n_harmless: Number of harmless prompts behind it.
        provenance: The capture it comes from, if any.
    """

    vector: Float[np.ndarray, " d_model"]
    site: Site
    estimator: str = "mean_diff"
    n_harmful: int
    n_harmless: int
    provenance: Provenance | None = None

    @property
    def norm(self) -> float:
        """Euclidean norm of the raw vector."""
        return float(np.linalg.norm(self.vector))

    @property
    def unit(self) -> Float[np.ndarray, " d_model"]:
        """The vector at norm 1; raises DirectionError when its norm is zero or not finite."""
        return unit(self.vector)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "vector": self.vector.tolist(),
            "norm": self.norm,
            "site": {
                "hook": self.site.hook,
                "layer": self.site.layer,
                "position": self.site.position,
            },
            "estimator": self.estimator,
            "n_harmful": self.n_harmful,
            "n_harmless": self.n_harmless,
            "provenance": None if self.provenance is None else self.provenance.to_dict(),
        }


def class_means(
    x: Float[np.ndarray, "prompt d_model"], labels: Int[np.ndarray, " prompt"]
) -> Float[np.ndarray, "2 d_model"]:
    """Mean activation of the harmless (row 0) and the harmful prompts (row 1), in float64.

    Raises:
        DirectionError: When a class is empty or labels are not 0 and 1.
    """
    if len(labels) != len(x) or not np.all((labels == HARMLESS) | (labels == HARMFUL)):
        raise DirectionError(
            "each prompt needs one label, 0 (harmless) or 1 (harmful)",
            expected=f"{len(x)} labels of 0 or 1",
            got=f"{len(labels)} labels with values {np.unique(labels).tolist()}",
        )
    for label, name in ((HARMFUL, "harmful"), (HARMLESS, "harmless")):
        if not np.any(labels == label):
            raise DirectionError("a mean difference needs both classes", got=f"no {name} prompt")
    return np.stack(
        [x[labels == label].mean(axis=0, dtype=np.float64) for label in (HARMLESS, HARMFUL)]
    )


def mean_diff(
    x: Float[np.ndarray, "prompt d_model"], labels: Int[np.ndarray, " prompt"]
) -> Float[np.ndarray, " d_model"]:
    """Mean difference ``r = μ₁ − μ₀``, harmless → harmful, raw (Arditi et al. 2024, §2.3).

    Args:
        x: Activations at one site.
        labels: 0 harmless, 1 harmful.

    Returns:
        The raw vector in float64.

    Raises:
        DirectionError: When a class is empty or labels are not 0 and 1.
    """
    harmless, harmful = class_means(x, labels)
    difference: NDArray[np.float64] = harmful - harmless
    return difference


def direction_at(capture: CaptureReader, site: Site) -> Direction:
    """Mean-difference direction of a capture at one site, over all its prompts.

    Raises:
        DirectionError: When the site was not captured, or a class is empty.
    """
    labels = capture.labels
    return Direction(
        vector=mean_diff(read_site(capture, site), labels),
        site=site,
        n_harmful=int(np.sum(labels == HARMFUL)),
        n_harmless=int(np.sum(labels == HARMLESS)),
        provenance=capture.provenance,
    )
