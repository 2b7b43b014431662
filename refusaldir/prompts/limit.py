"""Taking a small, balanced, representative and always equal part of a prompt set."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from refusaldir.errors import PromptError
from refusaldir.prompts.schema import Prompt, PromptSet

_Unit = list[Prompt]  # Twins, or one prompt without twin.
_Intent = list[_Unit]


def spread_head(prompts: PromptSet, limit: int) -> PromptSet:
    """Take the first prompts of each class, spread over splits and categories.

    Twins are taken together or not at all, and all framings of an intent while there is room.
    Within a split the first intents of every category come first, then the second ones, and so
    on; the splits keep their proportions. Without splits and categories this is the plain head of
    each class. A class that has fewer than ``limit`` prompts sets the number for the other one
    too.

    Args:
        prompts: The set.
        limit: At most this many prompts of each class.

    Returns:
        The prompts taken, in their order in ``prompts``.

    Raises:
        PromptError: ``limit`` is below 1.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise PromptError("A limit on prompts must be at least 1 of each class", got=repr(limit))
    there = Counter(prompt.label for prompt in prompts)
    room = dict.fromkeys(there, min(limit, *there.values()) if there else 0)
    taken: set[str] = set()
    for unit in chain.from_iterable(_ranked(_intents(prompts))):
        wanted = Counter(prompt.label for prompt in unit)
        if all(count <= room[label] for label, count in wanted.items()):
            taken.update(prompt.id for prompt in unit)
            for label, count in wanted.items():
                room[label] -= count
    kept = tuple(prompt for prompt in prompts if prompt.id in taken)
    return PromptSet(prompts.name, kept, prompts.notes)


def _intents(prompts: PromptSet) -> list[_Intent]:
    """Group the twins of an intent, in order of first appearance."""
    intents: dict[str, _Intent] = {}
    for unit in _units(prompts):
        intents.setdefault(unit[0].intent_id, []).append(unit)
    return list(intents.values())


def _units(prompts: PromptSet) -> list[_Unit]:
    """Group twins; a prompt without twin is a unit of its own. In order of first appearance."""
    by_id = {prompt.id: prompt for prompt in prompts}
    unit_of: dict[str, _Unit] = {}
    for prompt in prompts:
        unit = unit_of.setdefault(prompt.id, [prompt])
        if prompt.twin_of not in by_id:
            continue
        other = unit_of.get(prompt.twin_of, [by_id[prompt.twin_of]])
        if other is not unit:
            unit.extend(other)
            unit_of.update((member.id, unit) for member in other)
    units = {id(unit): unit for unit in (unit_of[prompt.id] for prompt in prompts)}
    return list(units.values())


def _ranked(intents: Sequence[_Intent]) -> list[_Intent]:
    """Order intents so that any head of the list is spread over splits and categories."""
    strata: dict[tuple[object, object], list[_Intent]] = {}
    for intent in intents:
        kind = "+".join(sorted(prompt.label for unit in intent for prompt in unit))
        strata.setdefault((intent[0][0].split, kind), []).append(intent)
    ranked: list[tuple[float, int, _Intent]] = []
    for stratum in strata.values():
        seen: Counter[str] = Counter()
        rounds = []
        for order, intent in enumerate(stratum):
            category = intent[0][0].category
            rounds.append((seen[category], order, intent))
            seen[category] += 1
        rounds.sort(key=lambda item: item[:2])
        for rank, (_, _, intent) in enumerate(rounds):
            ranked.append(((rank + 0.5) / len(stratum), len(ranked), intent))
    return [intent for _, _, intent in sorted(ranked, key=lambda item: item[:2])]
