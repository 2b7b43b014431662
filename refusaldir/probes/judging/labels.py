"""Labels from a file: made by people, or by a judge that ran elsewhere.

CSV or JSON lines with a column ``label`` and at least one of ``reply``, ``id`` and ``response``;
``arm`` and ``prompt`` narrow a line down. A label is one of `refusaldir.probes.outcomes.LABELS`, or
1 for refused and 0 for not refused; a line whose label is blank is yet to be labelled and is passed
over. ``reply`` is `reply_code`: it decides by itself, whatever a spreadsheet made of the texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from refusaldir.errors import ProbeError, PromptError
from refusaldir.probes.behaviour import BehaviourRow
from refusaldir.probes.outcomes import (
    COMPLIANCE,
    FULL_REFUSAL,
    JUDGE_ERROR,
    LABELS,
    Judgement,
)
from refusaldir.prompts.files import Row, read_rows
from refusaldir.records import content_hash

_COLUMNS = ("reply", "id", "arm", "prompt", "response", "label")
_BINARY = {"1": FULL_REFUSAL, "0": COMPLIANCE, "true": FULL_REFUSAL, "false": COMPLIANCE}


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One line of a file of labels.

    Attributes:
        label: One of `refusaldir.probes.outcomes.LABELS`.
        reply: `reply_code` of the row, or empty.
        id: Id of the prompt, or empty.
        arm: Arm that the response is of, or empty for any.
        prompt: Last turn of the prompt, or empty for any.
        response: Exact response, or empty.
        where: Place for error messages.
    """

    label: str
    reply: str = ""
    id: str = ""
    arm: str = ""
    prompt: str = ""
    response: str = ""
    where: str = ""


def reply_code(row: BehaviourRow) -> str:
    """What names a reply in a file of labels: 16 hex digits.

    Of several equal replies to one prompt each has its own: were the label of one the label of
    all, replies that come often would be labelled more often than by chance.
    """
    return content_hash(row.key, row.prompt, row.response)


def read_labels(path: Path) -> tuple[Labelled, ...]:
    """Read a file of labels.

    Raises:
        ProbeError: The file cannot be read, lacks a column, has a label that is none (the message
            names the line), or every label in it is blank.
    """
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".tsv", ".jsonl"):
        raise ProbeError(
            "labels cannot be read from this kind of file",
            expected=".csv, .tsv or .jsonl",
            got=path.suffix or "no suffix",
            where=path,
        )
    try:
        rows = read_rows(path)
    except PromptError as error:
        raise ProbeError(
            "a file of labels cannot be read",
            got=error.what.lower() if error.got is None else f"{error.what.lower()}, {error.got}",
            where=error.where or path,
        ) from error
    lines = tuple(_labelled(row) for row in rows if not _is_blank(row))
    if not lines:
        raise ProbeError(
            "nothing in a file of labels is labelled yet",
            expected=f"{', '.join(LABELS)}, 1 or 0 in the column label",
            got=f"{len(rows)} lines with a blank label",
            where=path,
            next_step="Read the responses, write the labels, and repeat the command",
        )
    return lines


def _is_blank(row: Row) -> bool:
    label = row.data.get("label", row)
    return label is None or str(label).strip() == ""


def _labelled(row: Row) -> Labelled:
    # A missing cell or null is as good as an empty one.
    cells = {k: row.data[k] for k in _COLUMNS if row.data.get(k) not in (None, "")}
    if "label" not in cells or not cells.keys() & {"reply", "id", "response"}:
        raise ProbeError(
            "a line of a file of labels lacks what it needs",
            expected="a label, and a reply, an id or a response",
            got=", ".join(row.data) or "nothing",
            where=row.where,
        )
    texts = {name: str(value) for name, value in cells.items()}
    label = read_label(cells["label"])
    if label is None:
        raise ProbeError(
            "this is no label",
            expected=f"{', '.join(LABELS)}, 1 or 0",
            got=repr(cells["label"]),
            where=row.where,
        )
    if "reply" in texts:
        texts = {name: texts[name] for name in ("reply", "arm") if name in texts}
    return Labelled(**{**texts, "label": label}, where=row.where)


def read_label(value: object) -> str | None:
    """Our label for a cell of a file, or None when it is none."""
    text = str(value).strip().lower()
    if isinstance(value, float) and value in (0.0, 1.0):
        text = str(int(value))
    return text if text in LABELS else _BINARY.get(text)


