"""Arguments and options that several commands share, and how their texts become values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from refusaldir.errors import RefusaldirError

_MODEL, _PROMPTS, _CAPTURE = "Model", "Prompts", "Capture"

Model = Annotated[
    str,
    typer.Argument(
        help="WHERE\\[@REVISION]\\[+ADAPTER…]: Hub id, directory, .gguf file or bundled name.",
        metavar="MODEL",
        show_default=False,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(help="auto, float32 or bfloat16.", rich_help_panel=_MODEL, metavar="DTYPE"),
]
Device = Annotated[
    str,
    typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=_MODEL, metavar="DEVICE"),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="Spread the blocks over devices: auto, balanced, …",
        rich_help_panel=_MODEL,
        metavar="MAP",
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        help="4bit or 8bit (extra: quantize).", rich_help_panel=_MODEL, metavar="4bit|8bit"
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let the model's repository run its own Python code. Off by default.",
        rich_help_panel=_MODEL,
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        help="auto, transformer_lens or torch_hooks.", rich_help_panel=_MODEL, metavar="BACKEND"
    ),
]
Prompts = Annotated[
    str,
    typer.Option(
        "--prompts",
        "-p",
        help="contrast, battery, escalations, a file with labels, a preset, or a Hugging Face data "
        "set.",
        rich_help_panel=_PROMPTS,
    ),
]
Harmful = Annotated[
    Path | None,
    typer.Option(help="A file of harmful prompts (with --harmless).", rich_help_panel=_PROMPTS),
]
Harmless = Annotated[
    Path | None,
    typer.Option(help="A file of harmless prompts (with --harmful).", rich_help_panel=_PROMPTS),
]
ColumnMap = Annotated[
    list[str] | None,
    typer.Option(
        help="FIELD=COLUMN, e.g. prompt=question; repeat for more.", rich_help_panel=_PROMPTS
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Use the first N prompts of each class.", rich_help_panel=_PROMPTS),
]
System = Annotated[
    str,
    typer.Option(
        help="System prompt: default (the template's own), none, or the text.",
        rich_help_panel=_PROMPTS,
    ),
]
Thinking = Annotated[
    bool | None,
    typer.Option(
        "--thinking/--no-thinking",
        help="For templates with such a switch.",
        rich_help_panel=_PROMPTS,
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        help="A Jinja file instead of the tokenizer's chat template, or: plain.",
        rich_help_panel=_PROMPTS,
        metavar="FILE|plain",
    ),
]
Hook = Annotated[
    list[str],
    typer.Option(
        help="resid_pre, attn_out, resid_mid, mlp_out or resid_post; repeat for more.",
        rich_help_panel=_CAPTURE,
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(help="E.g. 0-9,12; all by default.", rich_help_panel=_CAPTURE),
]
PositionsChoice = Annotated[
    str,
    typer.Option(
        help="post (template tokens after the instruction), inst (its last token, where "
        "harmfulness is encoded), offsets such as -1,-2, or several joined by commas.",
        rich_help_panel=_CAPTURE,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Prompts a batch; found by itself.", rich_help_panel=_CAPTURE),
]
Store = Annotated[
    Path | None,
    typer.Option(
        help="Folder for captures: by default $REFUSALDIR_STORE, else ./activations.",
        rich_help_panel=_CAPTURE,
    ),
]
_CRITERIA = "Criteria of a direction that causes refusal"
Criterion = Annotated[
    str,
    typer.Option(
        help="refusal_score (Arditi et al. 2024) or cosmic (Siu et al. 2025, needs no refusal "
        "tokens; also what is used where none are found).",
        rich_help_panel=_CRITERIA,
    ),
]
Estimator = Annotated[
    str,
    typer.Option(
        help="mean_diff, lda, logistic, pca, winsorised, or all: compare them; mean_diff decides.",
        rich_help_panel=_CRITERIA,
    ),
]
Kl = Annotated[float, typer.Option(help="Largest mean KL, in nats.", rich_help_panel=_CRITERIA)]
Induce = Annotated[
    float,
    typer.Option(help="Least mean refusal score with the vector added.", rich_help_panel=_CRITERIA),
]
Depth = Annotated[
    float, typer.Option(help="Share of the layers searched.", rich_help_panel=_CRITERIA)
]
At = Annotated[
    list[int] | None,
    typer.Option(
        help="Search only this token offset, of those captured; repeat for more. By default "
        "those after the instruction.",
        rich_help_panel=_CRITERIA,
    ),
]
RefusalToken = Annotated[
    list[str] | None,
    typer.Option(
        help="First token of a refusal; found from the model's (in diff, base's) own refusals "
        "otherwise. Repeat for more.",
        rich_help_panel=_CRITERIA,
    ),
]
FilterPrompts = Annotated[
    bool,
    typer.Option(
        "--filter/--no-filter",
        help="Use only prompts that the model refuses or answers as their label says.",
        rich_help_panel=_CRITERIA,
    ),
]
Validation = Annotated[
    int,
    typer.Option(
        min=4, help="Most prompts a class that score candidates.", rich_help_panel=_CRITERIA
    ),
]
Exhaustive = Annotated[
    bool,
    typer.Option(
        "--exhaustive",
        help="Measure every score, also where it cannot change the choice.",
        rich_help_panel=_CRITERIA,
    ),
]
_BEHAVIOUR = "Behaviour"
Temperature = Annotated[
    str,
    typer.Option(
        help="Temperatures, joined by commas: 0 is greedy.",
        rich_help_panel=_BEHAVIOUR,
        metavar="T,…",
    ),
]
Samples = Annotated[
    int,
    typer.Option(
        min=1, help="Replies to each prompt and seed above temperature 0.",
        rich_help_panel=_BEHAVIOUR,
    ),
]  # fmt: skip
Seeds = Annotated[
    str,
    typer.Option(
        help="Seeds of whole repetitions above temperature 0, joined by commas.",
        rich_help_panel=_BEHAVIOUR,
        metavar="N,…",
    ),
]
Escalations = Annotated[
    str,
    typer.Option(
        help="Built-in conversations of 4 to 6 turns, which ask another question than single "
        "prompts and take 240 replies more a mode, so they are off by default: frozen (canned "
        "replies in between), live (the model's own), both, or off.",
        rich_help_panel=_BEHAVIOUR,
    ),
]
Judge = Annotated[
    list[str] | None,
    typer.Option(
        help="phrases, first-token, hf:NAME\\[@REVISION], llm:MODEL@URL or labels:FILE; repeat for "
        "more. The first one's labels count. By default phrases and, in process, first-token.",
        rich_help_panel=_BEHAVIOUR,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Csv = Annotated[
    bool, typer.Option("--csv", help="Print the figures as CSV, one a row, instead of tables.")
]


def parse_numbers(text: str, where: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """Turn ``"0,0.7"`` into (0.0, 0.7).

    Raises:
        RefusaldirError: A part is no number of this kind.
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        example = "0,1,2" if kind is int else "0,0.7"
        raise RefusaldirError(
            "These numbers cannot be read", expected=f"e.g. {example}", got=repr(text), where=where
        ) from None


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """Turn ``"0-3,7"`` into (0, 1, 2, 3, 7); None stays None.

    Raises:
        RefusaldirError: The text is not a list of layers.
    """
    if text is None:
        return None
    layers: set[int] = set()
    try:
        for part in text.split(","):
            first, _, last = part.strip().partition("-")
            layers.update(range(int(first), int(last or first) + 1))
    except ValueError:
        layers.clear()
    if not layers:
        raise RefusaldirError(
            "The layers cannot be read", expected="e.g. 0-9,12", got=repr(text), where="--layers"
        )
    return tuple(sorted(layers))


