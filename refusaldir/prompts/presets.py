"""Public prompt sets by name: where they live, which columns to read, under which licence.

The texts are downloaded from the Hugging Face Hub when asked for; none is part of this package.
Licences are those stated by the publisher when this was written: check before redistributing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from refusaldir.prompts.fields import Label

_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Part:
    """One configuration and split of a data set.

    Attributes:
        config: Name of the configuration, or None for the only one.
        split: Name of the split.
        label: Label of every row, or None when a column tells.
    """

    config: str | None = None
    split: str = "train"
    label: Label | None = None


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A public prompt set.

    Attributes:
        title: Name as its authors write it.
        dataset: Id on the Hugging Face Hub.
        parts: What is read from it.
        columns: Prompt field (or ``text``) → column.
        licence: Licence stated by the publisher.
        paper: arXiv id of the source, or its address.
        gated: True when the Hub asks to accept conditions first.
        keep: Column → value that a row must have.
        empty: Columns that must be empty: requests that stand on their own.
        pair_on: Columns that agree exactly between twins of different labels.
        domain: Domain of every prompt.
    """

    title: str
    dataset: str
    parts: tuple[Part, ...]
    columns: Mapping[str, str]
    licence: str
    paper: str
    gated: bool = False
    keep: Mapping[str, str] = field(default_factory=lambda: _NONE)
    empty: tuple[str, ...] = ()
    pair_on: tuple[str, ...] = ()
    domain: str = "general"

    @property
    def labels(self) -> str:
        """Which classes it holds, for people."""
        given = {part.label for part in self.parts}
        return "harmful and harmless" if len(given) > 1 or None in given else str(given.pop())


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "advbench": Preset(
            title="AdvBench",
            dataset="walledai/AdvBench",
            parts=(Part(label="harmful"),),
            columns={"text": "prompt"},
            licence="MIT",
            paper="2307.15043",
            gated=True,
        ),
        "harmbench": Preset(
            title="HarmBench (standard behaviours)",
            dataset="walledai/HarmBench",
            parts=(Part(config="standard", label="harmful"),),
            columns={"text": "prompt", "category": "category"},
            licence="MIT",
            paper="2402.04249",
            gated=True,
        ),
        "jailbreakbench": Preset(
            title="JailbreakBench (JBB-Behaviors)",
            dataset="JailbreakBench/JBB-Behaviors",
            parts=(
                Part(config="behaviors", split="harmful", label="harmful"),
                Part(config="behaviors", split="benign", label="harmless"),
            ),
            columns={"text": "Goal", "category": "Category"},
            licence="MIT",
            paper="2404.01318",
            pair_on=("Index", "Behavior"),
        ),
        "strongreject": Preset(
            title="StrongREJECT",
            dataset="walledai/StrongREJECT",
            parts=(Part(label="harmful"),),
            columns={"text": "prompt", "category": "category"},
            licence="MIT",
            paper="2402.10260",
            gated=True,
        ),
        "xstest": Preset(
            title="XSTest",
            dataset="Paul/XSTest",
            parts=(Part(),),
            columns={"text": "prompt", "label": "label", "category": "type"},
            licence="CC-BY-4.0",
            paper="2308.01263",
        ),
        "orbench": Preset(
            title="OR-Bench (toxic and hard-1k)",
            dataset="bench-llm/or-bench",
            parts=(
                Part(config="or-bench-toxic", label="harmful"),
                Part(config="or-bench-hard-1k", label="harmless"),
            ),
            columns={"text": "prompt", "category": "category"},
            licence="CC-BY-4.0",
            paper="2405.20947",
        ),
        "sorrybench": Preset(
            title="SORRY-Bench (2025/03, base prompts)",
            dataset="sorry-bench/sorry-bench-202503",
            parts=(Part(label="harmful"),),
            columns={"text": "turns", "category": "category"},
            licence="SORRY-Bench licence agreement",
            paper="2406.14598",
            gated=True,
            keep={"prompt_style": "base"},
        ),
        "donotanswer": Preset(
            title="Do-Not-Answer",
            dataset="LibrAI/do-not-answer",
            parts=(Part(label="harmful"),),
            columns={"text": "question", "category": "types_of_harm"},
            licence="Apache-2.0",
            paper="2308.13387",
        ),
        "medsafetybench": Preset(
            title="MedSafetyBench (test part; a mirror of the authors' repository)",
            dataset="israel-adewuyi/med-safety-bench-reproduced",
            parts=(Part(split="test", label="harmful"),),
            columns={"text": "harmful_medical_request"},
            licence="research use only, see github.com/AI4LIFE-GROUP/med-safety-bench",
            paper="2403.03744",
            domain="medical",
        ),
        "alpaca": Preset(
            title="Alpaca (instructions without an input)",
            dataset="tatsu-lab/alpaca",
            parts=(Part(label="harmless"),),
            columns={"text": "instruction"},
            licence="CC-BY-NC-4.0",
            paper="github.com/tatsu-lab/stanford_alpaca",
            empty=("input",),
        ),
        "dolly": Preset(
            title="Dolly 15k (instructions without a context)",
            dataset="databricks/databricks-dolly-15k",
            parts=(Part(label="harmless"),),
            columns={"text": "instruction", "category": "category"},
            licence="CC-BY-SA-3.0",
            paper="huggingface.co/datasets/databricks/databricks-dolly-15k",
            empty=("context",),
        ),
    }
)


def preset_key(name: str) -> str:
    """Return the key of `PRESETS` for a name in any spelling, e.g. ``OR-Bench``."""
    return "".join(character for character in name.lower() if character.isalnum())
