"""What is asked of `which_layers`, and what it returns."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.errors import ProbeError, RefusaldirError
from refusaldir.records import Site

if TYPE_CHECKING:
    from refusaldir.layers.result import LayersResult

MODES = ("fast", "full")
#: Outcomes, what they are called, and their units.
NAMES = {"score": "refusal score", "projection": "projection", "rate": "refusal rate"}
UNITS = {"score": "nats", "projection": "residual norm", "rate": "share"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked for; `refusaldir.pipeline.layers.which_layers` says what each field means."""

    mode: str
    outcome: str
    category: str | None
    heads: bool
    repair: bool
    task_text: Path | None
    site: Site | None
    refusal_tokens: tuple[str, ...] | None
    max_new_tokens: int
    batch_size: int | None
    seed: int
    force: bool

    def __post_init__(self) -> None:
        """Refuse unknown words and what does not go together; read the task's text."""
        for where, value, known in (
            ("--mode", self.mode, MODES),
            ("--outcome", self.outcome, tuple(NAMES)),
        ):
            if value not in known:
                raise RefusaldirError(
                    "Unknown choice", expected=" | ".join(known), got=value, where=where
                )
        if self.outcome == "rate" and self.mode != "full":
            raise ProbeError(
                "A refusal rate has no gradient, so only transplants can attribute it",
                expected="--mode full",
                got=f"--mode {self.mode}",
                where="--outcome rate",
            )
        if self.task_text is not None and not self.repair:
            raise RefusaldirError(
                "The text of the fine-tune's task is what a repair's cost is measured on",
                expected="--repair beside it",
                got="none",
                where="--task-text",
            )
        _ = self.task_texts

    @cached_property
    def task_texts(self) -> tuple[str, ...]:
        """The task's texts, one a line; none without a file.

        Raises:
            ProbeError: The file cannot be read, or holds no text.
        """
        path = self.task_text
        if path is None:
            return ()
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ProbeError(
                "The task's text cannot be read",
                expected="a text file, a text a line",
                got=getattr(error, "strerror", None) or "not UTF-8 text",
                where=path,
            ) from error
        found = tuple(line.strip() for line in lines if line.strip())
        if not found:
            raise ProbeError("The task's text is empty", expected="a text a line", where=path)
        return found

    def to_dict(self) -> dict[str, Any]:
        """The settings that decide the result, JSON-ready."""
        out = {
            **asdict(self),
            "task_text": None if self.task_text is None else str(self.task_text),
            "site": None if self.site is None else str(self.site),
        }
        return {name: value for name, value in out.items() if name not in ("batch_size", "force")}


@dataclass(frozen=True, kw_only=True)
class LayersFound:
    """What `which_layers` found.

    Attributes:
        document: The content of ``layers.json``.
        result: Shares, lenses and verdict; None where it was there already.
        folder: Where everything was written.
        files: What was written, by name.
    """

    document: dict[str, Any] = field(repr=False)
    result: "LayersResult | None" = field(repr=False)
    folder: Path
    files: Mapping[str, Path]

    def _repr_html_(self) -> str:
        from refusaldir.report.layers_table import layers_report
        from refusaldir.report.notebook import as_html

        return as_html(layers_report(self.document), self.files)
