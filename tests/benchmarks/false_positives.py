"""How often drift is found where there is none, and how little drift is found at all.

    python tests/benchmarks/false_positives.py [--capture PATH] [--precision-capture F32 BF16]
        [--model smollm2-135m+aligned] [--parts PART …] [--repetitions 1000] [--pairs 300]

Three kinds of "no change":

  simulation  both models have one direction; their noise differs, and all prompts shift alike
  halves      disjoint halves of one capture's intents stand for base and tuned, paired at random
  precision   one model in float32 and in bfloat16: what is found there is rounding, not drift

and the rotation that is found four times out of five. ``n`` is the number of intents, of each
class where an intent holds one. "rotation": the share of 95 % intervals of the corrected cosine
that lie below 1. Prints one Markdown table for each part. Without captures the model is run, in a
temporary store that is removed at the end.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refusaldir.directions.site import choose_site
from refusaldir.drift.contrasts import Contrasts, Design
from refusaldir.drift.nulls.drift_test import DriftTest, SignFlipTest
from refusaldir.drift.rotation import rotation
from refusaldir.models.options import LoadOptions
from refusaldir.pipeline import extract
from refusaldir.records import Site
from refusaldir.statistics import Clusters
from refusaldir.store import Capture

LEVEL = 0.05
DRAWS = 499
PRECISION_INTENTS = 48


def design_of(n: int, matched: bool) -> Design:
    """``n`` intents with twins, or ``n`` intents of each class."""
    y = np.tile([0, 1], n)
    ids = np.repeat(np.arange(n), 2) if matched else np.arange(2 * n)
    clusters = Clusters.of(ids.tolist(), y)
    return Design(y, clusters, np.zeros(2 * n, dtype=np.int64))


@dataclass(frozen=True)
class Rate:
    """Shares of repetitions in which something was found."""

    site: float
    layers: float
    turned: float
    untold: float

    @classmethod
    def of(cls, tests: list[DriftTest], turned: list[bool | None], index: int) -> "Rate":
        told = [t for t in turned if t is not None]
        return cls(
            site=float(np.mean([t.by_layer[index].p_value <= LEVEL for t in tests])),
            layers=float(np.mean([t.p_value <= LEVEL for t in tests])),
            turned=float(np.mean(told)) if told else float("nan"),
            untold=1 - len(told) / len(turned),
        )

    def cells(self) -> str:
        return f"{self.site:.3f} | {self.layers:.3f} | {self.turned:.3f} | {self.untold:.2f}"


def leaves_out_one(design: Design, base: np.ndarray, tuned: np.ndarray) -> bool | None:
    """Whether the 95 % interval of the rotation lies below 1; None where there is no interval."""
    e, _ = rotation(Contrasts.of(design, base, tuned))
    return None if e.upper is None else e.upper < 1


# --- simulation ---------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Noise of two models on the same prompts, with one direction turned by ``degrees``."""

    design: Design
    shape: str
    d: int = 64
    layers: int = 4
    norm: float = 6.0
    degrees: float = 0.0
    harmful_noise: float = 1.0

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        """Noise of a prompt plus that of its intent, ``[prompt d]``."""
        clusters = self.design.clusters
        own = rng.standard_normal((len(self.design.labels), self.d))
        if self.shape == "heavy tails":
            own *= np.sqrt(3 / rng.chisquare(3, size=(len(own), 1)))
        x = own + rng.standard_normal((clusters.n, self.d))[clusters.codes]
        if self.shape == "decaying":
            x = x * np.sqrt(self.d / np.sum(1 / np.arange(1, self.d + 1)))
            x = x / np.sqrt(np.arange(1, self.d + 1))
        return x / np.sqrt(2)

    def activations(self, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Base and tuned of each layer; layers share most of their noise."""
        rng = np.random.default_rng(seed)
        y = self.design.labels[:, None]
        angle = np.radians(self.degrees)
        r = np.zeros((2, self.d))
        r[0, 3], r[1, 3], r[1, 4] = self.norm, self.norm * np.cos(angle), self.norm * np.sin(angle)
        both, one = self.noise(rng), self.noise(rng)
        for _ in range(self.layers):
            base = both + 0.5 * self.noise(rng)
            change = 0.5 * (one + 0.5 * self.noise(rng))
            change *= np.where(y == 1, self.harmful_noise, 1.0)
            change[:, 5] += 2.0  # all prompts shift alike: no change of r
            yield base + y * r[0], base + change + y * r[1]

    def run(self, seed: int) -> tuple[DriftTest, bool | None]:
        test = SignFlipTest(self.design, draws=DRAWS, seed=seed)
        for layer, (base, tuned) in enumerate(self.activations(seed)):
            test.add(Site(hook="resid_pre", layer=layer, position=-1), base, tuned)
            if layer == 0:
                turned = leaves_out_one(self.design, base, tuned)
        return test.result(), turned


def simulation(repetitions: int) -> None:
    print("| intents | n | noise | p at the site | p over layers | rotation | not estimable |")
    print("|---|---|---|---|---|---|---|")
    for matched in (True, False):
        for n in (16, 32, 128):
            shapes = [(s, 1.0) for s in ("isotropic", "decaying", "heavy tails")]
            if not matched:
                shapes.append(("decaying", 3.0))
            for shape, loud in shapes:
                world = World(design_of(n, matched), shape, harmful_noise=loud)
                runs = [world.run(seed) for seed in range(repetitions)]
                rate = Rate.of([t for t, _ in runs], [x for _, x in runs], 0)
                kind = "with twins" if matched else "one class each"
                more = "" if loud == 1 else f", harmful {loud:g}x"
                print(f"| {kind} | {n} | {shape}{more} | {rate.cells()} |", flush=True)


def power(repetitions: int) -> None:
    print("| intents | n | noise | rotation found at 80 %, site | over 4 layers |")
    print("|---|---|---|---|---|")
    degrees = np.array([0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24])
    for matched in (True, False):
        for n in (32, 128):
            for shape in ("isotropic", "decaying"):
                found = []
                for turn in degrees:
                    world = World(design_of(n, matched), shape, degrees=float(turn))
                    tests = [world.run(seed)[0] for seed in range(repetitions)]
                    found.append(Rate.of(tests, [None], 0))
                    if min(found[-1].site, found[-1].layers) > 0.95:
                        break
                at = [
                    f"{np.interp(0.8, [getattr(f, k) for f in found], degrees[: len(found)]):.1f}°"
                    for k in ("site", "layers")
                ]
                kind = "with twins" if matched else "one class each"
                print(f"| {kind} | {n} | {shape} | {at[0]} | {at[1]} |", flush=True)


# --- one real model against itself --------------------------------------------------------


class Layers:
    """All layers of a capture at the position chosen on it, intents with twins side by side."""

    def __init__(self, path: Path, site: Site | None = None) -> None:
        with Capture.open(path) as capture:
            self.site = site or choose_site(capture, "resid_pre").site
            self.layers, self.dtype = capture.layers, capture.provenance.model.dtype
            place = capture.positions.offsets.index(self.site.position)
            labels, prompts = capture.labels, capture.prompts
            order = sorted(range(len(labels)), key=lambda i: (prompts[i].intent_id, labels[i]))
            pairs = np.array(order).reshape(-1, 2)
            assert np.array_equal(labels[pairs], np.tile([0, 1], (len(pairs), 1)))
            self.n = len(pairs)
            self.values = [
                capture.read("resid_pre", layer=layer)[pairs, place].astype(np.float64)
                for layer in self.layers
            ]

    def of(self, layer: int, intents: np.ndarray) -> np.ndarray:
        x = self.values[layer][intents]
        return x.reshape(-1, x.shape[-1])


def compare(
    base: Layers, tuned: Layers, left: np.ndarray, right: np.ndarray, seed: int, **limits: float
) -> tuple[DriftTest, bool | None]:
    """Test base on some intents against tuned on as many."""
    design = design_of(len(left), matched=True)
    test = SignFlipTest(design, draws=DRAWS, seed=seed, **limits)
    turned = None
    for index, layer in enumerate(base.layers):
        site = Site(hook="resid_pre", layer=layer, position=base.site.position)
        b, t = base.of(index, left), tuned.of(index, right)
        test.add(site, b, t)
        if layer == base.site.layer:
            turned = leaves_out_one(design, b, t)
    return test.result(), turned


def real_halves(layers: Layers, pairs: int) -> None:
    print("| n in each half | p at the site | p over layers | rotation | not estimable |")
    print("|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    index = layers.layers.index(layers.site.layer)
    for n in (16, 32, layers.n // 2):
        runs = []
        for seed in range(pairs):
            drawn = rng.permutation(layers.n)[: 2 * n]
            runs.append(compare(layers, layers, drawn[:n], drawn[n:], seed))
        rate = Rate.of([t for t, _ in runs], [x for _, x in runs], index)
        print(f"| {n} | {rate.cells()} |", flush=True)


def precision(base: Layers, tuned: Layers, pairs: int) -> None:
    n = base.n // 2
    index = base.layers.index(base.site.layer)
    design = design_of(base.n, matched=True)
    loss = []
    for i in range(len(base.layers)):
        c = Contrasts.of(design, base.of(i, np.arange(base.n)), tuned.of(i, np.arange(base.n)))
        good = c.base.corrected > 0 and c.tuned.corrected > 0
        cos = c.cross.corrected / np.sqrt(c.base.corrected * c.tuned.corrected) if good else np.nan
        loss.append(1 - cos)
    print(
        f"1 − corrected cosine, {base.dtype} to {tuned.dtype}, {base.n} intents: "
        f"{loss[index]:.1e} at {base.site}, at most {np.nanmax(np.abs(loss)):.1e} at any layer\n"
    )
    print("| limit | size at the site | p at the site | p over layers |")
    print("|---|---|---|---|")
    limits = [{}, *({"floor": x} for x in (2**-8, 0.02, 0.05))]
    limits += [{"rounding": x} for x in (2**-9, 2**-8)]
    for limit in limits:
        tests = []
        for seed in range(pairs):
            some = np.random.default_rng(seed).permutation(base.n)[:n]
            tests.append(compare(base, tuned, some, some, seed, **limit)[0])
        rate = Rate.of(tests, [None], index)
        size = np.median([t.by_layer[index].size or 0.0 for t in tests])
        name = ", ".join(f"{k} {v:.4f}" for k, v in limit.items()) or "none"
        print(f"| {name} | {size:.4f} | {rate.site:.3f} | {rate.layers:.3f} |", flush=True)


PARTS = ("simulation", "halves", "precision", "power")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m+aligned")
    parser.add_argument("--capture", type=Path)
    parser.add_argument("--precision-capture", type=Path, nargs=2, metavar=("F32", "BF16"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--power-repetitions", type=int, default=100)
    args = parser.parse_args()
    started = time.perf_counter()
    print(f"{time.strftime('%Y-%m-%d')}: share of repetitions with drift found at {LEVEL:.0%}")
    if "simulation" in args.parts:
        print(f"\nSimulation without change, {args.repetitions} repetitions, 4 layers\n")
        simulation(args.repetitions)
    if {"halves", "precision"} & set(args.parts):
        with tempfile.TemporaryDirectory() as store:
            real(args, store)
    if "power" in args.parts:
        print(f"\nPower, {args.power_repetitions} repetitions: direction 6 noise SDs long\n")
        power(args.power_repetitions)
    print(f"\n{time.perf_counter() - started:.0f} s")


def real(args: argparse.Namespace, store: str) -> None:
    capture = args.capture or extract(args.model, store=store).path
    layers = Layers(capture)
    if "halves" in args.parts:
        print(f"\n{args.model} against itself, {args.pairs} pairs of halves, {layers.site}\n")
        real_halves(layers, args.pairs)
    if "precision" in args.parts:
        paths = args.precision_capture or [
            extract(
                args.model, limit=PRECISION_INTENTS, store=store, options=LoadOptions(dtype=dtype)
            ).path
            for dtype in ("float32", "bfloat16")
        ]
        print(f"\n{args.model} in two precisions, {args.pairs} halves of the intents\n")
        precision(*(Layers(path, layers.site) for path in paths), args.pairs)


if __name__ == "__main__":
    main()
