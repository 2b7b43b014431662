"""Is there drift at all? A test that the refusal direction is the same in base and tuned.

With ``Δ = rᵗ − rᵇ``, the null hypothesis at every layer is ``‖Δ‖ ≤ limit``, with ``limit² =
floor²·‖rᵇ‖² + rounding²·rms²`` (rms: of base's activation norms). The statistic of a layer is
``T = ‖Δ‖²* − limit²*``, unbiased: no intent meets itself. ``rounding`` is there because two runs
of one model in different precision differ by a share of the *activations*, whatever the length
of r, and r may be a thousandth of them in early layers.

Under the null an intent's contribution to Δ may as well have had the other sign, base and tuned
exchanged, so the null distribution is that of the same sum with random signs ξ (Rademacher)::

    T(ξ) = Σ_{c≠c'} ξ_c ξ_c' D_cc'      D_cc' = δ_c · δ_c' / (C (C − 1))

Where every intent holds both classes, δ_c is its change of harmful minus its change of harmless
prompts; with floor 0 the test is exact for any noise that is alike in the two models. Where an
intent holds one class, its change also carries the change m that all prompts have in common,
which is no change of r. The products then use ``s_c − n_c m``, m estimated from all *other*
intents and ``‖m‖²`` as an unbiased product, so that every off-diagonal D_cc' has mean zero under
the null. Centring by the mean instead leaves −tr(Σ)/n in each of them, which in many dimensions
swamps what is being measured.

With a limit, contributions are taken from ``Δ₀ = limit · Δ̂/‖Δ̂‖``, the null nearest to what was
seen, and T(ξ) gains the linear term ``2 Δ₀ · Σ_c ξ_c (δ_c − Δ₀)/C``; all signs + then give T
itself back, as they must.

Layers are combined by the studentised maximum, each draw of signs taking its own maximum over
layers (Westfall & Young 1993, single step). References: Chung & Fraser 1958 (randomisation tests
for a multivariate two-sample problem); Hemerik & Goeman 2018 (exactness with random draws); Chen
& Qin 2010 (the statistic).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from refusaldir.drift.contrasts import Design
from refusaldir.drift.nulls.intent_products import IntentProducts
from refusaldir.errors import RefusaldirError
from refusaldir.geometry import mean_products, signed_root
from refusaldir.records import HARMFUL, HARMLESS, Site
from refusaldir.statistics import randomisation_p

FloatArray = NDArray[np.float64]

_METHOD = (
    "random sign flips of whole intents, base and tuned exchanged; statistic ‖rᵗ − rᵇ‖² without "
    "products of an intent with itself, less what counts as none; over layers the studentised "
    "maximum, each draw taking its own"
)


@dataclass(frozen=True, kw_only=True)
class LayerTest:
    """The test at one site.

    Attributes:
        site: Where.
        size: ``‖rᵗ − rᵇ‖*/‖rᵇ‖*``, negative where the unbiased square is; None where base has no
            direction to compare with.
        p_value: Of this site alone.
        adjusted: Of this site among all sites tested.
    """

    site: Site
    size: float | None
    p_value: float
    adjusted: float


@dataclass(frozen=True, kw_only=True)
class DriftTest:
    """Whether the refusal direction changed at any layer.

    Attributes:
        p_value: That nothing beyond the floor would look like this, all sites together.
        layer: The layer that stands out most; None where no activation changed.
        size: The size there.
        floor: Changes up to this share of ``‖rᵇ‖`` count as none.
        rounding: So do changes up to this share of the activations' RMS norm.
        draws: Number of random sign flips.
        n: Number of intents.
        by_layer: The test at each site, in the order given.
        method: What was done, in words.
    """

    p_value: float
    layer: int | None
    size: float | None
    floor: float
    rounding: float
    draws: int
    n: int
    by_layer: tuple[LayerTest, ...]
    method: str = _METHOD

    def at(self, site: Site) -> LayerTest:
        """The test at one site; its ``p_value`` is fair where the site was chosen on base.

        Raises:
            KeyError: When the site was not tested.
        """
        for row in self.by_layer:
            if row.site == site:
                return row
        raise KeyError(str(site))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


class SignFlipTest:
    """Gathers the sites one by one and tests them together.

    Args:
        design: Classes and intents.
        floor: Share of ``‖rᵇ‖`` up to which a change counts as none.
        rounding: Share of the activations' RMS norm up to which it counts as none: 0 for one
            precision, 2⁻⁸ (the spacing of bfloat16) where one capture is bfloat16 and the other
            is not.
        draws: Number of random sign flips.
        seed: Seed of the signs.

    Raises:
        RefusaldirError: The floor is negative, there are no draws, or fewer than four intents.
    """

    def __init__(
        self,
        design: Design,
        *,
        floor: float = 0.0,
        rounding: float = 0.0,
        draws: int = 2000,
        seed: int = 0,
    ) -> None:
        """Draw the signs; every site uses the same."""
        clusters = design.clusters
        limits = all(math.isfinite(x) and x >= 0 for x in (floor, rounding))
        if not limits or draws < 1 or clusters.n < 4:
            raise RefusaldirError(
                "a test of drift cannot be made",
                expected="floor and rounding from 0 up, a draw or more, four intents or more",
                got=f"floor {floor}, rounding {rounding}, {draws} draws, {clusters.n} intents",
            )
        self._design, self._floor, self._rounding = design, floor, rounding
        rng = np.random.default_rng(seed)
        self._signs = 2.0 * rng.integers(0, 2, size=(draws, clusters.n)) - 1
        self._intents = IntentProducts(design)
        self._sites: list[Site] = []
        self._sizes: list[float | None] = []
        self._observed: list[float] = []
        self._null: list[FloatArray] = []

    def add(
        self,
        site: Site,
        base: Float[np.ndarray, "prompt d_model"],
        tuned: Float[np.ndarray, "prompt d_model"],
    ) -> None:
        """Test one site, from both models' activations in float64."""
        squared, base_error = self._base_square(base)
        power = float(np.mean(np.einsum("pd,pd->p", base, base)))
        limit = math.sqrt(self._floor**2 * max(squared, 0.0) + self._rounding**2 * power)
        change = tuned - base
        change -= change.mean(axis=0)
        # Float64 rounding of the means is no change.
        if np.max(np.abs(change)) <= 16 * np.finfo(np.float64).eps * np.max(np.abs(tuned)):
            change = np.zeros_like(change)
        sums = self._intents.gather(self._design.sums(change))
        delta = (self._intents.sign / self._intents.weight) @ sums
        gram = sums @ sums.T
        moved = self._intents.total(gram)
        observed = moved - limit**2
        linear = np.zeros(self._design.clusters.n)
        length = float(np.linalg.norm(delta))
        if limit > 0 and length > 0:
            nearest = limit / length * delta
            gram = self._intents.shifted(gram, sums @ nearest, limit)
            linear = 2 * self._intents.contributions(sums @ nearest, limit)
            linear -= self._floor**2 * base_error
        products = self._intents.products(gram)
        scale = math.sqrt(2 * float(np.sum(products**2)) + float(linear @ linear))
        drawn = np.einsum("dc,dc->d", self._signs @ products, self._signs) + self._signs @ linear
        self._sites.append(site)
        self._sizes.append(float(signed_root(moved / squared)) if squared > 0 else None)
        # A site where nothing changed takes no part: it never stands out.
        self._observed.append(observed / scale if scale > 0 else -np.inf)
        self._null.append(drawn / scale if scale > 0 else np.full(len(drawn), -np.inf))

    def result(self) -> DriftTest:
        """Test all sites added.

        Raises:
            RefusaldirError: No site was added.
        """
        if not self._sites:
            raise RefusaldirError("a test of drift needs at least one site", got="none")
        observed, null = np.array(self._observed), np.stack(self._null)
        highest = null.max(axis=0)
        rows = tuple(
            LayerTest(
                site=site,
                size=size,
                p_value=randomisation_p(t, alone),
                adjusted=randomisation_p(t, highest),
            )
            for site, size, t, alone in zip(self._sites, self._sizes, observed, null, strict=True)
        )
        best = int(np.argmax(observed))
        changed = bool(np.isfinite(observed[best]))
        return DriftTest(
            p_value=rows[best].adjusted,
            layer=rows[best].site.layer if changed else None,
            size=rows[best].size if changed else None,
            floor=self._floor,
            rounding=self._rounding,
            draws=len(self._signs),
            n=self._design.clusters.n,
            by_layer=rows,
        )

    def _base_square(self, base: FloatArray) -> tuple[float, FloatArray]:
        """``‖rᵇ‖²*`` of base, and what each intent adds to its error to first order."""
        counts = self._design.counts[:2]
        size = counts.sum(axis=1)
        sums = self._design.sums(base)
        means = sums.sum(axis=1) / size[:, None]
        sums -= counts[..., None] * means.mean(axis=0)
        contrast = np.array([-1.0, 1.0])
        squared = mean_products(sums, counts).inner(contrast, contrast).corrected
        r = means[HARMFUL] - means[HARMLESS]
        along = sums @ r - counts * (sums.sum(axis=1) @ r / size)[:, None]
        error: FloatArray = 2 * contrast @ (along / size[:, None])
        return squared, error
