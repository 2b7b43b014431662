"""Estimators of one direction from harmless to harmful at one site.

Every estimator gives an axis ``û`` and one scale for all of them: with ``r = μ₁ − μ₀`` the raw
mean difference of the same prompts,

    v = û (û·r),

so that adding ``v`` moves the harmless mean as far as the harmful one along ``û``. For the mean
difference that is ``r`` itself. The winsorised mean difference keeps its own length instead.

`mean_diff` and `pca` turn with any rotation of the residual stream. `lda`, `logistic` and
`winsorised` treat its features one by one, so they depend on the basis the model writes in.

None of these measures what the model does with a direction: one that separates the prompts best
(`lda`, `logistic`) need not be the one that refusal is read from.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import linalg

from refusaldir.directions.mean_diff import class_means
from refusaldir.directions.mean_diff import mean_diff as raw_difference
from refusaldir.directions.reader import MIN_INTENTS
from refusaldir.directions.shrinkage import ledoit_wolf, solve_low_rank
from refusaldir.directions.site import has_signal
from refusaldir.errors import DirectionError
from refusaldir.geometry import unit
from refusaldir.records import HARMFUL, HARMLESS
from refusaldir.statistics import Clusters

FloatArray = NDArray[np.float64]

#: Shares of the prompts below and above which a feature is clipped by `winsorised`.
WINSOR_QUANTILES = (0.005, 0.995)

#: Fewest prompts of a class from which its covariance is shrunk.
MIN_COVARIANCE = 3

#: An inner product below this share of the norms is rounding.
_ROUNDING = 1e-9


class Estimator(Protocol):
    """A direction from activations; ``intents`` is read by those that need matched prompts."""

    def __call__(
        self,
        x: Float[np.ndarray, "prompt d_model"],
        labels: Int[np.ndarray, " prompt"],
        intents: Sequence[str] | None = None,
    ) -> Float[np.ndarray, " d_model"]:
        """Return the raw vector in float64, in units of the residual stream."""


def estimate(
    x: Float[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    *,
    estimator: str,
    intents: Sequence[str] | None = None,
) -> Float[np.ndarray, " d_model"]:
    """Direction from harmless to harmful by a named estimator; nothing here is random.

    Args:
        x: Activations at one site, float32 or float64.
        labels: 0 harmless, 1 harmful.
        estimator: A name in `ESTIMATORS`.
        intents: Intent of each prompt; `pca` needs it.

    Returns:
        The raw vector in float64, scaled as the module docstring says.

    Raises:
        DirectionError: The name is unknown; an activation is not finite; a class is empty; the
            classes do not differ by more than float32 rounding; or the estimator needs more.
    """
    if estimator not in ESTIMATORS:
        raise DirectionError(
            "an estimator is not known", expected=" or ".join(ESTIMATORS), got=repr(estimator)
        )
    return ESTIMATORS[estimator](x, labels, intents)


def mean_diff(
    x: Float[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    intents: Sequence[str] | None = None,
) -> Float[np.ndarray, " d_model"]:
    """Mean difference ``r = μ₁ − μ₀`` (Arditi et al. 2024, arXiv 2406.11717, §2.3)."""
    return _difference(x, labels)


def lda(
    x: Float[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    intents: Sequence[str] | None = None,
) -> Float[np.ndarray, " d_model"]:
    """Whitened mean difference ``Σ⁻¹r`` with a shrunk within-class covariance, scaled to ``r``.

    Exactly scikit-learn's ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")``: in
    each class the features are standardised, their correlation matrix is shrunk towards the
    identity (Ledoit & Wolf 2004, J. Multivariate Analysis 88:365) and given its scale back; the
    two are averaged with the class sizes as weights. A feature that is large throughout (a
    massive activation) therefore does not set how much the others are shrunk.

    The result is ``diag(t) + Σ_k w_k X_kᵀX_k`` with one row of ``X`` per prompt, so with more
    features than prompts Woodbury's identity solves it in the prompts' span: O(n²d), no d × d
    matrix.

    Raises:
        DirectionError: As `estimate` says; or a class has fewer than `MIN_COVARIANCE` prompts,
            or prompts so alike that no shrinkage can be estimated.
    """
    from sklearn.preprocessing import StandardScaler

    r = _difference(x, labels)
    factors, diagonal = [], np.zeros(x.shape[1])
    for label, name in ((HARMLESS, "harmless"), (HARMFUL, "harmful")):
        group = x[labels == label].astype(np.float64)
        share = len(group) / len(x)
        scaler = StandardScaler()
        standard = scaler.fit_transform(group)
        shrinkage = ledoit_wolf(standard) if len(group) >= MIN_COVARIANCE else 0.0
        if not shrinkage > 0:
            raise DirectionError(
                "a covariance cannot be estimated from so few or such equal prompts",
                expected=f"at least {MIN_COVARIANCE} different {name} prompts",
                got=f"{len(np.unique(group, axis=0))}",
                next_step="Use more prompts, or the estimator mean_diff",
            )
        variance = float(np.einsum("pd,pd->", standard, standard)) / standard.size
        diagonal += share * shrinkage * variance * scaler.scale_**2
        root = np.sqrt(share * (1 - shrinkage) / len(group))
        factors.append(root * scaler.scale_ * standard)
    return _along(solve_low_rank(np.concatenate(factors), diagonal, r), r)


def logistic(
    x: Float[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    intents: Sequence[str] | None = None,
) -> Float[np.ndarray, " d_model"]:
    """Weights of an L2-penalised logistic regression, mapped back to the residual stream.

    The features are divided by their standard deviation within the classes (that of all prompts
    grows with the difference, and would give the features that separate best the least weight)
    and by ``√d_model``, which gives noise a norm near 1 at any width; scikit-learn's default
    ``C = 1`` then applies. The intercept is not penalised. A constant feature gets weight 0. The
    weights of a penalised regression lie in the span of the prompts, so with more features than
    prompts it is fitted there, to the same solution.
    """
    from sklearn.linear_model import LogisticRegression

    r = _difference(x, labels)
    means = class_means(x, labels)
    sd = (x - means[labels]).std(axis=0)
    constant = [np.ptp(x[labels == label], axis=0) == 0 for label in (HARMLESS, HARMFUL)]
    sd[np.all(constant, axis=0)] = 1.0  # rounding of its mean is no spread
    scale = sd * np.sqrt(x.shape[1])
    z = (x - means.mean(axis=0)) / scale
    # Newton's method converges quadratically: the tolerance is far below any sampling error.
    model = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-8, max_iter=1000)
    if z.shape[1] > z.shape[0]:
        basis, coordinates = linalg.qr(z.T, mode="economic")
        weights = basis @ model.fit(coordinates.T, labels).coef_[0]
    else:
        weights = model.fit(z, labels).coef_[0]
    return _along(weights / scale, r)


def pca(
    x: Float[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    intents: Sequence[str] | None = None,
) -> Float[np.ndarray, " d_model"]:
    """First principal axis of the differences of matched prompts (Zou et al. 2023, §3.1).

    A difference is mean harmful − mean harmless of one intent, so that what both halves of an
    intent share cancels. The axis is the leading right singular vector of the differences, not
    centred: their mean is the signal (arXiv 2310.01405 takes each pair in random order to the
    same end). Intents with one class only take no part in the axis; ``r``, which gives sign and
    scale, is over all prompts.

    Raises:
        DirectionError: As `estimate` says; no intents were given, fewer than `MIN_INTENTS` hold
            both classes, or the axis is orthogonal to the mean difference.
    """
    r = _difference(x, labels)
    if intents is None or len(intents) != len(x):
        raise DirectionError(
            "paired PCA needs the intent of each prompt",
            expected=f"{len(x)} intents",
            got="none" if intents is None else len(intents),
            next_step="Give prompts an intent_id that a harmful prompt and its twin share",
        )
    clusters = Clusters.of(intents)
    member = np.stack([labels == HARMLESS, labels == HARMFUL], axis=1)
    counts = clusters.sums(member.astype(np.float64))
    paired = np.all(counts > 0, axis=1)
    if paired.sum() < MIN_INTENTS:
        raise DirectionError(
            "paired PCA needs intents with a harmful and a harmless prompt",
            expected=f"at least {MIN_INTENTS}",
            got=f"{int(paired.sum())} of {clusters.n} intents",
            next_step="Use matched pairs, or the estimator mean_diff",
        )
    centred = x - x.mean(axis=0, dtype=np.float64)  # so that a large origin costs no digits
    sums = clusters.sums(np.einsum("py,pd->pyd", member, centred))[paired]
    means = sums / counts[paired][..., None]
    return _along(_leading_axis(means[:, 1] - means[:, 0]), r)


def winsorised(
    x: Float[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    intents: Sequence[str] | None = None,
) -> Float[np.ndarray, " d_model"]:
    """Mean difference after clipping each feature to its quantiles over all prompts.

    The quantiles are `WINSOR_QUANTILES`: a prompt with a massive activation in a feature that is
    otherwise small counts as the largest of the rest. A feature that is large in every prompt
    is left alone.

    Raises:
        DirectionError: As `estimate` says, before or after clipping.
    """
    _difference(x, labels)
    lower, upper = np.quantile(x.astype(np.float64), WINSOR_QUANTILES, axis=0)
    return _difference(np.clip(x, lower, upper), labels)


#: The estimators by name.
ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {
        "mean_diff": mean_diff,
        "lda": lda,
        "logistic": logistic,
        "pca": pca,
        "winsorised": winsorised,
    }
)


def _difference(
    x: Float[np.ndarray, "prompt d_model"], labels: Int[np.ndarray, " prompt"]
) -> FloatArray:
    """Raw mean difference, refused where there is none."""
    if not np.all(np.isfinite(x)):
        raise DirectionError(
            "activations are not finite",
            got=f"{int((~np.isfinite(x)).sum())} NaN or infinite values",
            next_step="Extract again in float32 or bfloat16",
        )
    r: FloatArray = raw_difference(x, labels)
    if not has_signal(x, r):
        raise DirectionError(
            "harmful and harmless activations have the same mean",
            got=f"a difference of norm {np.linalg.norm(r):.3g}, no more than rounding",
            next_step="Look for a site with signal",
        )
    return r


def _along(axis: FloatArray, r: FloatArray) -> FloatArray:
    """The part of ``r`` along an axis: its sign and scale."""
    u = unit(axis)
    length = float(u @ r)
    if abs(length) <= _ROUNDING * float(np.linalg.norm(r)):
        raise DirectionError(
            "an axis is orthogonal to the mean difference, so neither end of it is the harmful one",
            next_step="Use the estimator mean_diff",
        )
    return u * length


def _leading_axis(rows: FloatArray) -> FloatArray:
    """Leading right singular vector, from the smaller Gram matrix."""
    m, d = rows.shape
    rows = rows / np.max(np.abs(rows), initial=np.finfo(np.float64).tiny)
    gram = rows @ rows.T if m < d else rows.T @ rows
    last = len(gram) - 1
    _, vector = linalg.eigh(gram, subset_by_index=(last, last))
    axis: FloatArray = rows.T @ vector[:, 0] if m < d else vector[:, 0]
    return axis
