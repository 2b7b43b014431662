"""Where a monitored training run starts: what is measured, base's capture, refusal tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from refusaldir.directions.site import DEPTH
from refusaldir.errors import CaptureMismatchError
from refusaldir.models.bridge import HookedModel, hook_model
from refusaldir.models.config import text_config
from refusaldir.models.load import NO_BACKEND, LoadedModel
from refusaldir.pipeline.material import Material
from refusaldir.pipeline.plan import Plan, Rendering, versions
from refusaldir.pipeline.progress import silent
from refusaldir.probes.generation.generate import generate
from refusaldir.probes.phrases import PhraseJudge
from refusaldir.probes.refusal_tokens import (
    RefusalTokens,
    find_refusal_tokens,
    given_refusal_tokens,
)
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import ModelIdentity, Provenance, Site, content_hash

#: Tokens of the replies that refusal tokens are read off; enough to tell a refusal by its words.
REPLY_TOKENS = 24


@dataclass(frozen=True, kw_only=True)
class MonitorChoices:
    """What is measured and how.

    Attributes:
        prompts: Prompts of both classes.
        rendering: How they become tokens.
        hook: Hook point at which a site is chosen.
        site: Where the direction is followed; None chooses it on base.
        refusal_tokens: Tokens that begin a refusal; None reads them off the model's own replies.
        level: Nominal coverage of intervals.
        seed: Seed of folds and bands.
        batch_size: Prompts a batch; None finds a good size by itself.
    """

    prompts: PromptSet
    rendering: Rendering = field(default_factory=Rendering)
    hook: str = "resid_pre"
    site: Site | None = None
    refusal_tokens: Sequence[str] | None = None
    level: float = 0.95
    seed: int = 0
    batch_size: int | None = None


def hook_training(model: PreTrainedModel, tokenizer: Any) -> HookedModel:
    """Hook a model in memory; TransformerLens would rewire it, plain hooks come and go."""
    text = text_config(model.config)
    sums = [
        [name, list(p.shape), float(p.detach().double().sum())]
        for name, p in model.named_parameters()
    ]
    where = model.config._name_or_path or type(model).__name__
    identity = ModelIdentity(
        spec=where,
        name=Path(where).name,
        weights_hash=content_hash(sums),
        architecture=type(model).__name__,
        n_layers=text.num_hidden_layers,
        d_model=text.hidden_size,
        vocab_size=text.vocab_size,
        dtype=str(model.dtype).removeprefix("torch."),
        backend=NO_BACKEND,
    )
    loaded = LoadedModel(hf=model, tokenizer=tokenizer, identity=identity)
    return hook_model(loaded, "torch_hooks")


def capture_start(choices: MonitorChoices, model: HookedModel, path: Path) -> None:
    """Capture the layers among which a site is chosen, at the positions after the instruction."""
    choices.prompts.require_both_classes()
    renderer = choices.rendering.renderer(model.tokenizer)
    rendered = renderer.render(choices.prompts)
    hook, layers = choices.hook, tuple(range(max(1, int(DEPTH * model.n_layers))))
    positions = renderer.positions("post" if renderer.post_ids else "-1")
    if choices.site is not None:
        hook, layers = choices.site.hook, (choices.site.layer,)
        positions = renderer.positions(str(choices.site.position))
    rendered.check_positions(positions)
    provenance = Provenance(
        model=model.identity,
        template=rendered.identity,
        prompts_name=choices.prompts.name,
        prompts_hash=choices.prompts.hash,
        rendered_hash=rendered.hash,
        hooks=(hook,),
        layers=layers,
        positions=positions,
        versions=versions(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    plan = Plan(
        rendered=rendered,
        rendering=choices.rendering,
        provenance=provenance,
        batch_size=choices.batch_size,
    )
    plan.run(model, path, "Capture", resume=False, force=False, progress=silent)


def tokens_at_start(
    choices: MonitorChoices, model: HookedModel, material: Material
) -> RefusalTokens:
    """The user's, or those that begin the model's own refusals."""
    if choices.refusal_tokens:
        return given_refusal_tokens(model.tokenizer, list(choices.refusal_tokens))
    judge, prompts = PhraseJudge(), material.rendered.prompts
    replies = generate(
        model,
        material.rendered.ids,
        max_new_tokens=REPLY_TOKENS,
        batch_size=choices.batch_size,
    )
    return find_refusal_tokens(
        model.tokenizer,
        [reply.ids[0] if reply.ids else None for reply in replies],
        [judge(prompts[reply.index].text, reply.text).label for reply in replies],
        [prompts[reply.index].label == "harmful" for reply in replies],
    )


def require_shape(base: ModelIdentity, own: ModelIdentity) -> None:
    """Refuse a capture of a model of another shape.

    Raises:
        CaptureMismatchError: It has another number of layers or another width.
    """
    if (base.n_layers, base.d_model) != (own.n_layers, own.d_model):
        raise CaptureMismatchError(
            "The capture of base is of a model of another shape",
            expected=f"{own.n_layers} layers of width {own.d_model}",
            got=f"{base.n_layers} layers of width {base.d_model}",
            where=base.name,
        )
