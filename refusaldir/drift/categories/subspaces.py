"""Has the refusal subspace turned: base's category directions against the tuned model's.

Both models' subspaces are the first k axes of their category directions
(`refusaldir.directions.subspace`), k chosen on base. Two subspaces fitted to noisy directions
differ without any change, so the figures come with what no change would give:

* **no change**: both models' directions lie in one subspace (the first k axes of both models'
  directions together), plus noise in which every intent's residuals get a random sign, *the same
  sign in both models*: noise that the models share through their prompts stays shared. The
  p-value is the share of such draws whose overlap is no larger than the one seen.
* **halves**: the overlap of base with itself, fitted on disjoint halves of the intents: what two
  measurements without any shared prompts give.
* **corrected overlap** ``O(bᴬ,tᴮ) / √(O(bᴬ,bᴮ) O(tᴬ,tᴮ))`` over halves A and B of the intents, in
  both roles: no intent is on both sides of any overlap, so that shared noise cannot raise it, and
  dividing by the models' overlaps with themselves takes out what independent noise lowers. It is
  not limited to 1. The interval is a jackknife over groups of intents.

An overlap is the mean squared cosine of the principal angles. It compares the subspaces, not the
directions inside them: see `refusaldir.drift.categories.category_drift` for each category's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from refusaldir.directions.category_sample import CategorySample, category_sample
from refusaldir.directions.subspace import subspace
from refusaldir.errors import DirectionError
from refusaldir.geometry import overlap, principal_angles
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, jackknife, randomisation_p

FloatArray = NDArray[np.float64]

#: Draws of the null.
DRAWS = 500

#: Random halvings of the intents.
_HALVINGS = 5

#: Most groups of intents that the jackknife leaves out in turn.
_GROUPS = 24

#: Values of one block of draws.
_BLOCK = 8_000_000


@dataclass(frozen=True, kw_only=True)
class SubspaceDrift:
    """Base's and the tuned model's refusal subspace at one site.

    Attributes:
        k: Axes compared; base's own number, unless it was given. 0: there is nothing to compare.
        k_tuned: The tuned model's own number of stable axes; 0 where it has none.
        angles: Principal angles in degrees, ascending; raw.
        angles_unchanged: Median of each under no change.
        overlap: Mean squared cosine of the angles; raw.
        unchanged: Quantiles 2.5 %, 50 % and 97.5 % of the overlap under no change.
        halves: Overlap of base's subspaces on disjoint halves of the intents.
        corrected: Overlap corrected for noise.
        p_value: How often no change gives an overlap as small.
        categories: Categories behind the subspaces.
        left_out: Categories with too few intents of a class.
        n: Number of intents.
        level: Nominal coverage; 1 − level is the level of the test.
        note: Why there is nothing to compare, if so.
    """

    k: int
    k_tuned: int
    angles: tuple[float, ...] = ()
    angles_unchanged: tuple[float, ...] = ()
    overlap: float | None = None
    unchanged: tuple[float, float, float] | None = None
    halves: float | None = None
    corrected: Estimate | None = None
    p_value: float | None = None
    categories: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    n: int
    level: float = 0.95
    note: str = ""

    @property
    def changed(self) -> bool | None:
        """Whether no change is ruled out; None where nothing was compared."""
        return None if self.p_value is None else self.p_value <= 1 - self.level

    @property
    def sentence(self) -> str:
        """The answer in words."""
        if self.p_value is None or self.unchanged is None or self.overlap is None:
            return f"The refusal subspace cannot be compared: {self.note}"
        low, middle, high = self.unchanged
        axes = f"{self.k} ax{'i' if self.k == 1 else 'e'}s"
        figures = (
            f"overlap {self.overlap:.2f} where no change gives {middle:.2f} "
            f"({low:.2f} to {high:.2f}), p = {self.p_value:.2g}"
        )
        if self.corrected is not None and self.corrected.value is not None:
            figures += f", corrected for noise {self.corrected.value:.2f}"
            if self.corrected.lower is not None and self.corrected.upper is not None:
                figures += f" [{self.corrected.lower:.2f}, {self.corrected.upper:.2f}]"
        if self.changed:
            text = f"The refusal subspace ({axes}) turned: {figures}."
        else:
            text = f"No turn of the refusal subspace ({axes}) was detected: {figures}."
        if self.k_tuned == 0:
            text += " In the tuned model no axis is stable from one half of the intents to another."
        elif self.k_tuned != self.k:
            text += f" The tuned model's own subspace has {self.k_tuned}."
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "k": self.k,
            "k_tuned": self.k_tuned,
            "angles": list(self.angles),
            "angles_unchanged": list(self.angles_unchanged),
            "overlap": self.overlap,
            "unchanged": None if self.unchanged is None else list(self.unchanged),
            "halves": self.halves,
            "corrected": None if self.corrected is None else self.corrected.to_dict(),
            "p_value": self.p_value,
            "categories": list(self.categories),
            "left_out": list(self.left_out),
            "n": self.n,
            "level": self.level,
            "sentence": self.sentence,
        }


def subspace_drift(
    base: Float[np.ndarray, "prompt d_model"],
    tuned: Float[np.ndarray, "prompt d_model"],
    labels: Int[np.ndarray, " prompt"],
    categories: Sequence[str],
    intents: Sequence[str],
    *,
    k: int | None = None,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> SubspaceDrift:
    """Compare the refusal subspaces of two models at one site.

    Args:
        base: Activations of base.
        tuned: Activations of tuned on the same prompts.
        labels: 0 harmless, 1 harmful.
        categories: Category of each prompt.
        intents: Intent of each prompt.
        k: Number of axes; chosen on base by default.
        draws: Draws of the null.
        level: Nominal coverage.
        seed: Seed of halvings and draws.

    Returns:
        The comparison; without figures and with a note where there are too few categories or
        base has no stable axis.
    """
    n = len(set(intents))
    try:
        own = subspace(base, labels, categories, intents, k=k, seed=seed)
    except DirectionError as error:
        return SubspaceDrift(k=0, k_tuned=0, n=n, level=level, note=str(error))
    try:
        k_tuned = subspace(tuned, labels, categories, intents, seed=seed).k
    except DirectionError:
        k_tuned = 0
    pair = _Pair.of(base, tuned, labels, categories, intents)
    r_base, r_tuned = (pair.sample.weights() @ x for x in pair.x)
    axes = [np.linalg.svd(r, full_matrices=False)[2][: own.k] for r in (r_base, r_tuned)]
    angles = np.degrees(principal_angles(*axes))
    seen = overlap(*axes)
    null, null_angles = _unchanged(pair, own.k, draws, seed)
    low, middle, high = (float(q) for q in np.quantile(null, [0.025, 0.5, 0.975]))
    corrected, halves = _corrected(pair, own.k, level, seed)
    return SubspaceDrift(
        k=own.k,
        k_tuned=k_tuned,
        angles=tuple(float(a) for a in angles),
        angles_unchanged=tuple(float(a) for a in np.median(null_angles, axis=0)),
        overlap=seen,
        unchanged=(low, middle, high),
        halves=halves,
        corrected=corrected,
        p_value=randomisation_p(-seen, -null),
        categories=own.categories,
        left_out=own.left_out,
        n=own.n,
        level=level,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pair:
    """Both models' activations of the prompts kept, in one orthonormal basis of their span."""

    sample: CategorySample
    x: tuple[FloatArray, FloatArray]

    @classmethod
    def of(
        cls,
        base: FloatArray,
        tuned: FloatArray,
        labels: Int[np.ndarray, " prompt"],
        categories: Sequence[str],
        intents: Sequence[str],
    ) -> "_Pair":
        """Keep the prompts of base's categories."""
        sample = category_sample(base, labels, categories, intents)
        both = [x[sample.kept].astype(np.float64) for x in (base, tuned)]
        both = [x - x.mean(axis=0) for x in both]
        stacked = np.concatenate(both)
        if stacked.shape[1] > len(stacked):
            stacked = np.linalg.qr(stacked.T)[1].T
        half = len(sample.kept)
        return cls(sample=sample, x=(stacked[:half], stacked[half:]))

    def residuals(self) -> list[FloatArray]:
        """Deviations from the mean of each category and class, of unbiased size."""
        out = [np.empty_like(x) for x in self.x]
        for arm in np.unique(self.sample.arms):
            here = self.sample.arms == arm
            intents = len(np.unique(self.sample.clusters.codes[here]))
            for x, kept in zip(self.x, out, strict=True):
                kept[here] = (x[here] - x[here].mean(axis=0)) * np.sqrt(intents / (intents - 1))
        return out


