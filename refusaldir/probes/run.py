"""Everything one model said: prompts by themselves, and escalations in either mode.

A run is a folder with a file of responses for each part that was asked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refusaldir.errors import ProbeError
from refusaldir.probes.behaviour import Behaviour

#: File of each part of a run.
FILES = {
    "single": "responses.jsonl",
    "frozen": "escalations-frozen.jsonl",
    "live": "escalations-live.jsonl",
}


@dataclass(frozen=True, kw_only=True)
class ProbeRun:
    """One model's responses.

    Attributes:
        single: Prompts of one user turn; None when none were asked.
        frozen: Escalations with canned assistant turns, one row a user turn; None likewise.
        live: Escalations with the model's own replies; None likewise.
    """

    single: Behaviour | None = None
    frozen: Behaviour | None = None
    live: Behaviour | None = None

    def parts(self) -> Iterator[tuple[str, Behaviour]]:
        """The parts that were asked, by name."""
        for name in FILES:
            part = getattr(self, name)
            if part is not None:
                yield name, part

    @classmethod
    def read(cls, folder: Path) -> "ProbeRun":
        """Read a run's folder.

        Raises:
            ProbeError: It holds no responses, or a file of them cannot be read.
        """
        folder = Path(folder)
        found = {
            part: Behaviour.from_jsonl(folder / name)
            for part, name in FILES.items()
            if (folder / name).exists()
        }
        if not found:
            raise ProbeError(
                "the folder holds no responses",
                expected=" or ".join(FILES.values()),
                where=folder,
                next_step="Make them with refusaldir probe",
            )
        return cls(**found)
