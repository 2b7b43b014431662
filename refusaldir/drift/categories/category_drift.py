"""Drift category by category: which of them moved, and do they move alike.

Each hazard category gets three figures from its own prompts:

* **rotation**: corrected cosine of its own direction, base to tuned;
* **shrinkage**: ratio of that direction's norms;
* **translation** of its harmful prompts along the direction of *all* prompts of base, in base's
  within-class SDs.

A category is compared with the plain mean of the others' figures (shrinkage: the geometric mean),
with Holm's correction over the categories and Bonferroni's over the figures. A category that is
found to differ leaves the mean that the next ones are compared with, so that one which moved far
does not make the rest look moved the other way. "Do they move alike?" is Welch's
heteroscedastic analysis of variance (Welch 1951, Biometrika 38:330) on the figures and their
standard errors, Holm-corrected over the figures. Errors that categories share, through intents
that span categories or the common direction, enter the comparisons with their covariance; for
Welch's test, which takes figures as independent, the error common to all is taken off.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from refusaldir.directions.reader import MIN_INTENTS
from refusaldir.drift.categories.groups import (
    GroupFigure,
    alike_p_value,
    group_bands,
    versus_others,
)
from refusaldir.drift.contrasts import R_BASE, Contrasts, Design, missing, root
from refusaldir.drift.rotation import rotation, shrinkage
from refusaldir.drift.translation import within_sd
from refusaldir.geometry import mean_products
from refusaldir.records import HARMFUL, HARMLESS, Estimate
from refusaldir.statistics import Clusters, Deviations, holm

FloatArray = NDArray[np.float64]

#: The figures of a category.
FIGURES = ("rotation", "shrinkage", "translation")

_SAID = {
    "rotation": "rotation of its direction",
    "shrinkage": "norm of its direction",
    "translation": "shift of its harmful prompts",
}


@dataclass(frozen=True, kw_only=True)
class FigureByCategory:
    """One figure of every category.

    Attributes:
        figure: ``"rotation"``, ``"shrinkage"`` or ``"translation"``.
        estimates: Of each category, with its own interval.
        bands: Intervals that hold over all categories at once; None where there is no interval.
        versus_others: Difference from the mean of the other categories, but those found to differ
            before; for shrinkage the ratio to their geometric mean. None where the figure is not
            estimable.
        p_values: Two-sided, that the category differs from these others.
        p_adjusted: After Holm over the categories and Bonferroni over the figures.
        alike_p: Welch's test that all categories have the same figure.
        alike_p_adjusted: After Holm over the figures.
    """

    figure: str
    estimates: tuple[Estimate, ...]
    bands: tuple[Estimate | None, ...]
    versus_others: tuple[Estimate | None, ...]
    p_values: tuple[float | None, ...]
    p_adjusted: tuple[float | None, ...]
    alike_p: float | None
    alike_p_adjusted: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "figure": self.figure,
            "estimates": [e.to_dict() for e in self.estimates],
            "bands": [None if e is None else e.to_dict() for e in self.bands],
            "versus_others": [None if e is None else e.to_dict() for e in self.versus_others],
            "p_values": list(self.p_values),
            "p_adjusted": list(self.p_adjusted),
            "alike_p": self.alike_p,
            "alike_p_adjusted": self.alike_p_adjusted,
        }


@dataclass(frozen=True, kw_only=True)
class CategoryDrift:
    """Drift by category at one site.

    Attributes:
        categories: Names, sorted; the order of everything in `figures`.
        left_out: Categories with too few harmful intents.
        n_intents: Intents with harmful prompts of each category.
        figures: Rotation, shrinkage and translation; empty with fewer than two categories.
        level: Nominal coverage; 1 − level is the level of the tests.
        note: Why there is nothing to compare, if so.
    """

    categories: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    n_intents: tuple[int, ...] = ()
    figures: tuple[FigureByCategory, ...] = ()
    level: float = 0.95
    note: str = ""

    @property
    def singled_out(self) -> tuple[tuple[str, str], ...]:
        """(category, figure) pairs that differ from the other categories."""
        return tuple(
            (name, row.figure)
            for row in self.figures
            for name, p in zip(self.categories, row.p_adjusted, strict=True)
            if p is not None and p <= 1 - self.level
        )

    @property
    def alike(self) -> bool | None:
        """False where the categories do not move alike; None where it could not be tested."""
        tested = [row.alike_p_adjusted for row in self.figures if row.alike_p_adjusted is not None]
        return min(tested) > 1 - self.level if tested else None

    @property
    def sentence(self) -> str:
        """The answer in words."""
        if not self.figures:
            return f"Drift by category cannot be told: {self.note}."
        if self.alike is None:
            return "Drift by category cannot be told: too few categories have an interval."
        found: dict[str, list[str]] = {}
        for name, figure in self.singled_out:
            found.setdefault(name, []).append(_SAID[figure])
        over = f"{len(self.categories)} categories, Holm-corrected"
        if found:
            names = "; ".join(f"{name} ({', '.join(what)})" for name, what in found.items())
            return f"Moved differently from the other categories: {names} ({over})."
        if not self.alike:
            return f"The categories do not move alike, but none can be named ({over})."
        return f"No category was found to move differently from the others ({over})."

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "categories": list(self.categories),
            "left_out": list(self.left_out),
            "n_intents": list(self.n_intents),
            "figures": [row.to_dict() for row in self.figures],
            "level": self.level,
            "singled_out": [list(pair) for pair in self.singled_out],
            "alike": self.alike,
            "sentence": self.sentence,
        }


def category_drift(
    design: Design,
    base: Float[np.ndarray, "prompt d_model"],
    tuned: Float[np.ndarray, "prompt d_model"],
    categories: Sequence[str],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> CategoryDrift:
    """Drift of every category at one site.

    A category takes part with `MIN_INTENTS` harmful intents; its own direction needs as many
    harmless ones.

    Args:
        design: Classes, intents and folds of all prompts.
        base: Activations of base, float64.
        tuned: Activations of tuned on the same prompts, float64.
        categories: Category of each prompt.
        level: Nominal coverage.
        seed: Seed of the bands.
    """
    kinds, codes, labels = np.array(categories, dtype=object), design.clusters.codes, design.labels

    def intents(name: str, label: int) -> int:
        return len(np.unique(codes[(kinds == name) & (labels == label)]))

    every = sorted({name for name, y in zip(categories, labels, strict=True) if y == HARMFUL})
    names = tuple(name for name in every if intents(name, HARMFUL) >= MIN_INTENTS)
    left_out = tuple(name for name in every if name not in names)
    if len(names) < 2:
        note = f"{len(names)} of {len(every)} categories have {MIN_INTENTS} harmful intents or more"
        return CategoryDrift(categories=names, left_out=left_out, level=level, note=note)
    own = []
    for name in names:
        if intents(name, HARMLESS) >= MIN_INTENTS:
            own.append(_own_direction(design, base, tuned, kinds == name, level))
        else:
            note = f"not estimable: fewer than {MIN_INTENTS} harmless intents in the category"
            absent = GroupFigure(estimate=missing(design.clusters, level, note))
            own.append((absent, absent))
    columns = [
        [pair[0] for pair in own],
        [pair[1] for pair in own],
        _translations(design, base, tuned, [kinds == name for name in names], level),
    ]
    return CategoryDrift(
        categories=names,
        left_out=left_out,
        n_intents=tuple(intents(name, HARMFUL) for name in names),
        figures=_compared(columns, design.clusters, level, seed),
        level=level,
    )


def _own_direction(
    design: Design,
    base: FloatArray,
    tuned: FloatArray,
    here: Bool[np.ndarray, " prompt"],
    level: float,
) -> tuple[GroupFigure, GroupFigure]:
    """Rotation and shrinkage of one category's direction."""
    clusters = Clusters.of(design.clusters.codes[here].tolist(), design.labels[here])
    part = Design(design.labels[here], clusters, design.fold[here])
    contrasts = Contrasts.of(part, base[here], tuned[here])
    cos, turned = rotation(contrasts, level=level)
    ratio, stretched = shrinkage(contrasts, level=level), None
    if ratio.value is not None:
        stretched = turned
        if not contrasts.identical:
            b, t = contrasts.base.corrected, contrasts.tuned.corrected
            stretched = contrasts.deviations(base=-1 / (2 * b), tuned=1 / (2 * t))
    members = np.array(clusters.names, dtype=np.int64)
    log = None if ratio.value is None else math.log(ratio.value)
    return (
        _figure(cos, cos.value, turned, members, design.clusters.n),
        _figure(ratio, log, stretched, members, design.clusters.n),
    )


