"""Drift statistics against the obvious way, in one run on the same arrays.

    python tests/benchmarks/bench_drift.py [--layers 30] [--positions 5] [--prompts 576] [--d 576]

The obvious way gets the jackknife variance of the corrected cosine by recomputing it from the
raw activations with one intent left out at a time. Both must give the same cosine and, but for
what the second-order term takes off, the same error; the script fails when they do not. Times are
wall clock on this machine; only their ratio is worth quoting.

    python tests/benchmarks/bench_drift.py --layers 80 --prompts 1000 --d 8192

is the size of the largest open models; 2,000 draws stand behind every band.
"""

import argparse
import resource
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from refusaldir.directions.reader import clusters_of
from refusaldir.drift.compare import compare
from refusaldir.drift.contrasts import Contrasts, Design
from refusaldir.drift.rotation import rotation
from refusaldir.records import ModelIdentity, Positions, Provenance, TemplateIdentity


@dataclass
class Synthetic:
    """A capture whose layers are made when they are read, so that memory shows the maths."""

    provenance: Provenance
    prompts: list
    labels: np.ndarray
    layers: tuple
    seed: int
    turn: float
    reading: float = 0.0  # seconds spent making values

    @property
    def hooks(self):
        return self.provenance.hooks

    @property
    def positions(self):
        return self.provenance.positions

    def read(self, hook, *, layer):
        start = time.perf_counter()
        d, n = self.provenance.model.d_model, len(self.labels)
        pos = len(self.positions.offsets)
        shared = np.random.default_rng(layer).standard_normal((n, pos, d), dtype=np.float32)
        own = np.random.default_rng((self.seed, layer)).standard_normal(
            (n, pos, d), dtype=np.float32
        )
        r = np.zeros(d, dtype=np.float32)
        r[0], r[1] = 6 * np.cos(self.turn), 6 * np.sin(self.turn)
        values = shared + 0.5 * own
        values += (self.labels[:, None] - 0.5)[..., None].astype(np.float32) * r
        self.reading += time.perf_counter() - start
        return values


def synthetic(name, args, turn):
    n, k = args.prompts, args.positions
    prompts = [
        SimpleNamespace(id=f"p{i}", intent_id=f"i{i // 2}", split=None, turns=(), category="any")
        for i in range(n)
    ]
    model = ModelIdentity(
        spec=name, name=name, weights_hash=name, architecture="Synthetic", n_layers=args.layers,
        d_model=args.d, vocab_size=1, dtype="float32",
    )  # fmt: skip
    offsets = tuple(range(-k, 0))
    provenance = Provenance(
        model=model,
        template=TemplateIdentity(tokenizer_hash="", template_hash="", post_tokens=()),
        prompts_name="synthetic",
        prompts_hash="",
        rendered_hash="",
        hooks=("resid_pre",),
        layers=tuple(range(args.layers)),
        positions=Positions(offsets=offsets, labels=tuple(map(str, offsets))),
        versions={},
        created="",
    )
    return Synthetic(
        provenance=provenance,
        prompts=prompts,
        labels=np.arange(n, dtype=np.int64) % 2,
        layers=provenance.layers,
        seed=len(name),
        turn=turn,
    )


def obvious(base, tuned, labels, codes):
    """Corrected cosine and its jackknife error, from scratch for every intent left out."""

    def cosine(b, t, y, c):
        def inner(u, v):
            means = [[x[y == k].mean(axis=0) for k in (0, 1)] for x in (u, v)]
            r = [m[1] - m[0] for m in means]
            pairs = len(np.unique(c))  # every intent is one harmful and one harmless prompt
            gaps = [
                x[y == 1][np.argsort(c[y == 1])] - x[y == 0][np.argsort(c[y == 0])] for x in (u, v)
            ]
            noise = sum(((gaps[0] - r[0]) * (gaps[1] - r[1])).sum(axis=1)) / (pairs - 1) / pairs
            return r[0] @ r[1] - noise

        return inner(b, t) / np.sqrt(inner(b, b) * inner(t, t))

    value = cosine(base, tuned, labels, codes)
    n = codes.max() + 1
    left = np.array(
        [
            cosine(base[codes != c], tuned[codes != c], labels[codes != c], codes[codes != c])
            for c in range(n)
        ]
    )
    return value, np.sqrt((n - 1) / n * np.sum((left - left.mean()) ** 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 30), ("positions", 5), ("prompts", 576), ("d", 576)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    base, tuned = synthetic("base", args, 0.0), synthetic("tuned", args, 0.6)

    base.read("resid_pre", layer=0)  # what a layer costs in memory is paid before measuring
    base.reading = 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    result = compare(base, tuned)
    whole = time.perf_counter() - start - base.reading - tuned.reading
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    clusters = clusters_of(base.prompts, base.labels)
    design = Design(base.labels, clusters, clusters.folds(10))
    b, t = (c.read("resid_pre", layer=1)[:, 0].astype(np.float64) for c in (base, tuned))
    start = time.perf_counter()
    repeats = 10 if args.d <= 1024 else 1
    for _ in range(repeats):
        ours, deviations = rotation(Contrasts.of(design, b, t))
    closed = (time.perf_counter() - start) / repeats
    start = time.perf_counter()
    theirs = obvious(b, t, base.labels, clusters.codes)
    brute = time.perf_counter() - start
    np.testing.assert_allclose(ours.value, theirs[0], rtol=1e-9)
    first = float(np.sqrt(np.sum(deviations.first**2)))
    np.testing.assert_allclose(first, theirs[1], rtol=0.02)  # linear in the norms
    second = float(np.sqrt(deviations.variance))

    sites = args.layers * args.positions
    layer_mb = args.prompts * args.positions * args.d * 4 / 2**20
    print(f"{args.layers} layers x {args.positions} positions x {args.prompts} prompts x {args.d}")
    print(f"all drift statistics, every interval: {whole:.1f} s ({len(result.grid)} sites)")
    print(f"memory on top of reading: {(after - before) / 1024:.0f} MiB (a layer: {layer_mb:.1f})")
    print(f"one site, cosine and interval: closed form {1e3 * closed:.1f} ms")
    print(f"the same by leaving out and recomputing: {1e3 * brute:.0f} ms, equal to 1e-9")
    print(f"error {second:.2e}, of which leaving out alone would say {first:.2e}")
    print(f"ratio: {brute / closed:.0f}x; that way alone {sites} sites take {brute * sites:.0f} s")


if __name__ == "__main__":
    main()
