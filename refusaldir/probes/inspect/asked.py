"""What a sample of an Inspect log asked: a prompt of ours, or of another task."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refusaldir.prompts.fields import parse_turns
from refusaldir.prompts.files import Row
from refusaldir.prompts.rows import Reading, read_drafts
from refusaldir.prompts.schema import Prompt
from refusaldir.prompts.twins import resolve_twins

if TYPE_CHECKING:
    from inspect_ai.log import EvalSample


#: Key of a sample's metadata under which our tasks say which prompt it is, and key of the number
#: of the user turn that is asked for.
PROMPT_ID, TURN = "prompt_id", "turn"
#: Fields of a prompt that a sample's metadata hold by their own names.
FIELDS = (
    *("intent_id", "label", "category", "severity", "framing", "domain"),
    *("twin_of", "split"),
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one sample asks.

    Attributes:
        prompt: The prompt; of an escalation the conversation up to this user turn.
        turn: Number of the user turn of an escalation, else None.
    """

    prompt: Prompt
    turn: int | None


def own_prompt(sample: "EvalSample") -> Asked:
    """The prompt of a sample of our own tasks."""
    found = sample.metadata
    fields = {name: found[name] for name in FIELDS}
    turns = [turn.to_dict() for turn in turns_of(sample)]
    prompt = Prompt.from_dict({**fields, "id": found[PROMPT_ID], "turns": turns})
    return Asked(prompt=prompt, turn=found.get(TURN))


def foreign_prompts(
    task: str, samples: Iterable["EvalSample"], reading: Reading
) -> dict[Any, Asked]:
    """The prompts of another task's samples, by the samples' ids.

    Raises:
        PromptError: A sample is no prompt, has no label, or lacks what the column map names.
    """
    samples, rows = list(samples), []
    for sample in samples:
        data = {"id": str(sample.id), "turns": [turn.to_dict() for turn in turns_of(sample)]}
        if reading.columns is not None:
            data |= {"target": sample.target, **sample.metadata}
        rows.append(Row(where=f"sample {sample.id} of {task}", key=str(sample.id), data=data))
    if reading.columns is not None:
        columns = {"id": "id", "turns": "turns", **reading.columns}
        reading = Reading(label=reading.label, columns=columns)
    drafts = read_drafts(rows, reading)
    resolve_twins(drafts)
    return {
        sample.id: Asked(prompt=Prompt(**fields), turn=None)
        for sample, (_, fields) in zip(samples, drafts, strict=True)
    }


def turns_of(sample: "EvalSample") -> Any:
    """The conversation that a sample's input is.

    Raises:
        PromptError: It holds messages that no prompt has, such as a tool's.
    """
    if isinstance(sample.input, str):
        said = [{"role": "user", "content": sample.input}]
    else:
        said = [{"role": message.role, "content": message.text} for message in sample.input]
    return parse_turns(said, f"sample {sample.id}")


def sent(sample: "EvalSample") -> list[dict[str, str]]:
    """The messages that the model was sent before its first reply."""
    messages = []
    for message in sample.messages:
        if message.role == "assistant" and message.source == "generate":
            break
        messages.append({"role": message.role, "content": message.text})
    return messages
