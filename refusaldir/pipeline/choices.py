"""How models are compared, and on what: the choices that every comparison of a run shares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refusaldir.directions.candidates import HOOK
from refusaldir.errors import PromptError, RefusaldirError
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.arm import Arm, Terms, is_capture
from refusaldir.pipeline.battery import Asked, Battery
from refusaldir.pipeline.criteria import Criteria
from refusaldir.pipeline.opening import Opening
from refusaldir.pipeline.plan import Rendering, prompt_set
from refusaldir.prompts.schema import PromptSet

Side = str | Path | ModelSpec

#: What may be left out of a comparison is on, off, or auto: on where model specs are given.
SWITCH = ("auto", "on", "off")


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How models are compared, whichever they are; `diff` says what each field means."""

    hook: str
    position: int | None
    batch_size: int | None
    options: LoadOptions
    backend: str
    template: str | None
    allow_dtype_mismatch: bool
    select: str
    criteria: Criteria | None
    follow_nearest: bool
    behaviour: str
    refusal_tokens: tuple[str, ...] | None
    seed: int
    store: str | Path | None
    force: bool

    def __post_init__(self) -> None:
        """Refuse unknown words, and a selection together with another site."""
        for where, value in (("behaviour", self.behaviour), ("select", self.select)):
            if value not in SWITCH:
                raise RefusaldirError(
                    "Unknown choice", expected=" | ".join(SWITCH), got=value, where=f"--{where}"
                )
        if self.select == "on" and not self.by_cause:
            raise RefusaldirError(
                "A selected direction brings its own site",
                expected=f"--hook {HOOK} and no --position",
                got=f"--hook {self.hook}"
                + ("" if self.position is None else f" --position {self.position}"),
                where="--select on",
            )

    def battery(
        self,
        asked: Asked,
        terms: Terms,
        *,
        specs: bool,
        column_map: Mapping[str, str] | None,
        limit: int | None,
    ) -> Battery | None:
        """What both models are asked; None where behaviour is not measured.

        Args:
            asked: What was said about it.
            terms: What the sides have in common.
            specs: Whether only model specs were given.
            column_map: As in `refusaldir.load_prompts`.
            limit: Most prompts of each class.

        Raises:
            RefusaldirError: Something was said and behaviour is off, or cannot be.
        """
        if asked.anything and self.behaviour == "off":
            raise RefusaldirError(
                "Models whose behaviour is off are asked nothing",
                got="an option about what they are asked",
                where="--behaviour off",
                next_step="Leave one of the two out",
            )
        if self.behaviour == "off" or (self.behaviour == "auto" and not (specs or asked.anything)):
            return None
        # Those that no direction was fitted or chosen on; all where there are no splits.
        held_out = terms.prompts.select(split="test") or terms.prompts
        return asked.made(held_out, column_map=column_map, limit=limit)

    @property
    def by_cause(self) -> bool:
        """Whether the site may be that of a selected direction."""
        return self.hook == HOOK and self.position is None and self.select != "off"

    def arm(self, role: str, side: Side, terms: Terms) -> Arm:
        """One side of a comparison."""
        if is_capture(side):
            return Arm.of_capture(role, Path(str(side)), self.options, self.backend)
        spec = ModelSpec.parse(str(side) if isinstance(side, Path) else side)
        opening = Opening(spec=spec, options=self.options, backend=self.backend)
        return Arm.of_plan(role, opening, terms.plan(opening, self.batch_size), self.store)


def make_terms(
    sides: Sequence[Side],
    choices: Choices,
    *,
    prompts: str | Path | PromptSet,
    harmful: str | Path | None,
    harmless: str | Path | None,
    column_map: Mapping[str, str] | None,
    limit: int | None,
    system: str,
    thinking: bool | None,
    positions: str,
) -> Terms:
    """What all sides have in common: that of the first capture among them, else as asked.

    Raises:
        PromptError: The prompts cannot be read, or were chosen beside a capture.
        StoreError: The capture cannot be read.
    """
    captures = [Path(str(side)) for side in sides if is_capture(side)]
    if not captures:
        return Terms(
            prompts=prompt_set(prompts, harmful, harmless, column_map, limit),
            rendering=Rendering(system=system, thinking=thinking, template=choices.template),
            hooks=(choices.hook,),
            layers=None,
            positions=positions,
        )
    if (prompts, harmful, harmless, limit) != ("contrast", None, None, None):
        raise PromptError(
            "The prompts of a capture are fixed",
            got="a choice of prompts beside a capture",
            where=captures[0],
            next_step="Leave the prompt options out, or give two model specs",
        )
    return Terms.of_capture(captures[0], choices.hook, choices.template)