def _unchanged(pair: _Pair, k: int, draws: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Overlap ``[draw]`` and principal angles in degrees ``[draw k]`` under no change."""
    sample, weights = pair.sample, pair.sample.weights()
    r = [weights @ x for x in pair.x]
    # Each model counts alike, whatever its norms.
    joint = np.concatenate([v / np.linalg.norm(v) for v in r])
    common = np.linalg.svd(joint, full_matrices=False)[2][:k]
    noise = pair.residuals()
    members = [np.flatnonzero(sample.arms // 2 == c) for c in range(len(sample.names))]
    # The axes follow the noise of both models, and so lengthen what is projected on them. With
    # each model's directions scaled to norm 1 and n the energies of their noise along an axis,
    # its square grows by n_bb + n_bt − (n_bb + n_tt + 2 n_bt)/4 in base; that is taken off, since
    # noise is drawn again below.
    kept = [v @ common.T for v in r]
    sizes = [np.linalg.norm(v) for v in r]
    energy = np.zeros((2, 2, k))
    for axis in range(k):
        parts = []
        for own, size, e in zip(kept, sizes, noise, strict=True):
            u = own[:, axis] / np.linalg.norm(own[:, axis]) / size
            parts.append(sample.clusters.sums((u @ weights)[:, None] * e))
        energy[:, :, axis] = [[np.sum(p * q) for q in parts] for p in parts]
    total = energy.sum(axis=(0, 1)) / 4
    signal = []
    for i, (own, size) in enumerate(zip(kept, sizes, strict=True)):
        square = np.sum(own**2, axis=0) / size**2
        excess = energy[i].sum(axis=0) - total
        signal.append(own * np.sqrt(np.clip(1 - excess / square, 0.0, 1.0)) @ common)
    step = max(1, _BLOCK // (len(sample.names) * pair.x[0].shape[1]))
    rng = np.random.default_rng([seed, 2])
    overlaps, angles = [], []
    for start in range(0, draws, step):
        count = min(step, draws - start)
        signs = rng.choice([-1.0, 1.0], size=(count, sample.clusters.n))[:, sample.clusters.codes]
        drawn = [
            s + np.stack([(signs[:, m] * weights[c, m]) @ e[m] for c, m in enumerate(members)], 1)
            for s, e in zip(signal, noise, strict=True)
        ]
        cosines = _cosines(drawn[0], drawn[1], k)
        overlaps.append(np.mean(cosines**2, axis=1))
        angles.append(np.degrees(np.arccos(cosines)))
    return np.concatenate(overlaps), np.concatenate(angles)


def _cosines(
    first: Float[np.ndarray, "draw category span"],
    second: Float[np.ndarray, "draw category span"],
    k: int,
) -> Float[np.ndarray, "draw k"]:
    """Cosines between the first k axes of two sets of directions, descending.

    From the Gram matrices of the directions: with ``R = U S V'``, ``V_k = R'U_k/S_k``.
    """
    scaled = []
    for r in (first, second):
        squares, u = np.linalg.eigh(r @ r.transpose(0, 2, 1))
        squares, u = squares[:, ::-1][:, :k], u[:, :, ::-1][:, :, :k]
        scaled.append(u / np.sqrt(np.maximum(squares, np.finfo(np.float64).tiny))[:, None])
    cross = scaled[0].transpose(0, 2, 1) @ (first @ second.transpose(0, 2, 1)) @ scaled[1]
    cosines: FloatArray = np.minimum(np.linalg.svd(cross, compute_uv=False), 1.0)
    return cosines


def _corrected(pair: _Pair, k: int, level: float, seed: int) -> tuple[Estimate, float | None]:
    """Overlap corrected for noise, and base's overlap with itself on disjoint halves."""
    sample = pair.sample
    groups = min(_GROUPS, sample.clusters.n // 2)
    group = sample.dealt.folds(groups, seed)
    everyone = np.ones(len(sample.arms), dtype=np.bool_)
    kept = [everyone, *(group != g for g in range(groups))]
    whole, *without = _half_overlaps(pair, kept, k, seed)
    value = _ratio(whole)
    if not np.isfinite(value):
        note = "not estimable: the intents cannot be halved with every category in both halves"
        return Estimate(value=None, n=sample.clusters.n, level=level, note=note), None
    left = np.array([_ratio(overlaps) for overlaps in without])
    clusters = Clusters.of(group.tolist())
    estimate = jackknife(value, left, clusters, level=level, bounds=(0.0, 1.0))
    return (
        Estimate(
            value=estimate.value,
            lower=estimate.lower,
            upper=estimate.upper,
            n=sample.clusters.n,
            level=level,
            method=f"jackknife over {groups} groups of intents",
            note=estimate.note,
        ),
        float(whole[1]),
    )


def _half_overlaps(
    pair: _Pair, kept: Sequence[Bool[np.ndarray, " prompt"]], k: int, seed: int
) -> Float[np.ndarray, "part overlap"]:
    """Overlaps across halves for each part of the prompts; NaN where none can be halved.

    Base with tuned, base with base, tuned with tuned.
    """
    sample = pair.sample
    halves = [sample.dealt.folds(2, seed + halving) for halving in range(_HALVINGS)]
    weights = np.stack(
        [[sample.weights(here & (half == h)) for h in (0, 1)] for here in kept for half in halves]
    )
    usable = np.all(np.isfinite(weights), axis=(1, 2, 3))
    b, t = (np.where(usable[:, None, None, None], weights, 0.0) @ x for x in pair.x)
    across = np.full((len(weights), 4), np.nan)
    for column, (p, q) in enumerate(
        ((b[:, 0], t[:, 1]), (b[:, 1], t[:, 0]), (b[:, 0], b[:, 1]), (t[:, 0], t[:, 1]))
    ):
        if usable.any():
            across[usable, column] = np.mean(_cosines(p[usable], q[usable], k) ** 2, axis=1)
    found = np.full((len(kept), 4), np.nan)
    for part, rows in enumerate(across.reshape(len(kept), len(halves), 4)):
        if np.any(there := np.isfinite(rows[:, 0])):
            found[part] = rows[there].mean(axis=0)
    return np.stack([found[:, :2].mean(axis=1), found[:, 2], found[:, 3]], axis=1)


def _ratio(overlaps: FloatArray) -> float:
    return float(overlaps[0] / np.sqrt(overlaps[1] * overlaps[2]))
