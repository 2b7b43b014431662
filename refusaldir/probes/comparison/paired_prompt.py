"""One prompt put to both models: the share of its replies that refused."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from refusaldir.probes.behaviour import BehaviourRow
from refusaldir.probes.outcomes import FULL_REFUSAL, is_refused

#: Label of a reply, by one judge.
LabelOf: TypeAlias = Callable[[BehaviourRow], str]


def primary_label(row: BehaviourRow) -> str:
    """The label of the first judge."""
    return row.label


@dataclass(frozen=True, kw_only=True)
class TemperatureShares:
    """Shares refused at one temperature, among the replies that could be judged.

    Attributes:
        temperature: The temperature; 0 is greedy.
        base: Share in base, 0 to 1; None when none could be judged.
        tuned: The same in tuned.
        replies: Replies judged, of the model with fewer.
    """

    temperature: float
    base: float | None
    tuned: float | None
    replies: int

    @property
    def usable(self) -> bool:
        """Whether both models have a reply that could be judged."""
        return self.base is not None and self.tuned is not None


@dataclass(frozen=True, kw_only=True)
class PairedPrompt:
    """One prompt, or one user turn of an escalation, put to both models.

    Attributes:
        prompt: A row that describes it.
        base: Base's replies.
        tuned: Tuned's replies.
        label: How a reply is labelled.
    """

    prompt: BehaviourRow
    base: tuple[BehaviourRow, ...]
    tuned: tuple[BehaviourRow, ...]
    label: LabelOf = primary_label

    @cached_property
    def _outcomes(self) -> tuple[dict[float, list[bool | None]], dict[float, list[bool | None]]]:
        """Whether each reply refused, by temperature, in base and in tuned."""
        sides: tuple[dict[float, list[bool | None]], ...] = ({}, {})
        for side, rows in zip(sides, (self.base, self.tuned), strict=True):
            for row in rows:
                side.setdefault(row.temperature, []).append(is_refused(self.label(row)))
        return sides[0], sides[1]

    @cached_property
    def temperatures(self) -> tuple[TemperatureShares, ...]:
        """Shares refused at each temperature that both models have, ascending."""
        base, tuned = self._outcomes
        found = []
        for temperature in sorted(base.keys() & tuned.keys()):
            judged = [[o for o in side[temperature] if o is not None] for side in (base, tuned)]
            found.append(
                TemperatureShares(
                    temperature=temperature,
                    base=_mean(judged[0]) if judged[0] else None,
                    tuned=_mean(judged[1]) if judged[1] else None,
                    replies=min(map(len, judged)),
                )
            )
        return tuple(found)

    @cached_property
    def _usable(self) -> list[TemperatureShares]:
        return [shares for shares in self.temperatures if shares.usable]

    @property
    def usable(self) -> bool:
        """Whether replies of both models could be judged at some temperature."""
        return bool(self._usable)

    @cached_property
    def shares(self) -> tuple[float, float]:
        """Share refused in base and in tuned, temperatures weighing alike."""
        base, tuned = ([getattr(s, arm) for s in self._usable] for arm in ("base", "tuned"))
        return _mean(base), _mean(tuned)

    @cached_property
    def full_shares(self) -> tuple[float, float]:
        """Share refused fully in base and in tuned, over the same replies as `shares`."""
        at = {s.temperature for s in self._usable}
        sides = []
        for rows in (self.base, self.tuned):
            given: dict[float, list[bool]] = {}
            for row in rows:
                said = self.label(row)
                if row.temperature in at and is_refused(said) is not None:
                    given.setdefault(row.temperature, []).append(said == FULL_REFUSAL)
            sides.append(_mean([_mean(full) for full in given.values()]))
        return sides[0], sides[1]

    @cached_property
    def replies(self) -> float:
        """Independent replies that the shares are worth, temperatures weighing alike."""
        return len(self._usable) ** 2 / sum(1 / s.replies for s in self._usable)

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest tuned − base, whatever the replies not judged had been."""
        base, tuned = self._outcomes
        at = [shares.temperature for shares in self.temperatures]
        if not at:
            return -1.0, 1.0
        lowest = [_filled(tuned[t], False) - _filled(base[t], True) for t in at]
        highest = [_filled(tuned[t], True) - _filled(base[t], False) for t in at]
        return _mean(lowest), _mean(highest)

    @property
    def majority(self) -> tuple[bool | None, bool | None]:
        """Whether most replies refused, in base and in tuned; None for a tie."""
        if not self.usable:
            return None, None
        base, tuned = (None if abs(x - 0.5) < 1e-9 else x > 0.5 for x in self.shares)
        return base, tuned

    def at(self, temperature: float) -> "PairedPrompt":
        """The replies at one temperature alone."""
        base, tuned = (
            tuple(row for row in rows if row.temperature == temperature)
            for rows in (self.base, self.tuned)
        )
        return replace(self, base=base, tuned=tuned)

    def labelled(self, label: LabelOf) -> "PairedPrompt":
        """The same replies, labelled otherwise."""
        return replace(self, label=label)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _filled(outcomes: Sequence[bool | None], unknown: bool) -> float:
    return _mean([unknown if outcome is None else outcome for outcome in outcomes])
