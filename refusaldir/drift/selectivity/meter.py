"""Selectivity: was refusal singled out, spared, or did it move as everything did?

With ``Δ_p = xᵗ_p − xᵇ_p`` the paired change of prompt p and ``P`` the projection onto base's
refusal direction (or the first k axes of its category directions), two energies are measured:

* of the **prompts**: ``Σ_p ‖PΔ_p‖²``, over ``Σ_p ‖Δ_p‖²`` in all;
* of the **class means**: ``Σ_y ‖Pδ_y‖²`` with ``δ_y`` the mean change of class y, every product
  from two different intents, so that noise has no energy on average.

**Selectivity** is the energy inside the refusal subspace over its mean in random subspaces of as
many dimensions that hold as much of base's within-class variance
(`.random_subspaces`); the energy in all cancels. 1: refusal is moved as any
direction of its variance is; above: singled out; below: spared. All subspaces are cross-fitted
over parts of whole intents: that of a part is made from the other parts.

The interval (cluster jackknife over intents, on the logarithm) says how well these prompts pin
the ratio down, for the directions as fitted. The p-value says whether directions at random come
as far from 1: a shift common to all prompts is one vector, which a random direction meets at a
random angle, so that the ratio can be known closely and mean nothing. An answer needs both.

The change of ``r`` itself is not used: a small rotation of everything moves every direction at
right angles to itself, so the energy of its change along itself says nothing about selection.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.stats import rankdata

from refusaldir.directions.site import has_signal
from refusaldir.drift.contrasts import Design
from refusaldir.drift.selectivity.energies import Energies
from refusaldir.drift.selectivity.random_subspaces import (
    Tilt,
    draw_blocks,
    held_variance,
    orthonormal_scores,
    parts_of,
    tilt,
)
from refusaldir.drift.selectivity.result import (
    LayerSelectivity,
    Selectivity,
    SelectivityResult,
)
from refusaldir.errors import DirectionError
from refusaldir.records import HARMFUL, HARMLESS, Estimate, Site
from refusaldir.statistics import jackknife, randomisation_p

FloatArray = NDArray[np.float64]

#: Random subspaces.
DRAWS = 1000

#: "Everything moved" needs an interval within this factor of 1.
ALIKE = 2.0

#: Variance of random subspaces this far from refusal's, as a factor, is said not to match it.
_MATCHED = 1.25


@dataclass(frozen=True, kw_only=True, eq=False)
class _Energy:
    """One energy in refusal's subspace and in the random ones.

    Attributes:
        value: In refusal's.
        left: In refusal's, without each intent, ``[cluster]``.
        random: In each random one, ``[draw]``.
        random_left: Mean over the random ones without each intent, ``[cluster]``.
        total: In all dimensions.
        total_left: In all dimensions, without each intent.
    """

    value: float
    left: FloatArray
    random: FloatArray
    random_left: FloatArray
    total: float
    total_left: FloatArray


class SelectivityMeter:
    """Takes the layers of a comparison one by one.

    Args:
        design: Classes, intents and folds.
        categories: Category of each prompt; needed for more than one dimension.
        k: Dimensions of base's refusal subspace: 1 is the mean difference, more are the first
            axes of the category directions.
        draws: Number of random subspaces.
        level: Nominal coverage of the intervals.
        seed: Seed of the draws.

    Raises:
        DirectionError: More dimensions than there are categories.
    """

    def __init__(
        self,
        design: Design,
        *,
        categories: Sequence[str] | None = None,
        k: int = 1,
        draws: int = DRAWS,
        level: float = 0.95,
        seed: int = 0,
    ) -> None:
        """Deal the intents into parts."""
        self.design, self.k, self.draws, self.level, self.seed = design, k, draws, level, seed
        self._part = parts_of(design.labels, design.clusters, design.fold)
        self._makers: list[FloatArray] = []
        if self._part is not None:
            self._makers = [
                _contrasts(design.labels, self._part != p, categories if k > 1 else None)
                for p in range(int(self._part.max()) + 1)
            ]
            if any(len(maker) < k for maker in self._makers):
                raise DirectionError(
                    "the refusal subspace has more dimensions than categories to span it",
                    expected=f"{k} categories with both classes outside of every part",
                    got=min(len(maker) for maker in self._makers),
                )
        self._rows: list[LayerSelectivity] = []
        self._ratios: list[tuple[FloatArray | None, FloatArray | None]] = []

    def add(
        self,
        site: Site,
        base: Float[np.ndarray, "prompt d_model"],
        tuned: Float[np.ndarray, "prompt d_model"],
    ) -> None:
        """Measure one site; activations float64."""
        self._ratios.append((None, None))
        if self._part is None:
            self._refuse(site, "too few intents: two parts with two of each class are needed")
        elif np.array_equal(base, tuned):
            self._refuse(site, "the activations are identical", answer="unchanged")
        elif (bases := self._bases(base)) is None:
            self._refuse(site, "no signal: harmful and harmless activations are the same in base")
        else:
            x, labels = base - base.mean(axis=0), self.design.labels
            variance = held_variance(x, labels, self._part, bases)
            mix = tilt(x.astype(np.float32), labels, self._part, variance / self.k)
            if mix is None:
                self._refuse(site, "base has no spread within the classes")
            else:
                self._measure(site, x, tuned - base, bases, variance, mix)

    def _refuse(self, site: Site, why: str, answer: str = "unknown") -> None:
        note = f"not estimable: {why}"
        missing = Estimate(value=None, n=self.design.clusters.n, level=self.level, note=note)
        absent = Selectivity(ratio=missing, answer=answer)
        self._rows.append(LayerSelectivity(site=site, prompts=absent, means=absent))

    def _bases(self, base: FloatArray) -> list[FloatArray] | None:
        """Orthonormal rows that span the refusal subspace of each part, made from the others."""
        bases = []
        for maker in self._makers:
            r = maker @ base
            if not has_signal(base, r[0]):
                return None
            axes = np.linalg.svd(r, full_matrices=False)[2] if self.k > 1 else r
            bases.append(axes[: self.k] / np.linalg.norm(axes[: self.k], axis=1, keepdims=True))
        return bases

    def _measure(
        self,
        site: Site,
        x: FloatArray,
        change: FloatArray,
        bases: list[FloatArray],
        variance: float,
        mix: Tilt,
    ) -> None:
        assert self._part is not None
        refusal, random, whole = (Energies(self.design, self._part) for _ in range(3))
        for p, basis in enumerate(bases):
            rows = change[self._part == p]
            refusal.add(p, rows @ basis.T)
            whole.add(p, rows)
        narrow, moved = x.astype(np.float32), change.astype(np.float32)
        blocks = draw_blocks(
            narrow, self.design.labels, self._part, mix, self.draws * self.k,
            group=self.k, seed=self.seed,
        )  # fmt: skip
        for vectors in blocks:
            for p, v in enumerate(vectors):
                scores = (moved[self._part == p] @ v.T).astype(np.float64)
                random.add(p, orthonormal_scores(v, scores, self.k))
            random.next_block()
        energies = [
            _Energy(
                value=float(r.values.sum()),
                left=r.left,
                random=n.values.reshape(self.draws, self.k).sum(axis=1),
                random_left=n.left / self.draws,
                total=float(w.values.sum()),
                total_left=w.left,
            )
            for r, n, w in zip(refusal.result(), random.result(), whole.result(), strict=True)
        ]
        expected = mix.variance * self.k
        prompts, ratios = self._compare(energies[0], variance / expected)
        means, mean_ratios = self._compare(energies[1], variance / expected)
        self._ratios[-1] = ratios, mean_ratios
        self._rows.append(
            LayerSelectivity(
                site=site,
                prompts=prompts,
                means=means,
                variance=variance,
                variance_random=expected,
                matched=1 / _MATCHED <= variance / expected <= _MATCHED,
            )
        )

    def _compare(self, energy: _Energy, variance: float) -> tuple[Selectivity, FloatArray | None]:
        """Ratio, interval and p-value, and the ratios of the draws."""
        clusters, mean = self.design.clusters, float(energy.random.mean())
        spread = float(np.sqrt(np.sum(clusters.centre(energy.total_left) ** 2)))
        if not (energy.total > 2 * spread and mean > 0):
            note = "not estimable: the change is not larger than its noise"
            missing = Estimate(value=None, n=clusters.n, level=self.level, note=note)
            return Selectivity(ratio=missing), None
        left = energy.left / np.where(energy.random_left > 0, energy.random_left, np.nan)
        ratio = jackknife(energy.value / mean, left, clusters, level=self.level, log=True)
        ratios = energy.random / mean
        assert ratio.value is not None
        above, below = np.sum(ratios >= ratio.value), np.sum(ratios <= ratio.value)
        p = min(1.0, 2 * (1 + float(min(above, below))) / (1 + self.draws))
        low, middle, high = (float(q) for q in np.quantile(ratios, [0.025, 0.5, 0.975]))
        return Selectivity(
            ratio=ratio,
            share=energy.value / energy.total,
            expected=mean / energy.total,
            null=(low, middle, high),
            p_value=p,
            answer=_answer(ratio, p, variance),
        ), ratios

    def result(self) -> SelectivityResult:
        """The figures of all layers added, p-values adjusted over them."""
        columns = [
            _adjusted(
                [getattr(row, name) for row in self._rows], [pair[i] for pair in self._ratios]
            )
            for i, name in enumerate(("prompts", "means"))
        ]
        rows = tuple(
            replace(row, prompts=prompts, means=means)
            for row, prompts, means in zip(self._rows, *columns, strict=True)
        )
        return SelectivityResult(
            layers=rows,
            k=self.k,
            draws=self.draws,
            n=self.design.clusters.n,
            level=self.level,
            seed=self.seed,
        )


def _contrasts(
    labels: Int[np.ndarray, " prompt"],
    here: NDArray[np.bool_],
    categories: Sequence[str] | None,
) -> FloatArray:
    """Matrix that takes activations to the mean differences of some of the prompts."""
    kinds = np.zeros(len(labels), dtype=object) if categories is None else np.array(categories)
    rows = []
    for kind in sorted(set(kinds)):
        members = [here & (kinds == kind) & (labels == label) for label in (HARMLESS, HARMFUL)]
        if all(m.any() for m in members):
            rows.append(members[1] / members[1].sum() - members[0] / members[0].sum())
    return np.array(rows)


def _answer(ratio: Estimate, p: float, variance: float) -> str:
    """What the interval and the p-value say together.

    Where refusal holds ``variance`` times what the random subspaces hold, that much more or less
    energy is no sign of selection.
    """
    if ratio.value is None or ratio.lower is None or ratio.upper is None:
        return "unknown"
    if p <= 1 - ratio.level and ratio.lower > max(1.0, variance):
        return "singled out"
    if p <= 1 - ratio.level and ratio.upper < min(1.0, variance):
        return "spared"
    if ratio.lower >= min(1.0, variance) / ALIKE and ratio.upper <= max(1.0, variance) * ALIKE:
        return "alike"
    return "unknown"


def _adjusted(
    rows: Sequence[Selectivity], ratios: Sequence[FloatArray | None]
) -> list[Selectivity]:
    """P-values against each draw's own most extreme layer (Westfall & Young 1993, min-p)."""
    tested = [values for values in ratios if values is not None]
    if not tested:
        return list(rows)
    draws = len(tested[0])
    least = np.full(draws, np.inf)
    for values in tested:
        high = rankdata(-values, method="max")
        low = rankdata(values, method="max")
        least = np.minimum(least, np.minimum(1.0, 2 * np.minimum(high, low) / (1 + draws)))
    return [
        row
        if row.p_value is None
        else replace(row, p_adjusted=randomisation_p(-row.p_value, -least))
        for row in rows
    ]
