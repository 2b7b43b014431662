"""Result types of a comparison of behaviour."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from refusaldir.probes.behaviour import BehaviourProvenance
from refusaldir.probes.comparison.axis_instruments import AxisInstruments
from refusaldir.probes.comparison.escalations import EscalationComparison
from refusaldir.probes.comparison.group import GroupComparison
from refusaldir.probes.comparison.sampling import AxisSampling
from refusaldir.probes.comparison.secondary import SecondaryChange


class Described(Protocol):
    """Anything with a JSON-ready form."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        ...


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """One axis, group by group; p-values are adjusted over these groups and no others.

    Attributes:
        by: ``"category"``, ``"framing"``, ``"severity"`` or ``"domain"``.
        groups: Each group, by name.
        minimum_n: Intents a group needs before any change in it, even of every one, can pass
            Holm over this many groups at 5 %.
        note: Says so when groups are smaller than that.
    """

    by: str
    groups: tuple[GroupComparison, ...]
    minimum_n: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class FlipAt:
    """Shares refused at one temperature; None where no reply could be judged."""

    temperature: float
    base: float | None
    tuned: float | None


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One prompt whose outcome, by the majority of its replies, is another in tuned.

    Attributes:
        id: The prompt.
        category: Its category.
        framing: Its framing.
        severity: Its severity, or None.
        domain: Its domain.
        to: ``"answer"`` or ``"refusal"``: what tuned does.
        base: Share of base's replies that refused, temperatures weighing alike.
        tuned: The same of tuned's.
        temperatures: Both at each temperature.
    """

    id: str
    category: str
    framing: str
    severity: str | None
    domain: str
    to: str
    base: float
    tuned: float
    temperatures: tuple[FlipAt, ...]


@dataclass(frozen=True, kw_only=True)
class AxisComparison:
    """One axis.

    Attributes:
        axis: ``"refusal"`` (harmful prompts) or ``"over_refusal"`` (harmless ones).
        overall: All prompts of the axis.
        breakdowns: By category always; by framing, severity and domain where prompts differ in
            it, else None.
        flips: Every prompt whose outcome flipped, in the order of the prompts.
        sampling: What several replies a prompt say; None where there is one.
        instruments: What each judge and the refusal score say of the same replies.
        secondary: Further scores of the replies, such as toxicity.
    """

    axis: str
    overall: GroupComparison
    breakdowns: Mapping[str, Breakdown | None]
    flips: tuple[Flip, ...]
    sampling: AxisSampling | None
    instruments: AxisInstruments
    secondary: tuple[SecondaryChange, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BehaviourComparison:
    """Base against tuned.

    Attributes:
        base: Where base's responses come from.
        tuned: Where tuned's come from.
        axes: The axes that have prompts, refusal first; empty where only escalations were
            compared.
        frozen: Escalations with canned assistant turns, or None.
        live: Escalations with the models' own replies, or None.
        link: How the change goes through the direction, or None where that was not measured.
        refusal_tokens: Texts of the tokens behind the scores; empty without scores.
        test: ``"mid-p"`` or ``"exact"``.
        margin: Margin of equivalence.
        level: Nominal coverage of the intervals.
        allowed: Differences between the two that were allowed and are there.
        notes: What a reader should know before using the figures.
    """

    base: BehaviourProvenance
    tuned: BehaviourProvenance
    axes: tuple[AxisComparison, ...]
    frozen: EscalationComparison | None = None
    live: EscalationComparison | None = None
    link: Described | None = None
    refusal_tokens: tuple[str, ...]
    test: str
    margin: float
    level: float
    allowed: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def axis(self, name: str) -> AxisComparison | None:
        """The axis of that name, or None when there were no such prompts."""
        return next((axis for axis in self.axes if axis.axis == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "base": self.base.to_dict(),
            "tuned": self.tuned.to_dict(),
            "axes": [asdict(axis) for axis in self.axes],
            "escalations": {
                mode: None if part is None else part.to_dict()
                for mode, part in (("frozen", self.frozen), ("live", self.live))
            },
            "link": None if self.link is None else self.link.to_dict(),
            "refusal_tokens": list(self.refusal_tokens),
            "test": self.test,
            "margin": self.margin,
            "level": self.level,
            "allowed": list(self.allowed),
            "notes": list(self.notes),
        }
