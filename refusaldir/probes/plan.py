"""What is to be generated: prompts × temperatures × seeds × samples, in a fixed order.

Greedy decoding gives the same reply each time, so at temperature 0 every prompt comes once.
Above it each reply has a seed of its own, drawn from the run's seed, the number of the sample
and the conversation: the same for two models that are asked the same, and not shared between
prompts, whose noise would else go together.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from refusaldir.errors import ProbeError
from refusaldir.probes.reply import Conversation
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import content_hash


@dataclass(frozen=True, kw_only=True)
class Job:
    """One reply to generate.

    Attributes:
        key: Names it in a journal: prompt, what it says, temperature, seed and sample. A larger
            plan over the same prompts holds the same keys.
        index: Index of the prompt in its set.
        prompt_id: The prompt's id.
        temperature: Temperature; 0 is greedy.
        seed: The run's seed; 0 at temperature 0.
        sample: Number of the repetition, from 0.
        drawn_seed: What the generator is seeded with; None at temperature 0.
    """

    key: str
    index: int
    prompt_id: str
    temperature: float
    seed: int
    sample: int
    drawn_seed: int | None


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """How often and how each prompt is put to a model.

    Attributes:
        temperatures: Temperatures, each once.
        seeds: Seeds of whole repetitions of the run.
        samples: Replies to each prompt for each seed.
        max_new_tokens: Budget of each reply.
    """

    temperatures: tuple[float, ...] = (0.0,)
    seeds: tuple[int, ...] = (0,)
    samples: int = 1
    max_new_tokens: int = 192

    def __post_init__(self) -> None:
        """Check every field."""
        for temperature in self.temperatures:
            if not (math.isfinite(temperature) and 0 <= temperature <= 2):
                raise ProbeError("a temperature lies between 0 and 2", got=temperature)
        for seed in self.seeds:
            if seed < 0:
                raise ProbeError("a seed is 0 or a positive whole number", got=seed)
        for name, values in (("temperature", self.temperatures), ("seed", self.seeds)):
            if not values:
                raise ProbeError(f"a plan needs at least one {name}")
            if len(set(values)) < len(values):
                raise ProbeError(f"a {name} is given twice", got=", ".join(map(str, values)))
        if self.samples < 1:
            raise ProbeError("a plan needs at least one sample", got=self.samples)
        if self.max_new_tokens < 1:
            raise ProbeError(
                "generation needs a budget of at least one token", got=self.max_new_tokens
            )

    @property
    def per_prompt(self) -> int:
        """Replies to each prompt."""
        return sum(len(self.seeds) * self.samples if t > 0 else 1 for t in self.temperatures)

    def jobs(self, prompts: PromptSet) -> tuple[Job, ...]:
        """Every reply to generate, all prompts of one repetition before the next.

        The order is by temperature, seed, sample, prompt, and depends on nothing else. It is that
        of the rows, not that in which replies come: a run that stops early may have any of them.
        """
        said = [_said(prompt.turns) for prompt in prompts]
        jobs = []
        for temperature in sorted(self.temperatures):
            greedy = temperature == 0
            for seed in (0,) if greedy else self.seeds:
                for sample in (0,) if greedy else range(self.samples):
                    for index, prompt in enumerate(prompts):
                        key = f"{prompt.id}#{said[index]}/t{temperature:g}/s{seed}/{sample}"
                        drawn = None if greedy else drawn_seed(prompt.turns, seed, sample)
                        jobs.append(
                            Job(
                                key=key,
                                index=index,
                                prompt_id=prompt.id,
                                temperature=float(temperature),
                                seed=seed,
                                sample=sample,
                                drawn_seed=drawn,
                            )
                        )
        return tuple(jobs)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, for provenance."""
        return {
            **asdict(self),
            "temperatures": [float(t) for t in self.temperatures],
            "seeds": list(self.seeds),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SamplingPlan":
        """Rebuild from `to_dict`."""
        return cls(
            **{
                **data,
                "temperatures": tuple(data["temperatures"]),
                "seeds": tuple(data["seeds"]),
            }
        )


def drawn_seed(conversation: Conversation, seed: int, sample: int) -> int:
    """Seed of one reply, 0 to 2³¹ − 1, from the conversation, the run's seed and the sample."""
    text = f"{seed}/{sample}/{_said(conversation)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def constant(replies: Iterable[tuple[float, str, str]]) -> tuple[float, ...]:
    """Temperatures above 0 at which no prompt got two different replies.

    That several prompts should do so by chance is unlikely: the generator most likely ignores
    the temperature, and its samples are no replicates.

    Args:
        replies: Temperature, prompt id and text of each.

    Returns:
        The temperatures, ascending; those at which no prompt has two replies are left out.
    """
    texts: dict[float, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for temperature, prompt, text in replies:
        if temperature > 0:
            texts[temperature][prompt].append(text)
    found = []
    for temperature, by_prompt in sorted(texts.items()):
        several = [said for said in by_prompt.values() if len(said) > 1]
        if several and all(len(set(said)) == 1 for said in several):
            found.append(temperature)
    return tuple(found)


def _said(conversation: Conversation) -> str:
    return content_hash([turn.to_dict() for turn in conversation])
