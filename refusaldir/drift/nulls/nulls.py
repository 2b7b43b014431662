"""Rulers for drift: what its figures look like where nothing has happened to refusal.

* **Labels exchanged** within intents (between intents where each holds one class), alike in both
  models. The cosine of such directions is what shared prompts alone give (with the little of the
  true direction that chance leaves in them); their length is what a direction has to exceed to
  be one.
* **Halves of base**: the cosine of base's directions from two disjoint halves of the intents.
  No change, but half the sample and none of the pairing.
* **Random directions** with the covariance of base's activations within the classes: how far the
  class means shift along directions that prompts of one class differ by.
* **Prompt length**: the direction from short to long prompts has nothing to do with refusal. If
  it drifts as much as the refusal direction, the drift is general.

A ruler says what a figure is to be held against. Only two carry a p-value: the length of the
direction and the shift along it; whether there is drift at all is `.drift_test`. Over layers each
draw takes its own extreme, so that looking at many layers costs what it should.
"""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from refusaldir.directions.reader import MIN_INTENTS
from refusaldir.directions.site import has_signal
from refusaldir.drift.contrasts import R_BASE, R_TUNED, Contrasts, Design
from refusaldir.drift.nulls.draws import DrawnDirections, cosines, exchanged_labels, halves
from refusaldir.drift.nulls.rulers import (
    METHODS,
    LayerNulls,
    LengthRuler,
    NullsResult,
    Ruler,
    rulers,
)
from refusaldir.errors import RefusaldirError
from refusaldir.records import HARMFUL, HARMLESS, Estimate, Site
from refusaldir.statistics import jackknife

FloatArray = NDArray[np.float64]

#: A figure and its draws.
Drawn = tuple[float, FloatArray]


