"""A capture together with the prompts it was made from, as tokens for an open model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from refusaldir.directions.reader import read_site
from refusaldir.errors import CaptureMismatchError
from refusaldir.pipeline.plan import Plan, Rendering
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import Provenance, Site
from refusaldir.store import Capture, peek

if TYPE_CHECKING:
    from refusaldir.models.bridge import HookedModel
    from refusaldir.probes.model_host import ModelHost
    from refusaldir.prompts.render import RenderedSet


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a direction is selected from.

    Attributes:
        path: The capture.
        provenance: What decided its values.
        rendered: Its prompts as tokens, in the order of the capture.
        rendering: How they became that.
    """

    path: Path
    provenance: Provenance
    rendered: "RenderedSet"
    rendering: Rendering

    @classmethod
    def of_plan(cls, plan: Plan, path: Path) -> "Material":
        """The capture that a plan made."""
        return cls(
            path=path, provenance=peek(path), rendered=plan.rendered, rendering=plan.rendering
        )

    @classmethod
    def of_capture(cls, path: Path, tokenizer: Any, template: str | None = None) -> "Material":
        """An older capture, its prompts rendered again.

        Args:
            path: The capture.
            tokenizer: That of its model.
            template: The chat template it was made with, where that is not the tokenizer's own.

        Raises:
            CaptureMismatchError: The prompts give other tokens now.
        """
        with Capture.open(path) as capture:
            provenance, prompts = capture.provenance, capture.prompts
        rendering = Rendering.of_capture(provenance, template)
        rendered = rendering.renderer(tokenizer).render(prompts)
        if rendered.hash != provenance.rendered_hash:
            raise CaptureMismatchError(
                "The prompts of the capture give other tokens now",
                expected=f"rendered prompts {provenance.rendered_hash}",
                got=rendered.hash,
                where=path,
                next_step="Give the --template it was made with, or extract it again",
            )
        return cls(path=path, provenance=provenance, rendered=rendered, rendering=rendering)

    @property
    def labels(self) -> NDArray[np.int64]:
        """0 harmless, 1 harmful."""
        return np.asarray(self.rendered.prompts.labels)

    def at(self, site: Site) -> Float[np.ndarray, "prompt d_model"]:
        """Activations at one site.

        Raises:
            DirectionError: The site was not captured.
            CaptureError: The capture is damaged.
        """
        with Capture.open(self.path) as capture:
            return read_site(capture, site)

    def prompts(self, rows: Sequence[int] | NDArray[np.int64]) -> PromptSet:
        """Some of the prompts, in the order given."""
        return self.rendered.take([int(i) for i in rows]).prompts

    def host(self, model: "HookedModel", batch_size: int | None) -> "ModelHost":
        """Its model as a host of replies, prompts rendered as they were for the capture."""
        from refusaldir.probes.model_host import ModelHost

        renderer = self.rendering.renderer(model.tokenizer)
        return ModelHost(hooked=model, renderer=renderer, batch_size=batch_size)

    def ids(self, rows: Sequence[int] | NDArray[np.int64]) -> list[tuple[int, ...]]:
        """Token ids of some prompts."""
        return [self.rendered.ids[int(i)] for i in rows]
