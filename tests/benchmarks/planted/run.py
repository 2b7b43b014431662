"""Lenses and rivals on every pair, and the table of how they did.

    python -m tests.benchmarks.planted.run [--pairs NAME …] [--lenses rivals path …] [--prompts 32]

Measurements are kept per pair and lens in ``planted/measured`` of the cache, and those that are
there are not made again; scores are worked out anew from them each time. Prompts are those of the
contrast set's test split, spread over its categories: pairs were made on the validation split.
"""

import argparse
import sys
import time

import numpy as np

from refusaldir.directions.mean_diff import mean_diff
from refusaldir.geometry import unit
from refusaldir.probes.refusal_tokens import given_refusal_tokens
from refusaldir.prompts.load import load_prompts
from refusaldir.prompts.render import ChatRenderer
from refusaldir.records import Site
from refusaldir.statistics import Clusters

from . import lenses, rivals, score
from .bands import BASE, N_LAYERS
from .pairs import read_pairs, root
from .refusal import REFUSAL_TOKENS

RIVALS = "rivals"
GROUPS = (RIVALS, lenses.RESIDUAL_KEY, lenses.PATH_KEY, lenses.SWAP_KEY)


class Bench:
    """Prompts and base activations, the same for every pair."""

    def __init__(self, n_prompts):
        self.n_prompts = n_prompts
        self.prompts = load_prompts("contrast", split="test", limit=n_prompts)
        self.labels = np.asarray(self.prompts.labels)
        self.harmful = np.flatnonzero(self.labels == 1)
        self.intents = [prompt.intent_id for prompt in self.prompts]
        self.clusters = Clusters.of([self.intents[i] for i in self.harmful])
        self.base = None

    def _path(self, pair, group):
        return root() / "measured" / f"{self.n_prompts}" / pair.name / f"{group}.npz"

    def kept(self, pair):
        """What has been measured of a pair, by lens."""
        found = {}
        for group in GROUPS:
            path = self._path(pair, group)
            if path.is_file():
                with np.load(path) as data:
                    found[group] = {key: data[key] for key in data.files}
        return found

    def measure(self, pair, groups):
        """Measure what is not there yet."""
        missing = [group for group in groups if not self._path(pair, group).is_file()]
        if not missing:
            return
        opened = lenses.open_pair(BASE, pair.tuned)
        model = opened.model
        rendered = ChatRenderer(model.tokenizer).render(self.prompts)
        tokens = given_refusal_tokens(model.tokenizer, REFUSAL_TOKENS).ids
        if self.base is None:
            self.base = rivals.activations(model, rendered.ids)
        harmful = [rendered.ids[i] for i in self.harmful]
        direction = unit(mean_diff(self.base[-1], self.labels))
        for group in missing:
            began = time.monotonic()
            if group == RIVALS:
                arrays = self._rivals(pair, opened, rendered.ids, direction)
            elif group == lenses.RESIDUAL_KEY:
                site = Site(hook="resid_post", layer=N_LAYERS - 1, position=-1)
                arrays = lenses.measure_residual(opened, harmful, direction, site)
            elif group == lenses.PATH_KEY:
                arrays = lenses.measure_path(opened, harmful, tokens)
            else:
                arrays = lenses.measure_transplant(opened, harmful, tokens)
            path = self._path(pair, group)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}")
            np.savez(partial, **arrays)
            partial.replace(path)
            sys.stderr.write(f"{pair.name} {group} ({time.monotonic() - began:.0f} s)\n")

    def _rivals(self, pair, opened, sequences, direction):
        opened.set_tuned()
        tuned = rivals.activations(opened.model, sequences)
        opened.set_base()
        found = rivals.activation_rivals(self.base, tuned, self.labels, self.intents)
        found |= rivals.weight_rival(BASE, pair.tuned, N_LAYERS, direction)
        return {name: np.array(entry.scores) for name, entry in found.items()}

    def scores(self, pair):
        """Scores of every lens and rival that was measured."""
        kept = self.kept(pair)
        found = {
            name: score.LayerScores(scores=tuple(values.tolist()))
            for name, values in kept.pop(RIVALS, {}).items()
        }
        return lenses.scores_of(kept, self.clusters, N_LAYERS) | found


def main():
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="*", help="names, or their beginnings (default: all)")
    parser.add_argument("--lenses", nargs="*", choices=GROUPS, default=GROUPS)
    parser.add_argument("--prompts", type=int, default=32, help="of each class")
    args = parser.parse_args()
    pairs = [pair for pair in read_pairs() if pair.holds]
    if args.pairs:
        pairs = [pair for pair in pairs if pair.name.startswith(tuple(args.pairs))]
    bench = Bench(args.prompts)
    scores: dict[str, dict[str, score.LayerScores]] = {}
    for pair in pairs:
        bench.measure(pair, args.lenses)
        for lens, entry in bench.scores(pair).items():
            scores.setdefault(lens, {})[pair.name] = entry
    kinds = {pair.name: pair.kind for pair in pairs}
    bands = {pair.name: pair.band for pair in pairs}
    print(f"{len(pairs)} pairs, {args.prompts} prompts of each class\n")
    print(score.table(scores, kinds, bands))


if __name__ == "__main__":
    main()
