"""What every model of a run is asked, how often, and who judges what it says."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusaldir.errors import ProbeError, RefusaldirError
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.arm import is_capture
from refusaldir.pipeline.plan import prompt_set
from refusaldir.probes.escalation import Mode
from refusaldir.probes.judging.spec import JudgeSpec
from refusaldir.probes.plan import SamplingPlan
from refusaldir.prompts.load import load_prompts
from refusaldir.prompts.schema import PromptSet

#: Which escalations are played.
ESCALATIONS: Mapping[str, tuple[Mode, ...]] = {
    "off": (),
    "frozen": ("frozen",),
    "live": ("live",),
    "both": ("frozen", "live"),
}

#: Judges where nobody named any; the first one's labels count.
JUDGES = ("phrases", "first-token")

#: Budget of each reply. A refusal that comes after a preamble is seen, and 192 tokens are enough
#: to tell it from an answer.
MAX_NEW_TOKENS = 192

#: The same where a comparison asks its own held-out prompts: enough for phrases to find a refusal.
SHORT = 64

#: Replies to each prompt and seed above temperature 0.
SAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Battery:
    """Prompts, escalations, sampling and judges.

    Attributes:
        prompts: Prompts of one turn; None for none.
        escalations: Escalations; None for none.
        modes: How they are played.
        plan: Temperatures, seeds, samples and budget, of both.
        judges: The judges; the first one's labels count.
    """

    prompts: PromptSet | None
    escalations: PromptSet | None = None
    modes: tuple[Mode, ...] = ()
    plan: SamplingPlan
    judges: tuple[JudgeSpec, ...]

    def parts(self) -> Iterator[tuple[str, PromptSet, Mode | None]]:
        """Name, prompts and mode of each part, as in `refusaldir.probes.run.FILES`."""
        if self.prompts is not None:
            yield "single", self.prompts, None
        if self.escalations is not None:
            for mode in self.modes:
                yield mode, self.escalations, mode

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a document."""
        return {
            "battery": None if self.prompts is None else self.prompts.name,
            "escalations": list(self.modes),
            **self.plan.to_dict(),
            "judges": [str(judge) for judge in self.judges],
        }


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was said about a battery; None and ``"off"`` where nothing was.

    Attributes:
        battery: Its name or prompts.
        escalations: One of `ESCALATIONS`.
        temperatures: Temperatures.
        samples: Replies to each prompt and seed above temperature 0.
        seeds: Seeds of whole repetitions.
        max_new_tokens: Budget of each reply.
        judges: Names of judges.
    """

    battery: str | Path | PromptSet | None = None
    escalations: str = "off"
    temperatures: Sequence[float] = (0.0,)
    samples: int = SAMPLES
    seeds: Sequence[int] = (0,)
    max_new_tokens: int | None = None
    judges: Sequence[str] | None = None

    @property
    def anything(self) -> bool:
        """Whether anything was said that makes no sense unless models are asked."""
        return (
            self.battery is not None
            or self.escalations != "off"
            or self.judges is not None
            or any(self.temperatures)
        )

    def limit_of(self, sides: Sequence[str | Path | ModelSpec], limit: int | None) -> int | None:
        """Most prompts of each class to capture: beside captures a limit is the battery's alone."""
        captures = any(map(is_capture, sides))
        return None if captures and self.battery is not None else limit

    def made(
        self, held_out: PromptSet, *, column_map: Mapping[str, str] | None, limit: int | None
    ) -> Battery:
        """The battery of a comparison.

        Args:
            held_out: What is asked where no battery was named.
            column_map: As in `refusaldir.load_prompts`.
            limit: Most prompts of each class, and escalations.

        Raises:
            RefusaldirError: Whatever was named cannot be.
        """
        played, modes = load_escalations(self.escalations, limit)
        prompts, budget = held_out, SHORT
        if self.battery is not None:
            prompts = load_battery(self.battery, column_map=column_map, limit=limit)
            budget = MAX_NEW_TOKENS
        return Battery(
            prompts=prompts,
            escalations=played,
            modes=modes,
            plan=make_plan(
                self.temperatures,
                samples=self.samples,
                seeds=self.seeds,
                max_new_tokens=self.max_new_tokens or budget,
            ),
            judges=make_judges(JUDGES if self.judges is None else self.judges),
        )


def make_plan(
    temperatures: Sequence[float] = (0.0,),
    *,
    samples: int = SAMPLES,
    seeds: Sequence[int] = (0,),
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> SamplingPlan:
    """A sampling plan; samples and seeds say nothing where all decoding is greedy.

    Raises:
        ProbeError: A temperature, seed or number that cannot be.
    """
    plan = SamplingPlan(
        temperatures=tuple(temperatures),
        seeds=tuple(seeds),
        samples=samples,
        max_new_tokens=max_new_tokens,
    )
    if any(plan.temperatures):
        return plan
    return SamplingPlan(temperatures=plan.temperatures, max_new_tokens=max_new_tokens)


def make_judges(specs: Sequence[str]) -> tuple[JudgeSpec, ...]:
    """Read the names of judges, and look at what can be looked at before hours are spent.

    Raises:
        ProbeError: A name is none, comes twice, or there is none; a file of labels cannot be read.
    """
    judges = tuple(JudgeSpec.parse(text) for text in specs)
    if not judges:
        raise ProbeError("a run needs a judge", expected="at least one", where="--judge")
    for place, judge in enumerate(judges):
        if judge in judges[:place]:
            raise ProbeError("a judge is named twice", got=str(judge), where="--judge")
        if judge.kind == "labels":
            judge.open()
    return judges


def load_escalations(choice: str, limit: int | None) -> tuple[PromptSet | None, tuple[Mode, ...]]:
    """The built-in escalations and how they are played.

    Raises:
        RefusaldirError: No such choice.
    """
    if choice not in ESCALATIONS:
        raise RefusaldirError(
            "Unknown choice", expected=" | ".join(ESCALATIONS), got=choice, where="--escalations"
        )
    modes = ESCALATIONS[choice]
    return (load_prompts("escalations", limit=limit) if modes else None), modes


def require_single(prompts: PromptSet) -> PromptSet:
    """Refuse escalations as a battery: asked once, only their last turn would be.

    Raises:
        ProbeError: The set holds some.
    """
    held = [prompt.id for prompt in prompts if prompt.framing == "escalation"]
    if held:
        raise ProbeError(
            "escalations are no battery: every turn of them is played",
            got=f"{len(held)} escalations, such as {held[0]}",
            where=prompts.name,
            next_step="Play the built-in ones with --escalations frozen, live or both",
        )
    return prompts


def load_battery(
    name: str | Path | PromptSet,
    *,
    harmful: str | Path | None = None,
    harmless: str | Path | None = None,
    column_map: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> PromptSet:
    """Load the prompts of a battery.

    Raises:
        PromptError: They cannot be found or read.
        ProbeError: They are escalations.
    """
    return require_single(prompt_set(name, harmful, harmless, column_map, limit))
