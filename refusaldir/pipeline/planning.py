"""`plan`: how many prompts a comparison needs, and what one of a given size could see."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refusaldir.directions.reader import CaptureReader, clusters_of, read_site
from refusaldir.directions.site import choose_site
from refusaldir.drift.comparable import require_comparable
from refusaldir.drift.contrasts import Contrasts, Design
from refusaldir.drift.power.noise import Noise, assume_noise, measure_noise
from refusaldir.drift.power.power import Power, fewest
from refusaldir.drift.power.shift_noise import ShiftNoise, Spread
from refusaldir.drift.verdict import question_level
from refusaldir.errors import RefusaldirError
from refusaldir.pipeline.sites import parse_site
from refusaldir.probes.power import FLIPS, RefusalPower
from refusaldir.records import HARMFUL, HARMLESS, Site
from refusaldir.store import Capture

#: Numbers of intents in the table.
SIZES = (16, 32, 64, 128, 256, 512)

#: Noise where there is no pilot: measured by `measure_noise` on ``smollm2-135m+aligned`` against
#: ``smollm2-135m+aligned+tuned``, built-in set ``contrast`` (288 intents, each a harmful prompt and
#: its harmless twin), float32, at resid_pre.23@-1, where base separates best. Over layers 18 to
#: 29 at that token, the ratio was 1.6 to 2.4, the dimension 14 to 30, the share 0.81 to 0.90.
DEFAULT_NOISE = Noise(
    n=288,
    prompts=2.0,
    strata=1,
    ratio=1.68,
    dimension=16.5,
    shared=0.81,
    dimension_apart=20.9,
    along=0.322,
    norm=Spread(first=0.0438, second=0.0228),
    shift=ShiftNoise(
        harmful=Spread(first=0.565, second=0.130),
        harmless=Spread(first=0.444, second=0.119),
        unit=0.572,
    ),
    measured=True,
)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What `plan` found.

    Attributes:
        document: Everything, JSON-ready: the noise, what is needed for each change asked for, the
            smallest changes seen with so many intents, and what the pilot itself could see.
        noise: The noise it was worked out from.
    """

    document: dict[str, Any] = field(repr=False)
    noise: Noise = field(repr=False)

    def _repr_html_(self) -> str:
        from refusaldir.report.notebook import as_html
        from refusaldir.report.plan_table import plan_report

        return as_html(plan_report(self.document))


