"""A figure beside what it is where nothing has happened: at each layer and over all layers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from refusaldir.geometry import signed_root
from refusaldir.records import Estimate, Site
from refusaldir.statistics import randomisation_p

FloatArray = NDArray[np.float64]

#: The probabilities whose quantiles a ruler shows.
QUANTILES = (0.025, 0.05, 0.5, 0.95, 0.975)

METHODS = {
    "exchanged_cosine": "cosine of the sample directions when labels are exchanged within intents, "
    "alike in both models: what shared prompts alone give; over layers the largest",
    "exchanged_norm_base": "corrected norm of base's direction when labels are exchanged; over "
    "layers the largest in standard deviations of the draws",
    "exchanged_norm_tuned": "the same in tuned",
    "halves_cosine_raw": "cosine of base's directions from two disjoint halves of the intents, to "
    "be held against the cosine of base and tuned; over layers the smallest",
    "halves_cosine": "the same, corrected for noise",
    "random_shift_harmful": "size of the harmful mean's shift, in base SDs, along directions with "
    "the covariance of base's activations within the classes; over layers the largest",
    "random_shift_harmless": "the same for the harmless mean",
}

_WITH_P = (
    "exchanged_norm_base", "exchanged_norm_tuned", "random_shift_harmful", "random_shift_harmless",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """A figure beside what it is where nothing has happened.

    Attributes:
        observed: The figure; None where it is not estimable.
        quantiles: (probability, quantile of the draws) for each of `QUANTILES`; empty where no
            draw has a value.
        p_value: Share of draws that reach the observed figure, itself among them; None where
            that would answer no question.
        adjusted: The same with each draw taking its extreme over all layers.
        draws: Draws that have a value.
        note: What is missing, if something is.
    """

    observed: float | None
    quantiles: tuple[tuple[float, float], ...] = ()
    p_value: float | None = None
    adjusted: float | None = None
    draws: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class LengthRuler:
    """Drift of the direction from short to long prompts.

    Attributes:
        cosine: Corrected cosine between base's and tuned's.
        shrinkage: Tuned norm over base norm, both corrected.
    """

    cosine: Estimate
    shrinkage: Estimate


@dataclass(frozen=True, kw_only=True)
class LayerNulls:
    """The rulers at one site; `METHODS` says what each is.

    Attributes:
        site: Where.
        rulers: By name.
        length: None where token counts were not given or do not differ.
    """

    site: Site
    rulers: Mapping[str, Ruler]
    length: LengthRuler | None


@dataclass(frozen=True, kw_only=True)
class NullsResult:
    """Rulers for every layer, and over all layers.

    Attributes:
        layers: In the order given.
        over_layers: Extremes over the layers, each draw taking its own; by name. The norms are
            left out, as layers differ in scale.
        draws: Number of draws of each kind.
        n: Number of intents.
        seed: Seed of the draws.
        methods: What each ruler is, in words.
    """

    layers: tuple[LayerNulls, ...]
    over_layers: Mapping[str, Ruler]
    draws: int
    n: int
    seed: int
    methods: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary (no NaN or infinity)."""
        return asdict(self)


def rulers(
    name: str,
    observed: Float[np.ndarray, " site"],
    drawn: Float[np.ndarray, "site draw"],
    notes: Sequence[str],
) -> tuple[list[Ruler], Ruler | None]:
    """One kind of ruler at every site, and over all sites where they share a scale.

    Args:
        name: One of `METHODS`.
        observed: The figure at each site, NaN where there is none; squares for the norms.
        drawn: The draws, NaN where one has no value.
        notes: Why a site has no figure.

    Returns:
        The ruler of each site, and the one over all sites (None for the norms).
    """
    squares = name.startswith("exchanged_norm")
    scale = np.ones(len(observed))
    if squares:  # of another size at every layer
        spread = np.std(drawn, axis=1)
        scale = np.where(spread > 0, spread, np.nan)
    lowest = name.startswith("halves")
    extreme = _extreme(drawn / scale[:, None], lowest=lowest)
    rows = []
    for value, here, size, note in zip(observed, drawn, scale, notes, strict=True):
        with_p = name in _WITH_P and np.isfinite(value)
        rows.append(
            _ruler(
                float(signed_root(value)) if squares else value,
                signed_root(here) if squares else here,
                note,
                p_value=randomisation_p(value, here) if with_p else None,
                adjusted=randomisation_p(value / size, extreme) if with_p else None,
            )
        )
    if squares:
        return rows, None
    most = float(_extreme(observed[:, None], lowest=lowest)[0])
    p_value = randomisation_p(most, extreme) if name in _WITH_P and np.isfinite(most) else None
    return rows, _ruler(most, extreme, "", p_value=p_value)


def _ruler(
    observed: float,
    drawn: FloatArray,
    note: str,
    *,
    p_value: float | None = None,
    adjusted: float | None = None,
) -> Ruler:
    values = drawn[np.isfinite(drawn)]
    if not note and not np.isfinite(observed):
        note = "not estimable"
    return Ruler(
        observed=float(observed) if np.isfinite(observed) else None,
        quantiles=tuple(zip(QUANTILES, np.quantile(values, QUANTILES).tolist(), strict=True))
        if len(values)
        else (),
        p_value=p_value,
        adjusted=adjusted,
        draws=len(values),
        note=note,
    )


def _extreme(values: Float[np.ndarray, "site draw"], *, lowest: bool) -> Float[np.ndarray, " draw"]:
    """The largest (or smallest) value of each draw over the sites that have one, else NaN."""
    absent = math.inf if lowest else -math.inf
    filled = np.where(np.isfinite(values), values, absent)
    end = filled.min(axis=0) if lowest else filled.max(axis=0)
    result: FloatArray = np.where(np.isfinite(end), end, math.nan)
    return result
