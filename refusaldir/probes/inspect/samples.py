"""Prompts as Inspect samples."""

from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
)

from refusaldir.probes.escalation import opening_turns
from refusaldir.probes.inspect.asked import FIELDS, PROMPT_ID, TURN
from refusaldir.probes.reply import Conversation
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import content_hash

_MESSAGES = {
    "system": ChatMessageSystem,
    "user": ChatMessageUser,
    "assistant": ChatMessageAssistant,
}


def dataset(prompts: PromptSet) -> MemoryDataset:
    """One sample a prompt of one user turn; one a user turn of every escalation.

    Earlier assistant turns of an escalation are the canned ones, so that two models are asked
    the same. Metadata name the prompt and its fields, the number of the user turn where there
    are several, whether it comes before the conversation parts from its twin, and a hash of what
    is said.
    """
    opening = opening_turns(prompts)
    samples = []
    for prompt in prompts:
        ends = [at for at, turn in enumerate(prompt.turns) if turn.role == "user"]
        for number, end in enumerate(ends, start=1):
            turns = prompt.turns[: end + 1]
            found = {name: getattr(prompt, name) for name in FIELDS}
            found |= {PROMPT_ID: prompt.id, "prompt_hash": said_hash(turns)}
            name = prompt.id
            if len(ends) > 1:
                name = f"{prompt.id}.turn{number}"
                found |= {TURN: number, "opening": number <= opening[prompt.id]}
            messages = [_MESSAGES[turn.role](content=turn.content) for turn in turns]
            samples.append(Sample(id=name, input=messages, metadata=found))
    return MemoryDataset(samples, name=prompts.name)


def said_hash(turns: Conversation) -> str:
    """Hash of the messages sent."""
    return content_hash([turn.to_dict() for turn in turns])
