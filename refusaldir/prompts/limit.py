"""Taking a small, balanced, representative and always equal part of a prompt set."""

from collections import Counter
from collections.abc import Sequence

from refusaldir.errors import PromptError
from refusaldir.prompts.schema import Prompt, PromptSet


def spread_head(prompts: PromptSet, limit: int) -> PromptSet:
    """Take the first prompts of each class, spread over splits and categories.

    Twins are taken together or not at all. Within a split the first prompts of every category
    come first, then the second ones, and so on; the splits keep their proportions. Without
    splits and categories this is the plain head of each class. A class that has fewer than
    ``limit`` prompts sets the number for the other one too.

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
    for unit in _ranked(_units(prompts)):
        wanted = Counter(prompt.label for prompt in unit)
        if all(count <= room[label] for label, count in wanted.items()):
            taken.update(prompt.id for prompt in unit)
            for label, count in wanted.items():
                room[label] -= count
    kept = tuple(prompt for prompt in prompts if prompt.id in taken)
    return PromptSet(prompts.name, kept, prompts.notes)


def _units(prompts: PromptSet) -> list[list[Prompt]]:
    """Group twins; a prompt without twin is a unit of its own. In order of first appearance."""
    by_id = {prompt.id: prompt for prompt in prompts}
    unit_of: dict[str, list[Prompt]] = {}
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


def _ranked(units: Sequence[list[Prompt]]) -> list[list[Prompt]]:
    """Order units so that any head of the list is spread over splits and categories."""
    strata: dict[tuple[object, object], list[list[Prompt]]] = {}
    for unit in units:
        kind = "+".join(sorted(prompt.label for prompt in unit))
        strata.setdefault((unit[0].split, kind), []).append(unit)
    ranked: list[tuple[float, int, list[Prompt]]] = []
    for stratum in strata.values():
        seen: Counter[str] = Counter()
        rounds = []
        for order, unit in enumerate(stratum):
            rounds.append((seen[unit[0].category], order, unit))
            seen[unit[0].category] += 1
        rounds.sort(key=lambda item: item[:2])
        for rank, (_, _, unit) in enumerate(rounds):
            ranked.append(((rank + 0.5) / len(stratum), len(ranked), unit))
    return [unit for _, _, unit in sorted(ranked, key=lambda item: item[:2])]
