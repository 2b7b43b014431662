"""Is the verdict the same on other prompts? Five disjoint subsets of intents, compared.

    python tests/benchmarks/stability.py base.h5 tuned.h5 [--subsets 5] [--seed 0]

Each subset gets a comparison of its own: its own site, its own findings, its own ranking of
layers. Reported are, over the subsets: the kinds of drift found and how often, with which sign;
the site; the layer where rotation is first detectable; and the agreement of the drift curves
over layers (mean Spearman correlation of 1 − cos*, and Kendall's W of the ranks). A control
shows what agreement means nothing: the same with each subset's layers shuffled.
"""

import argparse
import datetime
import itertools
from collections import Counter

import numpy as np
from scipy import stats

from refusaldir.directions.reader import clusters_of
from refusaldir.drift.comparable import Rows, require_comparable
from refusaldir.drift.compare import compare
from refusaldir.records import Site
from refusaldir.store import Capture


def kinds(result):
    """Kind and sign of every finding detected."""
    null = {"rotation": 1.0, "norm": 1.0}
    return {
        f"{f.kind} {'+' if f.estimate.value > null.get(f.kind, 0.0) else '−'}"
        for f in result.findings
        if f.detected
    }


def concordance(ranks):
    """Kendall's W of ``[subset layer]`` ranks: 1 is full agreement."""
    m, n = ranks.shape
    totals = ranks.sum(axis=0)
    return float(12 * np.sum((totals - totals.mean()) ** 2) / (m**2 * (n**3 - n)))


def agreement(curves):
    """Mean Spearman correlation between subsets, and Kendall's W."""
    pairs = [stats.spearmanr(a, b).statistic for a, b in itertools.combinations(curves, 2)]
    return float(np.mean(pairs)), concordance(np.apply_along_axis(stats.rankdata, 1, curves))


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("tuned")
    parser.add_argument("--subsets", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hook", default="resid_pre")
    parser.add_argument("--site", nargs=2, type=int, metavar=("LAYER", "POSITION"))
    args = parser.parse_args()
    site = None
    if args.site is not None:
        site = Site(hook=args.hook, layer=args.site[0], position=args.site[1])
    with Capture.open(args.base) as base, Capture.open(args.tuned) as tuned:
        pair = require_comparable(base, tuned, args.hook, allow_dtype_mismatch=True)
        clusters = clusters_of(pair.base.prompts, pair.base.labels)
        fold = clusters.folds(args.subsets, args.seed)
        print(f"{datetime.date.today()}, {clusters.n} intents in {args.subsets} disjoint subsets\n")
        print("| subset | intents | site | drift found | first layer | 1 − cos* at the site |")
        print("| --- | --- | --- | --- | --- | --- |")
        found, curves, sites = Counter(), [], Counter()
        layers = None
        for subset in range(args.subsets):
            rows = np.flatnonzero(fold == subset)
            result = compare(Rows(pair.base, rows), Rows(pair.tuned, rows), hook=args.hook,
                             site=site, seed=args.seed, allow_dtype_mismatch=True)  # fmt: skip
            these = kinds(result)
            found.update(these)
            sites[str(result.site.site)] += 1
            drift = {e.layer: e.drift for e in result.ranking}
            layers = set(drift) if layers is None else layers & set(drift)
            curves.append(drift)
            first = min((k for k, e in drift.items() if e.lower > 1e-5), default=None)
            cos = result.at_site.rotation
            print(
                f"| {subset + 1} | {result.n_clusters} | {result.site.site} | "
                f"{', '.join(sorted(these)) or 'none'} | {first} | {1 - cos.value:.3f} "
                f"[{1 - cos.upper:.3f}, {1 - cos.lower:.3f}] |",
                flush=True,
            )
        order = sorted(layers)
        values = np.array([[c[k].value for k in order] for c in curves])
        rho, w = agreement(values)
        rng = np.random.default_rng(args.seed)
        shuffled = agreement(np.array([rng.permutation(v) for v in values]))
        times = [f"{kind} in {n} of {args.subsets}" for kind, n in found.most_common()]
        print(f"\nkinds found: {', '.join(times)}")
        print(f"sites: {dict(sites)}")
        print(
            f"curves over {len(order)} layers: mean Spearman correlation {rho:.3f}, Kendall's W "
            f"{w:.3f}; layers shuffled: {shuffled[0]:.3f}, {shuffled[1]:.3f}"
        )


if __name__ == "__main__":
    main()
