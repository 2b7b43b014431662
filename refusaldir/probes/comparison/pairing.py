"""Which replies of two models belong together, and whether the two may be compared at all."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from refusaldir.errors import ProbeError
from refusaldir.probes.behaviour import Behaviour, BehaviourProvenance, BehaviourRow
from refusaldir.probes.comparison.paired_prompt import PairedPrompt

#: What may differ between two models where the user says so, and what it is called.
ALLOWANCES = {
    "tokenizer": "tokenizers",
    "template": "chat templates",
    "thinking": "thinking switches",
    "system": "system prompts",
    "budget": "token budgets",
    "sampling": "sampling plans",
    "judge": "judges",
    "refusal-tokens": "refusal tokens",
}

#: Those after which the same prompt may have other tokens.
_RENDERING = frozenset({"tokenizer", "template", "thinking", "system"})


@dataclass(kw_only=True)
class Allowed:
    """What may differ, and what did.

    Attributes:
        names: Names of `ALLOWANCES`.
        used: Those that were needed, with what differed.
    """

    names: frozenset[str]
    used: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Sequence[str]) -> "Allowed":
        """Check the names.

        Raises:
            ProbeError: One of them is unknown.
        """
        unknown = [name for name in names if name not in ALLOWANCES]
        if unknown:
            raise ProbeError(
                "no such difference can be allowed",
                expected=", ".join(ALLOWANCES),
                got=", ".join(unknown),
            )
        return cls(names=frozenset(names))

    @property
    def rendering(self) -> bool:
        """Whether something differed after which tokens may differ too."""
        return bool(self.used.keys() & _RENDERING)

    def notes(self) -> list[str]:
        """A sentence for each difference."""
        return [
            f"{ALLOWANCES[name]} differ, as was allowed: {what}" for name, what in self.used.items()
        ]


def pair_rows(base: Behaviour, tuned: Behaviour, allowed: Allowed) -> list[PairedPrompt]:
    """Pair two models' replies by prompt and turn, in base's order.

    Args:
        base: Base's replies.
        tuned: Tuned's, to the same prompts.
        allowed: What may differ; what did is added.

    Raises:
        ProbeError: The two differ in something that must be equal; the message names it.
    """
    _check_settings(base, tuned, allowed)
    first, second = _by_prompt(base.rows), _by_prompt(tuned.rows)
    if not first:
        raise ProbeError("there are no responses to compare", where=base.provenance.model.name)
    only = sorted(first.keys() ^ second.keys(), key=str)
    if only:
        raise ProbeError(
            "base and tuned were given different prompts",
            expected=f"the {len(first)} prompts of base",
            got=f"{len(only)} prompts that only one of them has, such as {_named(only[0])}",
            next_step="Measure both on the same prompts",
        )
    pairs = []
    for key, rows in first.items():
        one, other = rows[0], second[key][0]
        same = one.prompt == other.prompt and one.harmful == other.harmful
        # Before later turns of live escalations stand each model's own replies.
        own = base.provenance.mode == "live" and one.turn not in (None, 1)
        if not same or not (one.rendered_hash == other.rendered_hash or allowed.rendering or own):
            raise ProbeError(
                "base and tuned were given different prompts: one differs in text, tokens or side",
                where=f"prompt {_named(key)}",
                next_step="Measure both on the same prompts with the same template",
            )
        pairs.append(PairedPrompt(prompt=one, base=tuple(rows), tuned=tuple(second[key])))
    if not any(pair.temperatures for pair in pairs):
        raise ProbeError(
            "base and tuned have no temperature in common",
            expected=_temperatures(base.rows),
            got=_temperatures(tuned.rows),
            next_step="Measure both at one temperature at least",
        )
    return pairs


def _check_settings(base: Behaviour, tuned: Behaviour, allowed: Allowed) -> None:
    b, t = base.provenance, tuned.provenance
    if b.mode != t.mode:
        raise ProbeError(
            "escalations of two modes answer two questions", expected=b.mode, got=t.mode
        )
    checks: list[tuple[str, object, object]] = [
        ("tokenizer", *_template(b, t, "tokenizer_hash")),
        ("template", *_template(b, t, "template_hash")),
        ("thinking", *_template(b, t, "thinking")),
        ("system", b.system, t.system),
        ("budget", b.max_new_tokens, t.max_new_tokens),
        ("sampling", _plan(b), _plan(t)),
        ("judge", b.judge, t.judge),
        ("refusal-tokens", base.refusal_tokens.ids, tuned.refusal_tokens.ids),
    ]
    for name, of_base, of_tuned in checks:
        if of_base == of_tuned:
            continue
        if name not in allowed.names:
            raise ProbeError(
                f"base and tuned were measured with different {ALLOWANCES[name]}",
                expected=f"{of_base!r} as in base",
                got=f"{of_tuned!r} in tuned",
                next_step=f"Measure both with the same settings, or allow it: --allow {name}",
            )
        allowed.used.setdefault(name, f"{of_base} in base, {of_tuned} in tuned")


def _plan(provenance: BehaviourProvenance) -> str:
    """How often and how each prompt was put to a model, in words."""
    plan = provenance.sampling
    words = "temperature " + ", ".join(f"{t:g}" for t in sorted(plan.temperatures))
    if any(temperature > 0 for temperature in plan.temperatures):
        seeds = ", ".join(map(str, sorted(plan.seeds)))
        words += f"; seed {seeds}; {plan.samples} a seed"
    return words


def _template(
    base: BehaviourProvenance, tuned: BehaviourProvenance, field: str
) -> tuple[object, object]:
    """A field of both templates; None where a server rendered."""
    first, second = (
        None if p.template is None else getattr(p.template, field) for p in (base, tuned)
    )
    return first, second


_Key = tuple[str, int | None]


def _by_prompt(rows: Sequence[BehaviourRow]) -> dict[_Key, list[BehaviourRow]]:
    out: dict[_Key, list[BehaviourRow]] = defaultdict(list)
    for row in rows:
        out[row.id, row.turn].append(row)
    return dict(out)


def _named(key: _Key) -> str:
    name, turn = key
    return name if turn is None else f"{name}, turn {turn}"


def _temperatures(rows: Sequence[BehaviourRow]) -> str:
    found = sorted({row.temperature for row in rows})
    return ", ".join(f"{temperature:g}" for temperature in found)