@dataclass(frozen=True, kw_only=True)
class LabelsJudge:
    """Labels from a file as judge: a line fits a row when every cell that it has is the row's.

    Attributes:
        name: Name of the file.
        lines: Its lines.
        arm: The arm whose rows are judged; lines of other arms do not count.
    """

    name: str
    lines: tuple[Labelled, ...]
    arm: str = ""
    _by_reply: Mapping[str, list[Labelled]] = field(init=False, repr=False, compare=False)
    _by_id: Mapping[str, list[Labelled]] = field(init=False, repr=False, compare=False)
    _by_response: Mapping[str, list[Labelled]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the lines.

        Raises:
            ProbeError: Two lines label the same thing differently.
        """
        by_reply: dict[str, list[Labelled]] = {}
        by_id: dict[str, list[Labelled]] = {}
        by_response: dict[str, list[Labelled]] = {}
        seen: dict[tuple[str, ...], Labelled] = {}
        for line in self.lines:
            key = (line.reply, line.id, line.arm, line.prompt, line.response)
            other = seen.setdefault(key, line)
            if other.label != line.label:
                raise ProbeError(
                    "a file of labels contradicts itself",
                    expected="one label for each response",
                    got=f"{other.label} ({other.where}) and {line.label}",
                    where=line.where or self.name,
                    next_step="Decide on one, or tell the lines apart by id, arm or prompt",
                )
            if line.arm and self.arm and line.arm != self.arm:
                continue
            if line.reply:
                by_reply.setdefault(line.reply, []).append(line)
            elif line.id:
                by_id.setdefault(line.id, []).append(line)
            else:
                by_response.setdefault(line.response, []).append(line)
        object.__setattr__(self, "_by_reply", by_reply)
        object.__setattr__(self, "_by_id", by_id)
        object.__setattr__(self, "_by_response", by_response)

    @classmethod
    def open(cls, path: Path, *, arm: str = "") -> "LabelsJudge":
        """Read a file of labels.

        Raises:
            ProbeError: See `read_labels`.
        """
        path = Path(path)
        return cls(name=path.name, lines=read_labels(path), arm=arm)

    @property
    def version(self) -> str:
        """Name of the file and hash of what it says."""
        said = sorted(
            [li.reply, li.id, li.arm, li.prompt, li.response, li.label] for li in self.lines
        )
        return f"labels:{self.name}#{content_hash(said)}"

    def __call__(self, prompt: str, response: str) -> Judgement:
        """Label by exact response; without a line for it the label is ``judge_error``."""
        return self._decide(_fitting(self._by_response.get(response, []), prompt, response))

    def judge_row(self, row: BehaviourRow) -> Judgement:
        """Label by code, else by id, else by exact response."""
        return self._decide(self._of_row(row))

    def labels(self, rows: Sequence[BehaviourRow]) -> list[str | None]:
        """Label of each row, None where the file has none: the human side of a calibration.

        Raises:
            ProbeError: Lines with different labels fit one row.
        """
        out: list[str | None] = []
        for row in rows:
            found = self._of_row(row)
            if len({line.label for line in found}) > 1:
                raise ProbeError(
                    "several labels fit one response",
                    got=" and ".join(f"{line.label} ({line.where})" for line in found[:2]),
                    where=f"{self.name}, prompt {row.id}",
                    next_step="Tell the lines apart by arm, prompt or response",
                )
            out.append(found[0].label if found else None)
        return out

    def _of_row(self, row: BehaviourRow) -> list[Labelled]:
        return (
            self._by_reply.get(reply_code(row), [])
            or _fitting(self._by_id.get(row.id, []), row.prompt, row.response)
            or _fitting(self._by_response.get(row.response, []), row.prompt, row.response)
        )

    def _decide(self, lines: list[Labelled]) -> Judgement:
        labels = sorted({line.label for line in lines})
        if len(labels) == 1:
            return Judgement(label=labels[0], evidence=f"{self.name}: {lines[0].where}")
        reason = " and ".join(labels) or "no label"
        return Judgement(label=JUDGE_ERROR, evidence=f"{self.name}: {reason} for this response")


def _fitting(lines: list[Labelled], prompt: str, response: str) -> list[Labelled]:
    return [
        line for line in lines if line.prompt in ("", prompt) and line.response in ("", response)
    ]
