"""What is known about a capture before any weight is loaded, and the run that makes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refusaldir.errors import CaptureError, PromptError
from refusaldir.pipeline.opening import Opening
from refusaldir.pipeline.progress import ProgressFn, counter
from refusaldir.prompts.load import load_pair, load_prompts
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import HOOKS, ModelIdentity, Positions, Provenance
from refusaldir.store import CaptureWriter

if TYPE_CHECKING:
    from refusaldir.models.bridge import HookedModel
    from refusaldir.prompts.render import ChatRenderer, RenderedSet


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """How prompts become tokens; see `refusaldir.prompts.render.ChatRenderer`."""

    system: str = "default"
    thinking: bool | None = None
    template: str | None = None

    @classmethod
    def of_capture(cls, provenance: Provenance, template: str | None) -> "Rendering":
        """How a capture's prompts became tokens.

        Args:
            provenance: That of the capture.
            template: The chat template it was made with, where that is not the tokenizer's own.
        """
        made = provenance.template
        return cls(system=made.system, thinking=made.thinking, template=template)

    def renderer(self, tokenizer: Any) -> "ChatRenderer":
        """Renders with one tokenizer."""
        from refusaldir.prompts.render import ChatRenderer

        return ChatRenderer(
            tokenizer, system=self.system, thinking=self.thinking, template=self.template
        )

    def render(
        self, opening: Opening, prompts: PromptSet, positions: str
    ) -> "tuple[RenderedSet, Positions]":
        """Render prompts with the tokenizer that belongs to a model."""
        from refusaldir.models.load import load_tokenizer

        renderer = self.renderer(load_tokenizer(opening.spec, opening.options))
        return renderer.render(prompts), renderer.positions(positions)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A capture to be made; reads like one that has no values yet.

    Attributes:
        rendered: The prompts as tokens.
        rendering: How they became that.
        provenance: What decides the values.
        batch_size: Prompts a batch, or None.
    """

    rendered: "RenderedSet"
    rendering: Rendering
    provenance: Provenance
    batch_size: int | None = None

    @classmethod
    def make(
        cls,
        opening: Opening,
        prompts: PromptSet,
        rendering: Rendering,
        *,
        hooks: Sequence[str],
        layers: Sequence[int] | None,
        positions: str,
        batch_size: int | None = None,
    ) -> "Plan":
        """Resolve the model, render the prompts and settle the sites.

        Raises:
            RefusaldirError: Anything that can be known to fail before weights are loaded.
        """
        prompts.require_both_classes()
        identity = opening.identity()
        rendered, sites = rendering.render(opening, prompts, positions)
        rendered.check_positions(sites)
        provenance = Provenance(
            model=identity,
            template=rendered.identity,
            prompts_name=prompts.name,
            prompts_hash=prompts.hash,
            rendered_hash=rendered.hash,
            hooks=check_hooks(hooks),
            layers=check_layers(layers, identity),
            positions=sites,
            versions=versions(),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        return cls(
            rendered=rendered, rendering=rendering, provenance=provenance, batch_size=batch_size
        )

    def run(
        self,
        model: "HookedModel",
        path: Path,
        stage: str,
        *,
        resume: bool,
        force: bool,
        progress: ProgressFn,
    ) -> None:
        """Capture into a file.

        Raises:
            CaptureError: Values that are not finite, or a prompt that does not fit in memory.
            PromptError: A prompt is longer than the model's context.
            StoreError: The file cannot be written.
        """
        from refusaldir.capture import capture

        self.rendered.check_length(model.max_length)
        # Which backend serves the model is known only now that it is open.
        found = replace(
            self.provenance,
            model=replace(self.provenance.model, backend=model.identity.backend),
        )
        with CaptureWriter.create(
            path,
            provenance=found,
            prompts=self.rendered.prompts,
            lengths=self.rendered.lengths,
            d_model=found.model.d_model,
            storage_dtype="bfloat16" if found.model.dtype == "bfloat16" else "float32",
            force=force,
            resume=resume,
        ) as writer:
            count = counter(progress, stage, len(self.rendered))
            count(len(writer.done))
            for batch in capture(
                model,
                self.rendered.ids,
                hooks=found.hooks,
                layers=found.layers,
                positions=found.positions,
                skip=writer.done,
                batch_size=self.batch_size,
            ):
                writer.write(batch.indices, batch.values)
                count(len(batch.indices))
            writer.finish()

    # What `refusaldir.directions.reader.CaptureReader` asks for, all but the values, so that
    # two plans can be compared before an hour is spent on captures that cannot be.
    @property
    def prompts(self) -> PromptSet:
        """The prompts, in order."""
        return self.rendered.prompts

    @property
    def labels(self) -> np.ndarray:
        """0 harmless, 1 harmful."""
        return np.asarray(self.prompts.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each prompt."""
        return np.asarray(self.rendered.lengths)

    @property
    def hooks(self) -> tuple[str, ...]:
        """Hook points."""
        return self.provenance.hooks

    @property
    def layers(self) -> tuple[int, ...]:
        """Block indices."""
        return self.provenance.layers

    @property
    def positions(self) -> Positions:
        """Token positions."""
        return self.provenance.positions

    def read(self, hook: str, *, layer: int) -> np.ndarray:
        """Refuse: there are no values yet."""
        raise CaptureError("This capture has not been made yet")


def prompt_set(
    prompts: str | Path | PromptSet,
    harmful: str | Path | None,
    harmless: str | Path | None,
    column_map: Mapping[str, str] | None,
    limit: int | None,
) -> PromptSet:
    """Load the prompts that the options name.

    Raises:
        PromptError: They cannot be found or read, or only one of the two files was given.
    """
    if (harmful is None) != (harmless is None):
        raise PromptError(
            "Only one of the two classes was given",
            expected="both --harmful FILE and --harmless FILE",
            got="--harmful alone" if harmless is None else "--harmless alone",
        )
    if harmful is not None and harmless is not None:
        return load_pair(harmful, harmless, column_map=column_map, limit=limit)
    if isinstance(prompts, PromptSet):
        return prompts
    return load_prompts(prompts, column_map=column_map, limit=limit)


def check_hooks(hooks: Sequence[str]) -> tuple[str, ...]:
    """Check the names of hook points; whether a model has them is checked when it is open."""
    unknown = [hook for hook in hooks if hook not in HOOKS]
    if unknown or not hooks:
        raise CaptureError(
            "There is no such hook point",
            expected=" | ".join(HOOKS),
            got=", ".join(unknown) or "none",
            where="--hook",
        )
    return tuple(dict.fromkeys(hooks))


def check_layers(layers: Sequence[int] | None, identity: ModelIdentity) -> tuple[int, ...]:
    """Return the layers asked for, ascending; all of them for None."""
    if layers is None:
        return tuple(range(identity.n_layers))
    wrong = [layer for layer in layers if not 0 <= layer < identity.n_layers]
    if wrong or not layers:
        raise CaptureError(
            "The model has no such layer",
            expected=f"0 to {identity.n_layers - 1}",
            got=", ".join(map(str, wrong)) or "none",
            where=identity.name,
        )
    return tuple(sorted(set(layers)))


def versions() -> dict[str, str]:
    """Versions of what decides the values."""
    found = {}
    for package in ("refusaldir", "torch", "transformers", "transformer-lens"):
        try:
            found[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:
            found[package.replace("-", "_")] = "not installed"
    return found
