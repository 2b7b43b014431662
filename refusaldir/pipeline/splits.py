"""Which of a set's prompts make directions, which score them, and which are left for a test."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from refusaldir.directions.reader import MIN_INTENTS, clusters_of, enough_intents
from refusaldir.errors import PromptError
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.progress import ProgressFn
from refusaldir.prompts.schema import Prompt, PromptSet
from refusaldir.records import HARMFUL, HARMLESS

if TYPE_CHECKING:
    from refusaldir.models.bridge import HookedModel

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Indices of the prompts that make directions and of those that score them.

    Attributes:
        train: Prompts that make directions.
        validation: Prompts that score them.
        how: How they were told apart, in words.
    """

    train: Indices
    validation: Indices
    how: str

    @classmethod
    def of(cls, prompts: Sequence[Prompt] | PromptSet, labels: Indices, seed: int) -> "Split":
        """The set's own split, else four fifths and one fifth of the intents.

        Raises:
            DirectionError: There are too few intents of a class.
        """
        train, validation = rows_of(prompts, "train"), rows_of(prompts, "validation")
        if all(enough_intents(prompts, labels, part) for part in (train, validation)):
            return cls(train=train, validation=validation, how="the set's own splits")
        fold = clusters_of(prompts, labels).folds(5, seed)
        return cls(
            train=np.flatnonzero(fold != 0),
            validation=np.flatnonzero(fold == 0),
            how=f"no splits in the set: a fifth of the intents validates (seed {seed})",
        )

    def filtered(
        self,
        model: "HookedModel",
        material: Material,
        refusal_tokens: Collection[int],
        batch_size: int | None,
        progress: ProgressFn,
    ) -> "Split":
        """Leave out harmful prompts the model would answer and harmless ones it would refuse.

        Raises:
            PromptError: Too few of a class are left.
        """
        from refusaldir.refusal_score import refusal_scores

        labels = material.labels
        both = np.concatenate([self.train, self.validation])
        progress("Score prompts", 0, len(both))
        found = refusal_scores(model, material.ids(both), refusal_tokens, batch_size=batch_size)
        progress("Score prompts", len(both), len(both))
        good = both[(found > 0) == (labels[both] == HARMFUL)]
        kept = replace(
            self,
            train=self.train[np.isin(self.train, good)],
            validation=self.validation[np.isin(self.validation, good)],
        )
        for name, part in (("training", kept.train), ("validation", kept.validation)):
            for label, side in ((HARMFUL, "harmful"), (HARMLESS, "harmless")):
                count = int((labels[part] == label).sum())
                if count < MIN_INTENTS:
                    raise PromptError(
                        f"Too few {side} {name} prompts are left after the model's own refusals "
                        "decided which to keep",
                        expected=f"at least {MIN_INTENTS}",
                        got=count,
                        where=material.provenance.model.name,
                        next_step="Use --no-filter, more prompts, or a model that refuses",
                    )
        return kept

    def at_most(self, count: int, labels: Indices, seed: int) -> "Split":
        """At most so many validation prompts a class, drawn by the seed."""
        order = np.random.default_rng(seed).permutation(self.validation)
        parts = [order[labels[order] == label][:count] for label in (HARMFUL, HARMLESS)]
        return replace(self, validation=np.sort(np.concatenate(parts)))


def rows_of(prompts: Iterable[Prompt], split: str) -> Indices:
    """Indices of the prompts of one of a set's own splits."""
    return np.flatnonzero([prompt.split == split for prompt in prompts])


def held_out(prompts: Iterable[Prompt], train: Collection[str]) -> tuple[Indices, str]:
    """Prompts to try a direction on, none of which made it, and what they are, in words.

    Args:
        prompts: The prompts.
        train: Ids of those that made it.
    """
    given = list(prompts)
    test = rows_of(given, "test")
    if len(test):
        return test, "the set's test split"
    rest = np.flatnonzero([prompt.id not in train for prompt in given])
    return rest, "the prompts that the selection validated on"
