"""Our prompt sets as Inspect tasks.

    inspect eval refusaldir/battery --model openai/NAME
    inspect eval refusaldir/escalations --model hf/NAME -M do_sample=false
    inspect eval refusaldir/prompts -T source=mine.jsonl --model vllm/ME --epochs 5 --temperature 1

Replies are greedy and at most 192 tokens long unless told otherwise; Inspect's Hugging Face
provider wants ``-M do_sample=false`` for that. ``refusaldir diff A.eval B.eval`` compares two
logs.
"""

from refusaldir.errors import MissingExtraError

try:
    from inspect_ai import Task, task
except ModuleNotFoundError as error:
    raise MissingExtraError("An Inspect task", "inspect") from error
from inspect_ai.model import GenerateConfig
from inspect_ai.solver import generate

from refusaldir.probes.inspect.samples import dataset
from refusaldir.probes.inspect.scoring import refusal, refusal_rate
from refusaldir.probes.plan import SamplingPlan
from refusaldir.prompts.load import load_prompts

__all__ = ["battery", "contrast", "escalations", "prompts", "refusal", "refusal_rate"]


@task
def battery(limit: int | None = None) -> Task:
    """Unsafe requests of ten categories in several framings, each with a benign twin.

    Args:
        limit: At most this many prompts of each class, spread over categories, twins together
            (Inspect's own ``--limit`` takes the first samples).
    """
    return prompts("battery", limit=limit)


@task
def contrast(limit: int | None = None) -> Task:
    """Matched harmful and harmless requests of twelve categories.

    Args:
        limit: As for `battery`.
    """
    return prompts("contrast", limit=limit)


@task
def escalations(limit: int | None = None) -> Task:
    """Scripted conversations that escalate, and their twins; assistant turns are canned.

    Args:
        limit: As for `battery`, in conversations.
    """
    return prompts("escalations", limit=limit)


@task
def prompts(
    source: str,
    label: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    column_map: dict[str, str] | None = None,
) -> Task:
    """Any prompts that `refusaldir.prompts.load.load_prompts` takes.

    Args:
        source: See there.
        label: See there.
        split: See there.
        limit: As for `battery`.
        column_map: See there.
    """
    found = load_prompts(source, label=label, split=split, limit=limit, column_map=column_map)
    return Task(
        dataset=dataset(found),
        solver=generate(),
        scorer=refusal(),
        config=GenerateConfig(temperature=0.0, max_tokens=SamplingPlan().max_new_tokens),
        version=1,
        metadata={"prompts": found.name},
    )
