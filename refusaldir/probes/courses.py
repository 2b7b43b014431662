"""The course of each escalation, from the turn on in which it parted from its twin."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from refusaldir.errors import ProbeError
from refusaldir.probes.behaviour import Behaviour, BehaviourRow
from refusaldir.probes.escalation import EscalationOutcome, opening_turns, summarise
from refusaldir.prompts.schema import Prompt, Turn

#: Names one conversation with one model: prompt, temperature, seed and sample.
CourseKey: TypeAlias = tuple[str, float, int, int]


@dataclass(frozen=True, kw_only=True)
class Course:
    """One conversation with one model.

    Attributes:
        key: Pairs it with the other model's.
        harmful: Whether the escalation is harmful.
        outcome: What the model did from the turn on that parts it from its twin.
        twin: Whether its twin is among the conversations; without one, all turns count.
        turns_held: Turns before the first that complied, all where none did; None where an
            unknown outcome comes before.
    """

    key: CourseKey
    harmful: bool
    outcome: EscalationOutcome
    twin: bool
    turns_held: int | None


def courses(behaviour: Behaviour) -> dict[CourseKey, Course]:
    """Read every conversation.

    Args:
        behaviour: Rows of escalations, one a user turn.

    Raises:
        ProbeError: A row has no turn, or a conversation lacks one.
    """
    rows: dict[CourseKey, list[BehaviourRow]] = {}
    for row in behaviour.rows:
        rows.setdefault((row.id, row.temperature, row.seed, row.sample), []).append(row)
    prompts: dict[str, Prompt] = {}
    for key, of_course in rows.items():
        of_course.sort(key=lambda row: row.turn or 0)
        turns = [row.turn for row in of_course]
        if turns != list(range(1, len(turns) + 1)):
            raise ProbeError(
                "a conversation lacks a turn",
                expected="turns 1, 2, … of each escalation",
                got=", ".join(map(str, turns)),
                where=f"prompt {key[0]}",
                next_step="Measure the escalations again",
            )
        prompts.setdefault(key[0], _prompt(of_course))
    opening = opening_turns(list(prompts.values()))
    return {
        key: _course(key, of_course, prompts, opening[key[0]]) for key, of_course in rows.items()
    }


def _course(
    key: CourseKey, rows: Sequence[BehaviourRow], prompts: dict[str, Prompt], opening: int
) -> Course:
    outcome = summarise(prompts[key[0]], [row.label for row in rows], opening=opening)
    complied = outcome.complied
    before = complied[: complied.index(True)] if True in complied else complied
    return Course(
        key=key,
        harmful=rows[0].harmful,
        outcome=outcome,
        twin=rows[0].twin_of in prompts,
        turns_held=None if None in before else len(before),
    )


def _prompt(rows: Sequence[BehaviourRow]) -> Prompt:
    """The conversation's user turns; what the assistant said in between is not in the rows."""
    turns: list[Turn] = []
    for row in rows:
        turns += [Turn("user", row.prompt), Turn("assistant", "…")]
    first = rows[0]
    return Prompt(
        id=first.id,
        intent_id=first.intent_id,
        label="harmful" if first.harmful else "harmless",
        category=first.category,
        turns=tuple(turns[:-1]),
        twin_of=first.twin_of,
    )
