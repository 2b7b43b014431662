"""What the maths needs from a capture, whether it lies on disk or in memory."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from refusaldir.errors import CaptureError, DirectionError
from refusaldir.records import HARMFUL, HARMLESS, Positions, Provenance, Site
from refusaldir.statistics import Clusters

#: Fewest intents per class for which held-out figures and intervals are made.
MIN_INTENTS = 4


@runtime_checkable
class PromptLike(Protocol):
    """The part of a prompt that the maths reads."""

    @property
    def id(self) -> str:
        """Unique id."""

    @property
    def intent_id(self) -> str:
        """Id of the intent; twins and framings of one intent share it."""

    @property
    def category(self) -> str:
        """Hazard category."""

    @property
    def turns(self) -> Sequence[object]:
        """The conversation, compared for equality between captures."""

    @property
    def split(self) -> str | None:
        """``train``, ``validation``, ``test`` or None."""


@runtime_checkable
class CaptureReader(Protocol):
    """Activations of one model on one prompt set; `refusaldir.store.Capture` is one."""

    @property
    def provenance(self) -> Provenance:
        """Where the values come from."""

    @property
    def prompts(self) -> Iterable[PromptLike]:
        """The prompts, in the order of the ``prompt`` axis."""

    @property
    def labels(self) -> Int[np.ndarray, " prompt"]:
        """0 harmless, 1 harmful."""

    @property
    def hooks(self) -> Sequence[str]:
        """Hook points captured."""

    @property
    def layers(self) -> Sequence[int]:
        """Block indices captured, ascending."""

    @property
    def positions(self) -> Positions:
        """Token positions captured."""

    def read(self, hook: str, *, layer: int) -> Float[np.ndarray, "prompt pos d_model"]:
        """Activations of one layer, float32."""


def read_layer(
    capture: CaptureReader, hook: str, layer: int
) -> Float[np.ndarray, "prompt pos d_model"]:
    """Read one layer and check it.

    Raises:
        CaptureError: When the shape is not ``prompt pos d_model`` or a value is not finite.
    """
    x = np.asarray(capture.read(hook, layer=layer))
    shape = (len(capture.labels), len(capture.positions.offsets), capture.provenance.model.d_model)
    where = f"{hook}.{layer} of {capture.provenance.model.name}"
    if x.shape != shape:
        raise CaptureError(
            "a capture holds activations of another shape than its labels and positions say",
            expected=shape,
            got=x.shape,
            where=where,
            next_step="Extract it again",
        )
    if not np.all(np.isfinite(x)):
        raise CaptureError(
            "activations are not finite",
            got=f"{int((~np.isfinite(x)).sum())} NaN or infinite values",
            where=where,
            next_step="Extract again in float32 or bfloat16",
        )
    return x


def read_site(capture: CaptureReader, site: Site) -> Float[np.ndarray, "prompt d_model"]:
    """Read one site and check it.

    Raises:
        DirectionError: The site was not captured.
        CaptureError: As `read_layer` says.
    """
    offsets = capture.positions.offsets
    if (
        site.hook not in capture.hooks
        or site.layer not in capture.layers
        or site.position not in offsets
    ):
        raise DirectionError(
            "a site was not captured",
            expected=f"a hook in {tuple(capture.hooks)}, a layer in {tuple(capture.layers)} "
            f"and a position in {offsets}",
            got=site,
        )
    return read_layer(capture, site.hook, site.layer)[:, offsets.index(site.position)]


def enough_intents(
    prompts: Iterable[PromptLike],
    labels: Int[np.ndarray, " prompt"],
    rows: Int[np.ndarray, " chosen"] | Bool[np.ndarray, " prompt"],
) -> bool:
    """Whether some of the prompts hold `MIN_INTENTS` intents of each class."""
    intents, y = np.array([p.intent_id for p in prompts])[rows], labels[rows]
    return all(len(set(intents[y == label])) >= MIN_INTENTS for label in (HARMLESS, HARMFUL))


def clusters_of(prompts: Iterable[PromptLike], labels: Int[np.ndarray, " prompt"]) -> Clusters:
    """Group prompts by intent, and check that both classes hold enough intents.

    Raises:
        DirectionError: When a class has fewer than `MIN_INTENTS` intents.
    """
    clusters = Clusters.of([p.intent_id for p in prompts], labels)
    for label, name in ((HARMFUL, "harmful"), (HARMLESS, "harmless")):
        intents = len(np.unique(clusters.codes[labels == label]))
        if intents < MIN_INTENTS:
            raise DirectionError(
                "there are too few prompts to estimate a direction and its error",
                expected=f"at least {MIN_INTENTS} {name} intents",
                got=intents,
                next_step="Use more prompts; 32 intents per class or more give useful intervals",
            )
    return clusters
