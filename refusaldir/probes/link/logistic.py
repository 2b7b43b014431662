"""Logistic curve of refusal over one projection, refitted at once for every resample.

scikit-learn and statsmodels fit one data set a call; an interval needs one fit for each cluster
left out. Two coefficients have a closed Newton step, so that all refits run as one array
computation; a test holds them against both libraries.
"""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import expit

FloatArray = NDArray[np.float64]

#: Ridge on the slope, per squared SD of the projection: as much as one prompt in a few hundred
#: says where the outcomes overlap, and just enough for a finite slope where they do not.
RIDGE = 0.01

_STEPS = 200
_TOLERANCE = 1e-10


def fit_logistic(
    z: Float[np.ndarray, " prompt"],
    refused: Float[np.ndarray, " prompt"],
    weights: Float[np.ndarray, "draw prompt"],
    start: Float[np.ndarray, " 2"] | None = None,
) -> Float[np.ndarray, "draw 2"]:
    """Intercept and slope of ``P(refuse | z) = σ(a + b z)`` for each row of weights.

    Maximises ``Σ w (y log P + (1 − y) log (1 − P)) − RIDGE b²/2``, y the share of a prompt's
    replies that refuse: each prompt counts once, however many replies it has. The intercept is
    free, so that fitted and observed rates agree over the prompts of the fit.

    Args:
        z: Projections, in SDs, centred.
        refused: Share of each prompt's replies that refuse, 0 to 1.
        weights: Weight of each prompt in each fit, ≥ 0.
        start: Intercept and slope to start from, near the solution; it changes the time only.

    Returns:
        ``[draw, (intercept, slope)]``; NaN where the weighted prompts have one outcome only or
        one projection only.
    """
    y = refused
    total = weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = (weights @ y) / total
        centre = (weights @ z) / total
        spread = (weights @ z**2) / total - centre**2
    usable = (rate > 0) & (rate < 1) & (spread > 1e-12)
    out = np.full((len(weights), 2), np.nan)
    if not usable.any():
        return out
    w = weights[usable]
    first = np.stack([np.log(rate[usable] / (1 - rate[usable])), np.zeros(len(w))], axis=1)
    if start is not None and np.all(np.isfinite(start)):
        first[:] = start
    out[usable] = _newton(z, y, w, first)
    return out


def _newton(z: FloatArray, y: FloatArray, w: FloatArray, theta: FloatArray) -> FloatArray:
    """Newton's method with halved steps, each row by itself."""
    loss = _loss(z, y, w, theta)
    for _ in range(_STEPS):
        p = expit(theta[:, :1] + theta[:, 1:] * z)
        error = w * (y - p)
        gradient = np.stack([error.sum(axis=1), error @ z - RIDGE * theta[:, 1]], axis=1)
        v = w * p * (1 - p)
        h00, h01, h11 = v.sum(axis=1), v @ z, v @ z**2 + RIDGE
        determinant = h00 * h11 - h01**2
        step = np.stack(
            [
                (h11 * gradient[:, 0] - h01 * gradient[:, 1]) / determinant,
                (h00 * gradient[:, 1] - h01 * gradient[:, 0]) / determinant,
            ],
            axis=1,
        )
        size = np.ones((len(theta), 1))
        for _ in range(40):
            tried = theta + size * step
            found = _loss(z, y, w, tried)
            worse = found > loss + 1e-12 * np.abs(loss)
            if not worse.any():
                break
            size[worse] /= 2
        theta, loss = tried, found
        if np.abs(size * step).max() < _TOLERANCE * max(1.0, float(np.abs(theta).max())):
            break
    return theta


def _loss(z: FloatArray, y: FloatArray, w: FloatArray, theta: FloatArray) -> FloatArray:
    """Penalised negative log-likelihood of each row."""
    eta = theta[:, :1] + theta[:, 1:] * z
    terms = np.logaddexp(0.0, eta) - y * eta
    return np.asarray(np.sum(w * terms, axis=1) + RIDGE * theta[:, 1] ** 2 / 2)


def separable(z: Float[np.ndarray, " prompt"], refused: Float[np.ndarray, " prompt"]) -> bool:
    """Whether one threshold on z tells every refusal from every answer."""
    yes, no = z[refused > 0], z[refused < 1]
    if not len(yes) or not len(no):
        return True
    return bool(yes.min() >= no.max() or yes.max() <= no.min())