def plan(
    base: str | Path | None = None,
    tuned: str | Path | None = None,
    *,
    rotation: float = 10.0,
    norm: float = 0.1,
    translation: float = 0.25,
    refusal_change: float = 0.1,
    base_rate: float = 0.9,
    discordant: float | None = None,
    power: float = 0.8,
    level: float = 0.95,
    shared: float | None = None,
    site: str | None = None,
) -> Planned:
    """Say how many prompts it takes to see a change, and what a number of prompts can show.

    Levels are those of `diff`: intervals at the chosen site are wide enough for its findings to
    hold together. A change of the refusal rate is tested by itself, as `diff` does.

    Args:
        base: Pilot: a capture of base; None plans with the noise of the built-in models.
        tuned: A capture of tuned on the same prompts, which tells what noise the two share.
        rotation: Rotation to be seen, in degrees.
        norm: Shrinkage of the direction's norm to be seen, as a share.
        translation: Shift of either class to be seen, in base SDs.
        refusal_change: Fall of the refusal rate to be seen, as a share of the prompts.
        base_rate: Refusal rate of base on harmful prompts.
        discordant: Share of the prompts that flip without a net change, half each way.
        power: Chance with which each is to be seen.
        level: Nominal coverage of the findings together.
        shared: With a pilot of base alone, the share of noise that tuned has in common with it.
        site: The site, such as ``resid_pre.18@-1``; by default the one that separates best.

    Raises:
        RefusaldirError: A capture or a figure that cannot be.
    """
    for name, value, most in (
        ("--rotation", rotation, 90.0),
        ("--norm", norm, 0.99),
        ("--translation", translation, 100.0),
        ("--refusal-change", refusal_change, 1.0),
        ("--power", power, 0.999999),
        ("--level", level, 0.999999),
    ):
        if not 0 < value <= most:
            raise RefusaldirError(
                "This change or share cannot be", expected=f"above 0, up to {most:g}", got=value,
                where=name,
            )  # fmt: skip
    if base is None and (site is not None or shared is not None):
        raise RefusaldirError(
            "Without a pilot there is nothing to choose from",
            got="--site" if site is not None else "--shared",
            next_step="Name a capture of base, or leave the option out",
        )
    if tuned is not None and shared is not None:
        raise RefusaldirError(
            "What two captures share is measured", got="--shared beside a capture of tuned"
        )
    wanted = parse_site(site)
    if not 0 <= base_rate <= 1:
        raise RefusaldirError(
            "A rate lies between 0 and 1", got=f"{base_rate:g}", where="--base-rate"
        )
    if discordant is None:
        discordant = min(FLIPS, 2 * base_rate, 2 * (1 - base_rate))
    refusals = RefusalPower(base_rate=base_rate, flips=discordant, level=level, power=power)
    if refusal_change > refusals.largest:
        raise RefusaldirError(
            "The refusal rate cannot fall so far",
            expected=f"at most {refusals.largest:g} at a base rate of {base_rate:g} with "
            f"{discordant:g} flipping anyway",
            got=f"{refusal_change:g}",
            where="--refusal-change",
        )

    if base is None:
        noise, pilot = DEFAULT_NOISE, None
    else:
        noise, pilot = _pilot(Path(base), None if tuned is None else Path(tuned), wanted, shared)
    p = Power(noise=noise, level=question_level(level), power=power)

    def shift(n: int) -> float:
        return min(p.translation(translation, n, y) for y in (HARMFUL, HARMLESS))

    needed = {
        "rotation": (rotation, p.needed(lambda n: p.rotation(rotation, n))),
        "norm": (norm, p.needed(lambda n: p.norm(norm, n))),
        "translation": (translation, p.needed(shift)),
        "refusals": (
            refusal_change,
            fewest(lambda n: refusals.probability(refusal_change, n), power, 1),
        ),
    }
    return Planned(
        noise=noise,
        document={
            "pilot": pilot,
            "noise": noise.to_dict(),
            "level": level,
            "interval_level": p.level,
            "power": power,
            "base_rate": base_rate,
            "discordant": discordant,
            "needed": [
                {
                    "effect": effect,
                    "size": size,
                    # Refusals are counted in harmful prompts that both models answer.
                    "intents": None if effect == "refusals" else n,
                    "prompts": n if n is None or effect == "refusals" else _prompts(noise, n),
                }
                for effect, (size, n) in needed.items()
            ],
            "table": [_row(p, refusals, n) for n in SIZES],
            "pilot_could_see": None if pilot is None else _row(p, refusals, noise.n),
        },
    )


def _row(p: Power, refusals: RefusalPower, n: int) -> Mapping[str, Any]:
    """Smallest changes seen with n intents; refusals with n harmful prompts."""
    return {
        "intents": n,
        "prompts": _prompts(p.noise, n),
        "rotation": p.least_rotation(n),
        "norm": p.least_norm(n),
        "translation_harmful": p.least_translation(n, HARMFUL),
        "translation_harmless": p.least_translation(n, HARMLESS),
        "refusals": refusals.least(n),
    }


def _prompts(noise: Noise, intents: int) -> int:
    return math.ceil(intents * noise.prompts - 1e-9)


def _pilot(
    base: Path, tuned: Path | None, site: Site | None, shared: float | None
) -> tuple[Noise, dict[str, Any]]:
    """The noise at one site of a pilot, and what the pilot is."""
    with Capture.open(base) as left:
        hook = site.hook if site is not None else _hook(left)
        here = site or choose_site(left, hook).site
        pilot: CaptureReader = left
        if tuned is None:
            x = y = read_site(left, here).astype(np.float64)
        else:
            with Capture.open(tuned) as right:
                pair = require_comparable(left, right, hook)
                pilot = pair.base
                x = read_site(pair.base, here).astype(np.float64)
                y = read_site(pair.tuned, here).astype(np.float64)
        labels = np.asarray(pilot.labels)
        clusters = clusters_of(pilot.prompts, labels)
        design = Design(labels, clusters, np.zeros(len(labels), dtype=np.int64))
        contrasts = Contrasts.of(design, x, y)
        if tuned is None:
            assumed = DEFAULT_NOISE.shared if shared is None else shared
            noise = assume_noise(contrasts, x, shared=assumed)
        else:
            noise = measure_noise(contrasts, x)
        return noise, {
            "base": str(base),
            "tuned": None if tuned is None else str(tuned),
            "site": {"hook": here.hook, "layer": here.layer, "position": here.position},
            "intents": clusters.n,
            "prompts": len(labels),
        }


def _hook(capture: Capture) -> str:
    return "resid_pre" if "resid_pre" in capture.hooks else capture.hooks[0]