class Nulls:
    """Gathers the rulers of one site after the other.

    Args:
        design: Classes and intents.
        lengths: Token count of each prompt; None leaves prompt length out.
        draws: Number of draws of each kind.
        seed: Seed of the draws; every site uses the same draws.

    Raises:
        RefusaldirError: There are no draws, or not one token count for each prompt.
    """

    def __init__(
        self,
        design: Design,
        *,
        lengths: Int[np.ndarray, " prompt"] | None = None,
        draws: int = 2000,
        seed: int = 0,
    ) -> None:
        """Draw labels, halves and weights."""
        labels, clusters = design.labels, design.clusters
        if draws < 1 or (lengths is not None and len(lengths) != len(labels)):
            raise RefusaldirError(
                "nulls cannot be drawn",
                expected=f"at least one draw and, if any, {len(labels)} token counts",
                got=f"{draws} draws"
                + ("" if lengths is None else f" and {len(lengths)} token counts"),
            )
        self._design, self._seed, self._draws = design, seed, draws
        # The first row is what was observed.
        y = labels.astype(np.float64)
        exchanged = np.vstack([y, exchanged_labels(labels, clusters, draws=draws, seed=seed)])
        self._exchanged = DrawnDirections(exchanged, 1 - exchanged, clusters)
        first = halves(clusters, draws=draws, seed=seed + 1)
        self._halves = [DrawnDirections(h * y, h * (1 - y), clusters) for h in (first, 1 - first)]
        rng = np.random.default_rng(seed + 2)
        self._weights = rng.standard_normal((draws, len(labels)))
        self._classes: FloatArray = np.stack([1 - y, y])
        self._means: FloatArray = self._classes / self._classes.sum(axis=1, keepdims=True)
        self._by_length = None if lengths is None else _by_length(design, lengths)
        self._sites: list[Site] = []
        self._lengths: list[LengthRuler | None] = []
        self._notes: list[str] = []
        self._found: dict[str, list[Drawn]] = {name: [] for name in METHODS}

    def add(
        self,
        site: Site,
        base: Float[np.ndarray, "prompt d_model"],
        tuned: Float[np.ndarray, "prompt d_model"],
        *,
        translation: Mapping[int, float | None],
    ) -> None:
        """Draw at one site.

        Args:
            site: Where the activations come from.
            base: Activations of base, float64.
            tuned: Activations of tuned on the same prompts, float64.
            translation: Shift of each class's mean along base's direction in base SDs, by label,
                as measured: what the shift along random directions is held against.
        """
        base_means, tuned_means = self._means @ base, self._means @ tuned
        found: dict[str, Drawn] = dict.fromkeys(METHODS, (math.nan, np.full(self._draws, math.nan)))
        note = "no signal: harmful and harmless activations are the same"
        if all(has_signal(x, m[1] - m[0]) for x, m in ((base, base_means), (tuned, tuned_means))):
            note = ""
            origin = base_means.mean(axis=0)
            x, z = base - origin, tuned - origin
            bb, bt, tt = x @ x.T, x @ z.T, z @ z.T
            found = {**self._directions(bb, bt, tt), **self._shifts(bb, bt, translation)}
        self._sites.append(site)
        self._notes.append(note)
        self._lengths.append(self._length(base, tuned))
        for name, figure in found.items():
            self._found[name].append(figure)

    def result(self) -> NullsResult:
        """All rulers.

        Raises:
            RefusaldirError: No site was added.
        """
        if not self._sites:
            raise RefusaldirError("nulls need at least one site", got="none")
        by_site: list[dict[str, Ruler]] = [{} for _ in self._sites]
        over: dict[str, Ruler] = {}
        for name, figures in self._found.items():
            observed = np.array([value for value, _ in figures])
            drawn = np.stack([values for _, values in figures])
            rows, overall = rulers(name, observed, drawn, self._notes)
            for row, ruler in zip(by_site, rows, strict=True):
                row[name] = ruler
            if overall is not None:
                over[name] = overall
        return NullsResult(
            layers=tuple(
                LayerNulls(site=site, rulers=row, length=length)
                for site, row, length in zip(self._sites, by_site, self._lengths, strict=True)
            ),
            over_layers=over,
            draws=self._draws,
            n=self._design.clusters.n,
            seed=self._seed,
            methods=METHODS,
        )

    def _directions(self, bb: FloatArray, bt: FloatArray, tt: FloatArray) -> dict[str, Drawn]:
        """Labels exchanged, and halves of base."""
        drawn = self._exchanged
        base, cross, tuned = (
            drawn.squares(gram, drawn.sums(gram)) for gram in (bb, (bt + bt.T) / 2, tt)
        )
        raw = cosines(cross.raw, base.raw, tuned.raw)
        corrected = cosines(cross.corrected, base.corrected, tuned.corrected)
        first, second = self._halves
        sums = first.sums(bb)
        rest = [self._classes[k] @ bb - s for k, s in zip((HARMFUL, HARMLESS), sums, strict=True)]
        between = np.einsum("dp,dp->d", first.difference(sums), second.weights)
        one, two = first.squares(bb, sums), second.squares(bb, rest)
        return {
            "exchanged_cosine": (float(raw[0]), raw[1:]),
            "exchanged_norm_base": (float(base.corrected[0]), base.corrected[1:]),
            "exchanged_norm_tuned": (float(tuned.corrected[0]), tuned.corrected[1:]),
            "halves_cosine_raw": (float(raw[0]), cosines(between, one.raw, two.raw)),
            "halves_cosine": (
                float(corrected[0]),
                cosines(between, one.corrected, two.corrected),
            ),
        }

    def _shifts(
        self, bb: FloatArray, bt: FloatArray, translation: Mapping[int, float | None]
    ) -> dict[str, Drawn]:
        """``|v·(μᵗ − μᵇ)|/SD(v·xᵇ)`` for ``v = Σ_p g_p (x_p − μ_class)``, g normal."""

        def centred(gram: FloatArray) -> FloatArray:
            result: FloatArray = gram - self._classes.T @ (self._means @ gram)
            return result

        within = centred(centred(bb).T)
        moved = centred(bt - bb) @ self._means.T
        spread = np.linalg.norm(self._weights @ within, axis=1) / math.sqrt(len(bb) - 2)
        with np.errstate(invalid="ignore", divide="ignore"):
            shift = np.abs(self._weights @ moved) / np.where(spread > 0, spread, np.nan)[:, None]
        seen = {
            label: math.nan if value is None else abs(value) for label, value in translation.items()
        }
        return {
            "random_shift_harmful": (seen[HARMFUL], shift[:, HARMFUL]),
            "random_shift_harmless": (seen[HARMLESS], shift[:, HARMLESS]),
        }

    def _length(self, base: FloatArray, tuned: FloatArray) -> LengthRuler | None:
        """Drift of the direction from short to long prompts."""
        if self._by_length is None:
            return None
        contrasts = Contrasts.of(self._by_length, base, tuned)
        products, clusters = contrasts.products, self._by_length.clusters
        b = products.inner(R_BASE, R_BASE)
        t = products.inner(R_TUNED, R_TUNED)
        cross = products.inner(R_BASE, R_TUNED)
        if contrasts.reason or b.corrected <= 0 or t.corrected <= 0:
            note = "prompts of other length do not differ here beyond noise"
            absent = Estimate(value=None, n=clusters.n, note=note)
            return LengthRuler(cosine=absent, shrinkage=absent)
        left = cosines(cross.corrected_left, b.corrected_left, t.corrected_left)
        # ‖rᵗ‖/‖rᵇ‖ = ‖rᵗ‖²/(‖rᵇ‖‖rᵗ‖), NaN where a square is not positive
        ratio = cosines(t.corrected_left, b.corrected_left, t.corrected_left)
        return LengthRuler(
            cosine=jackknife(
                cross.corrected / math.sqrt(b.corrected * t.corrected),
                left,
                clusters,
                bounds=(-1.0, 1.0),
            ),
            shrinkage=jackknife(math.sqrt(t.corrected / b.corrected), ratio, clusters, log=True),
        )


def _by_length(design: Design, lengths: Int[np.ndarray, " prompt"]) -> Design | None:
    """The design with long prompts for harmful ones; None where too few are long or short."""
    long: Bool[np.ndarray, " prompt"] = np.zeros(len(lengths), dtype=np.bool_)
    for label in (HARMLESS, HARMFUL):
        here = design.labels == label
        long[here] = lengths[here] > np.median(lengths[here])
    clusters = design.clusters
    if min(len(np.unique(clusters.codes[side])) for side in (long, ~long)) < MIN_INTENTS:
        return None
    return Design(long.astype(np.int64), clusters, design.fold)