def parse_column_map(pairs: Sequence[str] | None) -> dict[str, str] | None:
    """Turn ``["prompt=question"]`` into a dictionary.

    Raises:
        RefusaldirError: A pair has no equals sign.
    """
    if not pairs:
        return None
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise RefusaldirError(
            "The column map cannot be read",
            expected="FIELD=COLUMN",
            got=repr(wrong[0]),
            where="--column-map",
        )
    return dict(pair.split("=", 1) for pair in pairs)


def read_template(choice: str | None) -> str | None:
    """Return ``"plain"`` as it is, else the text of the file named.

    Raises:
        RefusaldirError: The file cannot be read.
    """
    if choice in (None, "plain"):
        return choice
    try:
        return Path(choice).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RefusaldirError(
            "The template cannot be read",
            expected="a file with a Jinja chat template, or: plain",
            got=getattr(error, "strerror", None) or "not UTF-8 text",
            where=choice,
        ) from error


def source(
    prompts: str | None,
    harmful: Path | None,
    harmless: Path | None,
    column_map: Sequence[str] | None,
    limit: int | None,
    system: str,
    thinking: bool | None,
    template: str | None,
) -> dict[str, Any]:
    """What every command hands on about prompts and how they become tokens."""
    return {
        "prompts": prompts,
        "harmful": harmful,
        "harmless": harmless,
        "column_map": parse_column_map(column_map),
        "limit": limit,
        "system": system,
        "thinking": thinking,
        "template": read_template(template),
    }


def opening(
    dtype: str,
    device: str,
    device_map: str | None,
    quantize: str | None,
    trust_remote_code: bool,
    backend: str,
) -> dict[str, Any]:
    """What every command hands on about how to open a model."""
    from refusaldir.models.options import LoadOptions

    return {
        "options": LoadOptions(
            dtype=dtype,
            device=device,
            device_map=device_map,
            quantize=quantize,
            trust_remote_code=trust_remote_code,
        ),
        "backend": backend,
    }