def _figure(
    estimate: Estimate,
    value: float | None,
    deviations: Deviations | None,
    members: NDArray[np.int64],
    n: int,
) -> GroupFigure:
    """Put the deviations of some intents in their place among all."""
    if value is None or deviations is None or not deviations.finite:
        return GroupFigure(estimate=estimate)
    first = np.zeros(n)
    first[members] = deviations.first
    return GroupFigure(
        estimate=estimate,
        value=value,
        first=first,
        variance=deviations.variance,
        df=deviations.df,
    )


def _translations(
    design: Design,
    base: FloatArray,
    tuned: FloatArray,
    members: Sequence[Bool[np.ndarray, " prompt"]],
    level: float,
) -> list[GroupFigure]:
    """Shift of each category's harmful prompts along the common direction of base."""
    clusters = design.clusters
    contrasts = Contrasts.of(design, base, tuned)
    sd, sd_left, reason = 0.0, np.zeros(clusters.n), ""
    if not contrasts.signal[0]:
        reason = "no signal: harmful and harmless activations are the same in base"
    elif contrasts.base.corrected <= 0:
        reason = "not estimable: the base direction is within its noise"
    else:
        sd, sd_left = within_sd(design, contrasts, base)
        if sd == 0:
            reason = "not estimable: base has no spread along its direction"
    if reason:
        return [GroupFigure(estimate=missing(clusters, level, reason)) for _ in members]
    nothing = np.zeros((clusters.n, clusters.n))
    direction, shift = np.append(R_BASE[:2], 0.0), np.array([0.0, 0.0, 1.0])
    figures = []
    for member in members:
        here = member & (design.labels == HARMFUL)
        change = clusters.sums(np.where(here[:, None], tuned - base, 0.0))
        counts = np.stack([*design.counts[:2], clusters.sums(here.astype(np.float64))])
        products = mean_products(np.concatenate([contrasts.sums[:2], change[None]]), counts)
        inner = products.inner(direction, shift)
        value = inner.corrected / math.sqrt(contrasts.base.corrected) / sd
        left = inner.corrected_left / root(contrasts.base.corrected_left) / sd_left
        deviations = Deviations(first=clusters.centre(left), second=nothing, clusters=clusters)
        estimate = deviations.interval(value, level=level)
        figures.append(_figure(estimate, value, deviations, np.arange(clusters.n), clusters.n))
    return figures


def _compared(
    columns: Sequence[Sequence[GroupFigure]], clusters: Clusters, level: float, seed: int
) -> tuple[FigureByCategory, ...]:
    """Bands, differences from the others, and tests, for each figure."""
    others = [
        versus_others(column, clusters.n, level, tests=len(FIGURES), log=name == "shrinkage")
        for name, column in zip(FIGURES, columns, strict=True)
    ]
    alike = [alike_p_value(column) for column in columns]
    alike_adjusted = holm([math.nan if q is None else q for q in alike])
    return tuple(
        FigureByCategory(
            figure=name,
            estimates=tuple(figure.estimate for figure in column),
            bands=group_bands(column, clusters, level, seed, log=name == "shrinkage"),
            versus_others=tuple(e for e, _, _ in row),
            p_values=tuple(q for _, q, _ in row),
            p_adjusted=tuple(q for _, _, q in row),
            alike_p=same,
            alike_p_adjusted=float(same_adjusted) if np.isfinite(same_adjusted) else None,
        )
        for name, column, row, same, same_adjusted in zip(
            FIGURES, columns, others, alike, alike_adjusted, strict=True
        )
    )
