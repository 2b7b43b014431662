"""What a page is made from: documents, and the responses beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refusaldir.probes.run import ProbeRun

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Material:
    """One comparison; what is None was not measured, or is not there any more.

    Attributes:
        name: Short name of the tuned model, told apart by it from others on the page.
        diff: The diff document.
        behaviour: A behaviour document, where there is no diff document.
        layers: The layers document.
        selection: The content of ``select.json``.
        base: Base's responses.
        tuned: Tuned's.
    """

    name: str
    diff: Row | None = None
    behaviour: Row | None = None
    layers: Row | None = None
    selection: Row | None = None
    base: "ProbeRun | None" = None
    tuned: "ProbeRun | None" = None

    @property
    def document(self) -> Row:
        """The document that the page is about."""
        found = self.diff or self.behaviour or self.layers
        if found is None:
            raise ValueError("there is nothing to report")
        return found

    @property
    def answers(self) -> Row | None:
        """Paired behaviour."""
        return None if self.document is self.layers else self.document["behaviour"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Several tuned models against one base.

    Attributes:
        trajectory: The trajectory document.
        stops: Each comparison whose document is there, in order.
    """

    trajectory: Row
    stops: Sequence[Material]
