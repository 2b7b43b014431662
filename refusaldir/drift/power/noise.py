"""The noise of a comparison at one site, per intent, as a pilot shows it.

Each model's sample direction is the true one plus noise. Its covariance per intent, Σ, is taken
relative to the squared length of the direction, and so is Δ, that of the difference of the two
models' noise. Every figure of drift is a U-statistic of degree two, so its variance with n
intents is ``first/n + second/(n (n − 1))``: the first-order part is how much one intent moves the
figure, the second-order part comes from products of the noise of two intents. Second-order parts
are unbiased (U-centred Gram matrices, Székely & Rizzo 2014, Ann. Statist. 42:2382); first-order
ones are the jackknife's variance less what it counts twice (Efron & Stein 1981).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from refusaldir.drift.contrasts import Contrasts
from refusaldir.drift.power.shift_noise import (
    ShiftNoise,
    Spread,
    assume_shift_noise,
    measure_shift_noise,
    require_clear,
    spread_of,
)
from refusaldir.errors import DirectionError

#: Noise below this is none.
_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise of a comparison at one site, per intent.

    Attributes:
        n: Intents of the pilot.
        prompts: Prompts per intent, both classes.
        strata: Kinds of intents: 1 when each holds both classes (twins), 2 when each holds one.
        ratio: ``tr Σ``: the noise of one intent over the direction's squared length.
        dimension: Effective dimension of the noise, ``(tr Σ)² / tr Σ²``.
        shared: Share of the noise that base and tuned have in common, ``1 − tr Δ / (2 tr Σ)``.
        dimension_apart: Effective dimension of the noise that they do not share, that of Δ.
        along: Noise along the direction itself, ``r̂ᵀ Σ r̂``.
        norm: Of the logarithm of the ratio of norms.
        shift: Of the translations.
        measured: Whether what the models share was measured (two captures) or assumed (one).
    """

    n: int
    prompts: float
    strata: int
    ratio: float
    dimension: float
    shared: float
    dimension_apart: float
    along: float
    norm: Spread
    shift: ShiftNoise
    measured: bool

    @property
    def apart(self) -> float:
        """``tr Δ``."""
        return 2 * (1 - self.shared) * self.ratio

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def measure_noise(contrasts: Contrasts, base: Float[np.ndarray, "prompt d_model"]) -> Noise:
    """Noise of a comparison of two captures.

    Args:
        contrasts: Both models at the site.
        base: Activations of base there, float64.

    Raises:
        DirectionError: A direction is not clearly longer than its noise, or the models'
            activations are the same.
    """
    require_clear(contrasts)
    if contrasts.identical:
        raise DirectionError(
            "base and tuned have the same activations, so there is no noise to measure",
            next_step="Plan from the base capture alone",
        )
    b, t = contrasts.base.corrected, contrasts.tuned.corrected
    scale = math.sqrt(b * t)
    n = contrasts.design.clusters.n
    ratios = [n * (i.raw - i.corrected) / i.corrected for i in (contrasts.base, contrasts.tuned)]
    common = n * (contrasts.cross.raw - contrasts.cross.corrected) / scale
    squares = [
        spread_of(contrasts.deviations(**part)).second / 2
        for part in ({"base": 1 / b}, {"tuned": 1 / t})
    ]
    apart = spread_of(contrasts.deviations(base=0.5 / b, cross=-1 / scale, tuned=0.5 / t))
    length = spread_of(contrasts.deviations(base=0.5 / b))
    # No more than rounding may be left where prompts, or the models, hardly differ.
    total = max(sum(ratios) / 2, _LEAST)
    change = max(sum(ratios) - 2 * common, _LEAST * total)
    return Noise(
        **_pilot(contrasts),
        ratio=total,
        dimension=_dimension(total, sum(squares) / 2),
        shared=1 - change / (2 * total),
        dimension_apart=_dimension(change, 2 * apart.second),
        along=length.first,
        norm=spread_of(contrasts.deviations(base=-0.5 / b, tuned=0.5 / t)),
        shift=measure_shift_noise(contrasts, base),
        measured=True,
    )


def assume_noise(
    contrasts: Contrasts, base: Float[np.ndarray, "prompt d_model"], *, shared: float
) -> Noise:
    """Noise of a comparison of which only base was captured.

    The tuned model's noise is taken to be base's, in proportion to the direction's length, and
    the share in common to be the same along the direction as elsewhere. Models commonly share
    more along it, so what is said of the norm errs on the safe side.

    Args:
        contrasts: Base against itself at the site.
        base: Activations of base there, float64.
        shared: Share of the noise that the two models have in common; 0 is the safe choice, for
            models that have nothing to do with each other.

    Raises:
        DirectionError: The direction is not clearly longer than its noise.
    """
    if not 0 <= shared < 1:
        raise DirectionError(
            "the share of noise that two models have in common lies between 0 and 1",
            got=shared,
        )
    require_clear(contrasts)
    clusters, b = contrasts.design.clusters, contrasts.base.corrected
    ratio = max(clusters.n * (contrasts.base.raw - b) / b, _LEAST)
    square = spread_of(contrasts.deviations(base=1 / b)).second / 2
    along = spread_of(contrasts.deviations(base=0.5 / b)).first
    return Noise(
        **_pilot(contrasts),
        ratio=ratio,
        dimension=_dimension(ratio, square),
        shared=shared,
        dimension_apart=_dimension(ratio, square),
        along=along,
        norm=Spread(first=2 * (1 - shared) * along, second=(1 - shared**2) * square),
        shift=assume_shift_noise(contrasts, base, shared=shared),
        measured=False,
    )


def _pilot(contrasts: Contrasts) -> dict[str, Any]:
    design = contrasts.design
    return {
        "n": design.clusters.n,
        "prompts": len(design.labels) / design.clusters.n,
        "strata": design.clusters.n - design.clusters.df,
    }


def _dimension(trace: float, square: float) -> float:
    """Effective dimension of a covariance from its trace and that of its square."""
    return max(trace**2 / square, 1.0) if trace > 0 and square > 0 else 1.0
