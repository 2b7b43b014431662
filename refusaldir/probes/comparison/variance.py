"""Where replies differ: between intents, prompts, temperatures, seeds, and from reply to reply.

A reply's outcome (or the change of it) is a sum of random effects::

    y = μ + intent + prompt + temperature + prompt × temperature + seed + reply

with prompts nested in intents, seeds (whole repetitions of a run) in temperatures, and replies in
all of them. Half the mean squared difference of two replies is the sum of the components in which
they differ, so that pairs which share just the prompt and the seed, just the intent, … give one
equation each, and their differences the components (Koch 1967, Technometrics 9:93). These moments
are without bias whatever the distribution and however unequal the numbers; one of a component
that is near 0 may fall below it and is left as it is. Replies vary more at a higher temperature,
so every equation is set up at each temperature and then averaged, temperatures weighing alike.

The intervals leave out one intent at a time. Temperatures and seeds are those that were run: the
intervals do not speak of others.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray

from refusaldir.errors import ProbeError
from refusaldir.records import Estimate
from refusaldir.statistics import Clusters, jackknife

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class VarianceComponents:
    """Variances of the random effects; None where the design cannot tell one.

    Attributes:
        intents: Between intents. None where no intent has two prompts.
        prompts: Between prompts of one intent, and between intents where those cannot be told
            apart.
        prompt_by_temperature: How much more prompts differ in what a temperature does to them.
            None with one temperature, and then part of ``prompts``.
        temperatures: Between the temperatures, over all prompts.
        seeds: Between whole repetitions of a run, over all prompts. None with one seed.
        replies: From reply to reply of one prompt at one temperature above 0.
        n: Replies.
        n_prompts: Prompts.
        n_intents: Intents.
        level: Nominal coverage of the intervals.
        note: What could not be told, and why.
    """

    intents: Estimate | None
    prompts: Estimate | None
    prompt_by_temperature: Estimate | None
    temperatures: Estimate | None
    seeds: Estimate | None
    replies: Estimate | None
    n: int
    n_prompts: int
    n_intents: int
    level: float
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def variance_components(
    values: ArrayLike,
    *,
    intents: Sequence[Hashable],
    prompts: Sequence[Hashable],
    temperatures: Sequence[float],
    seeds: Sequence[int],
    level: float = 0.95,
) -> VarianceComponents:
    """Split the variance of replies into its components.

    Args:
        values: One figure a reply, e.g. refused (0 or 1), ``[reply]``.
        intents: Intent of each reply's prompt.
        prompts: Prompt of each reply.
        temperatures: Temperature of each reply; at 0 replies do not vary.
        seeds: Seed of the repetition each reply belongs to.
        level: Nominal coverage of the intervals.

    Raises:
        ProbeError: There is no reply, or not one of everything for each.
    """
    y = np.asarray(values, dtype=np.float64)
    columns = (intents, prompts, temperatures, seeds)
    if y.ndim != 1 or not len(y) or any(len(column) != len(y) for column in columns):
        raise ProbeError(
            "variance components need one value, intent, prompt, temperature and seed a reply",
            expected=f"{y.size} of each",
            got=", ".join(str(len(column)) for column in columns),
        )
    sums = _Sums(y, intents, prompts, temperatures, seeds)
    clusters = sums.intents
    found = sums.components()

    def estimate(name: str) -> Estimate | None:
        column = found[name]
        if not np.isfinite(column[0]):
            return None
        return jackknife(float(column[0]), column[1:], clusters, level=level)

    lacking = {
        "intents": "no intent has two prompts, so that intents and prompts are one component",
        "prompt_by_temperature": "one temperature only",
        "seeds": "one seed only",
        "replies": "one reply a prompt and temperature",
    }
    return VarianceComponents(
        **{name: estimate(name) for name in found},
        n=len(y),
        n_prompts=sums.prompts.n,
        n_intents=clusters.n,
        level=level,
        note="; ".join(why for name, why in lacking.items() if not np.isfinite(found[name][0])),
    )


class _Sums:
    """Half sums of squared differences and numbers of pairs, of all and with an intent left out.

    Of a group, ``n Σy² − (Σy)²`` is half the sum over ordered pairs and n² their number (a
    value with itself adds 0 and is subtracted with the smaller groups). Arrays are ``[unit, cell,
    3]`` with n, Σy, Σy² last; a cell is one temperature and seed.
    """

    def __init__(
        self,
        y: FloatArray,
        intents: Sequence[Hashable],
        prompts: Sequence[Hashable],
        temperatures: Sequence[float],
        seeds: Sequence[int],
    ) -> None:
        keys = list(zip(temperatures, seeds, strict=True))
        cells = sorted(set(keys))
        index = {cell: i for i, cell in enumerate(cells)}
        code = np.array([index[key] for key in keys])
        self.levels = sorted(set(temperatures))
        #: Cells of each temperature.
        self.at = [[i for i, (t, _) in enumerate(cells) if t == level] for level in self.levels]
        names = list(zip(intents, prompts, strict=True))
        self.prompts = Clusters.of(names)
        of_prompt = dict(zip(self.prompts.codes.tolist(), intents, strict=True))
        self.intents = Clusters.of([of_prompt[code] for code in range(self.prompts.n)])
        moments = np.stack([np.ones_like(y), y, y**2], axis=1)
        spread = np.zeros((len(y), len(cells), 3))
        spread[np.arange(len(y)), code] = moments
        self.of_prompt = self.prompts.sums(spread)
        self.of_intent = self.intents.sums(self.of_prompt)
        self.of_all = _left(self.of_intent)

    def _within(self, of_prompt: bool, *cells: int) -> FloatArray:
        """Pairs within each prompt or intent over some cells, summed: ``[left, 2]``."""
        if of_prompt:
            return _left(self.intents.sums(_pairs(self.of_prompt[:, list(cells)].sum(axis=1))))
        return _left(_pairs(self.of_intent[:, list(cells)].sum(axis=1)))

    def _all(self, *cells: int) -> FloatArray:
        """Pairs of all replies in some cells: ``[left, 2]``."""
        return _pairs(self.of_all[:, list(cells)].sum(axis=1))

    def components(self) -> dict[str, FloatArray]:
        """Each component: first of all intents, then with each left out, ``[1 + intent]``."""
        replies, seeds, between, intents, apart = [], [], [], [], []
        for temperature, cells in zip(self.levels, self.at, strict=True):
            cell_prompt = _added(self._within(True, cell) for cell in cells)
            cell_intent = _added(self._within(False, cell) for cell in cells)
            cell_all = _added(self._all(cell) for cell in cells)
            prompt, intent = self._within(True, *cells), self._within(False, *cells)
            whole = self._all(*cells)
            single = _left(self.intents.sums(_singles(self.of_prompt[:, cells].sum(axis=1))))
            same_seed = _ratio(cell_all - cell_intent)
            other_seed = _ratio((whole - cell_all) - (intent - cell_intent))
            seed = other_seed - same_seed
            reply = _ratio(cell_prompt - single)
            if not np.isfinite(reply[0]):  # one reply a seed: seeds are the repetitions
                reply = _ratio(prompt - cell_prompt) - seed
            if temperature == 0:
                reply = np.zeros_like(seed)
            else:
                replies.append(reply)
            seeds.append(seed)
            between.append(same_seed - reply)
            intents.append(same_seed - _ratio(cell_intent - cell_prompt))
            apart.append(np.where(np.isfinite(other_seed), other_seed, same_seed))
        temperatures, crossed = self._across(replies, seeds, apart)
        of_intents, of_crossed = _average(intents), _average(crossed)
        prompts = _average(between)
        for part in (of_intents, of_crossed):
            prompts = prompts - np.where(np.isfinite(part), part, 0)
        return {
            "intents": of_intents,
            "prompts": prompts,
            "prompt_by_temperature": of_crossed,
            "temperatures": _average(temperatures),
            "seeds": _average(seeds),
            "replies": _average(replies),
        }

    def _across(
        self, replies: list[FloatArray], seeds: list[FloatArray], apart: list[FloatArray]
    ) -> tuple[list[FloatArray], list[FloatArray]]:
        """Between temperatures, of all prompts and beyond that of each."""
        greedy = self.levels[0] == 0
        noise = [np.zeros_like(seeds[0]), *replies] if greedy else replies
        main, crossed = [], []
        for i, j in combinations(range(len(self.levels)), 2):
            a, b = self.at[i], self.at[j]
            whole = _between(self._all, a, b) - _between(partial(self._within, False), a, b)
            effect = _ratio(whole) - (apart[i] + apart[j]) / 2
            within = _ratio(_between(partial(self._within, True), a, b))
            alone = (noise[i] + noise[j]) / 2
            both = np.nan_to_num(seeds[i]) + np.nan_to_num(seeds[j])
            main.append(effect)
            crossed.append(within - alone - both / 2 - effect)
        return main, crossed


def _left(values: Float[np.ndarray, " unit *rest"]) -> FloatArray:
    """The sum over all units, then over all but each."""
    total: FloatArray = values.sum(axis=0, keepdims=True)
    return np.concatenate([total, total - values])


def _between(pairs: Callable[..., FloatArray], a: list[int], b: list[int]) -> FloatArray:
    """Pairs of one reply in some cells and one in others."""
    return pairs(*a, *b) - pairs(*a) - pairs(*b)


def _added(parts: Iterable[FloatArray]) -> FloatArray:
    out: FloatArray = np.sum(list(parts), axis=0)
    return out


def _pairs(moments: Float[np.ndarray, "unit 3"]) -> FloatArray:
    n, total, square = moments.T
    return np.stack([n * square - total**2, n**2], axis=1)


def _singles(moments: Float[np.ndarray, "unit 3"]) -> FloatArray:
    """Each value with itself: no difference, one pair."""
    return np.stack([np.zeros(len(moments)), moments[:, 0]], axis=1)


def _ratio(pairs: Float[np.ndarray, "left 2"]) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs[:, 1] > 0.5, pairs[:, 0] / pairs[:, 1], np.nan)


def _average(columns: Sequence[FloatArray]) -> FloatArray:
    """Mean over those that the design can tell."""
    known = [column for column in columns if np.isfinite(column[0])]
    if not known:
        return np.full(len(columns[0]) if columns else 1, np.nan)
    out: FloatArray = np.mean(known, axis=0)
    return out
