"""`probe`: what one model refuses and what it answers, in process or behind a server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.directions.exchange import load_direction
from refusaldir.directions.mean_diff import Direction
from refusaldir.errors import ProbeError, StoreError
from refusaldir.models.options import LoadOptions
from refusaldir.models.spec import ModelSpec
from refusaldir.pipeline.battery import (
    JUDGES,
    MAX_NEW_TOKENS,
    SAMPLES,
    Battery,
    load_battery,
    load_escalations,
    make_judges,
    make_plan,
)
from refusaldir.pipeline.model_run import SUMMARY, ModelRun
from refusaldir.pipeline.opening import Opening
from refusaldir.pipeline.plan import Rendering
from refusaldir.pipeline.progress import ProgressFn, silent
from refusaldir.probes.endpoint import Endpoint
from refusaldir.probes.host import Along
from refusaldir.probes.run import FILES, ProbeRun
from refusaldir.probes.server_host import ServerHost
from refusaldir.prompts.schema import PromptSet
from refusaldir.records import ModelIdentity, TemplateIdentity, content_hash
from refusaldir.store import default_store

if TYPE_CHECKING:
    from refusaldir.probes.behaviour import ServedModel

#: Judges of a model behind a server, which shows no first-token score.
SERVER_JUDGES = ("phrases",)


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What `probe` found.

    Attributes:
        document: The content of ``probe.json``.
        folder: Where everything was written.
        files: What was written, by name.
        reused: True when all of it was there already.
    """

    document: dict[str, Any] = field(repr=False)
    folder: Path
    files: Mapping[str, Path]
    reused: bool = False

    @property
    def run(self) -> ProbeRun:
        """The replies, read from the folder."""
        return ProbeRun.read(self.folder)

    def _repr_html_(self) -> str:
        from refusaldir.report.notebook import as_html
        from refusaldir.report.probe_table import probe_report

        return as_html(probe_report(self.document), self.files)


def probe(
    model: str | ModelSpec | None = None,
    *,
    battery: str | Path | PromptSet = "battery",
    harmful: str | Path | None = None,
    harmless: str | Path | None = None,
    column_map: Mapping[str, str] | None = None,
    limit: int | None = None,
    system: str = "default",
    thinking: bool | None = None,
    template: str | None = None,
    escalations: str = "off",
    temperatures: Sequence[float] = (0.0,),
    samples: int = SAMPLES,
    seeds: Sequence[int] = (0,),
    max_new_tokens: int = MAX_NEW_TOKENS,
    judges: Sequence[str] | None = None,
    refusal_tokens: Sequence[str] | None = None,
    direction: str | Path | Direction | None = None,
    endpoint: Endpoint | None = None,
    batch_size: int | None = None,
    options: LoadOptions | None = None,
    backend: str = "auto",
    out: str | Path | None = None,
    store: str | Path | None = None,
    force: bool = False,
    progress: ProgressFn = silent,
) -> Probed:
    """Ask one model a battery of harmful and harmless prompts and sum up what it refuses.

    Repeating a call goes on where it was stopped, and asks only for what is missing: more prompts,
    samples or judges than last time need nothing that is there to be made again.

    Args:
        model: A model spec; None with an endpoint.
        battery: ``battery``, ``contrast``, a file, a preset or a Hugging Face data set, as
            `refusaldir.load_prompts` takes them; ``off`` for escalations alone.
        harmful: A file of harmful prompts, with ``harmless``, in place of a battery.
        harmless: A file of harmless prompts.
        column_map: As in `extract`.
        limit: Use the first so many prompts of each class, and escalations likewise.
        system: As in `extract`; a server cannot be asked for ``none``.
        thinking: As in `extract`; a server is sent ``chat_template_kwargs``.
        template: As in `extract`; not with an endpoint.
        escalations: Built-in escalations of several turns: ``off``, ``frozen`` (canned replies in
            between), ``live`` (the model's own) or ``both``.
        temperatures: Temperatures; 0 is greedy.
        samples: Replies to each prompt and seed above temperature 0.
        seeds: Seeds of whole repetitions above temperature 0.
        max_new_tokens: Budget of each reply.
        judges: Judges as `refusaldir.probes.judging.spec` names them, the first one's labels
            counting. By default phrases and, in process, the first token.
        refusal_tokens: First tokens of refusals; None finds them in the model's own refusals.
        direction: A direction, or its file, to project every prompt on.
        endpoint: An OpenAI-compatible server in place of a model.
        batch_size: Prompts a batch; None finds a good size by itself.
        options: Dtype, device and so on, of the model and of judges that are models.
        backend: As in `extract`.
        out: Folder for the results; None names one in the store.
        store: The folder for captures and runs.
        force: Replace another run in the folder.
        progress: Called with stage, done and total.

    Returns:
        The summary and what was written: ``probe.json`` and the replies as JSON lines.

    Raises:
        OutputExistsError: The folder holds another run, or more of this one.
        ProbeError: Replies or labels cannot be had; what came is kept.
        RefusaldirError: Whatever else the user can mend.
    """
    played, modes = load_escalations(escalations, limit)
    named = judges if judges is not None else JUDGES if endpoint is None else SERVER_JUDGES
    asked = Battery(
        prompts=None
        if battery == "off"
        else load_battery(
            battery, harmful=harmful, harmless=harmless, column_map=column_map, limit=limit
        ),
        escalations=played,
        modes=modes,
        plan=make_plan(temperatures, samples=samples, seeds=seeds, max_new_tokens=max_new_tokens),
        judges=make_judges(named),
    )
    if not list(asked.parts()):
        raise ProbeError(
            "there is nothing to ask",
            got="--battery off without escalations",
            next_step="Choose a battery, or --escalations frozen, live or both",
        )
    rendering = Rendering(system=system, thinking=thinking, template=template)
    settings = {
        "limit": limit,
        "system": system,
        "thinking": thinking,
        "refusal_tokens": None if refusal_tokens is None else list(refusal_tokens),
        **asked.settings,
    }
    if endpoint is not None:
        _require_server_can(model, template, options, refusal_tokens, direction, system, asked)
        place = _Place(asked, out, store, force, progress)
        return place.server(_asked_with(endpoint, system, thinking), settings)
    if model is None:
        raise ProbeError(
            "there is no model to ask", expected="a model, or --endpoint with --served-model"
        )
    opening = Opening(
        spec=ModelSpec.parse(model), options=options or LoadOptions(), backend=backend
    )
    along = direction if direction is None or isinstance(direction, Direction) else (
        load_direction(direction)
    )  # fmt: skip
    place = _Place(asked, out, store, force, progress)
    return place.model(opening, rendering, along, refusal_tokens, batch_size, settings)


def _require_server_can(
    model: object,
    template: str | None,
    options: LoadOptions | None,
    refusal_tokens: Sequence[str] | None,
    direction: object,
    system: str,
    asked: Battery,
) -> None:
    """Refuse what a server decides by itself or does not show.

    Raises:
        ProbeError: Something of that was asked for.
    """
    by_itself = [
        ("a model", model is not None),
        ("--template", template is not None),
        ("options to load a model", options not in (None, LoadOptions())),
        ("--system none", system == "none"),
    ]
    unseen = [
        ("--refusal-token", refusal_tokens is not None),
        ("--direction", direction is not None),
        ("--judge first-token", any(judge.kind == "first-token" for judge in asked.judges)),
    ]
    for what, found in (
        ("a server has its own model, template and system prompt", by_itself),
        ("a server shows neither logits nor activations", unseen),
    ):
        got = [name for name, given in found if given]
        if got:
            raise ProbeError(
                what, got=", ".join(got), where="--endpoint", next_step="Leave one of the two out"
            )


def _asked_with(endpoint: Endpoint, system: str, thinking: bool | None) -> Endpoint:
    """The endpoint with what every request says about system prompt and thinking."""
    if system != "default":
        endpoint = replace(endpoint, system=system)
    if thinking is not None:
        switch = {"chat_template_kwargs": {"enable_thinking": thinking}}
        endpoint = replace(endpoint, extra={**endpoint.extra, **switch})
    return endpoint


@dataclass(frozen=True)
class _Place:
    """What is asked and where it goes, whoever answers."""

    asked: Battery
    out: str | Path | None
    store: str | Path | None
    force: bool
    progress: ProgressFn

    def server(self, endpoint: Endpoint, settings: dict[str, Any]) -> Probed:
        """Ask a server."""
        host = ServerHost(endpoint=endpoint)
        settings = {**settings, "direction": None}
        run = self._run(host.model, None)
        kept = self._kept(run, settings, host.model, None)
        if kept is not None:
            return kept
        run.ask(host, Along())
        return self._conclude(run, settings, None)

    def model(
        self,
        opening: Opening,
        rendering: Rendering,
        direction: Direction | None,
        refusal_tokens: Sequence[str] | None,
        batch_size: int | None,
        settings: dict[str, Any],
    ) -> Probed:
        """Ask a model in this process."""
        from refusaldir.models.load import load_tokenizer
        from refusaldir.probes.model_host import ModelHost
        from refusaldir.probes.refusal_tokens import given_refusal_tokens

        identity = opening.identity()
        tokenizer = load_tokenizer(opening.spec, opening.options)
        template = rendering.renderer(tokenizer).identity
        settings = {**settings, "direction": Along(direction=direction).direction_name}
        run = self._run(identity, template)
        kept = self._kept(run, settings, identity, template)
        if kept is not None:
            return kept
        tokens = None if not refusal_tokens else given_refusal_tokens(tokenizer, refusal_tokens)
        with opening.model() as hooked:
            host = ModelHost(
                hooked=hooked, renderer=rendering.renderer(hooked.tokenizer), batch_size=batch_size
            )
            run.ask(host, Along(tokens=tokens, direction=direction))
            run.surprise(host)
            del hooked, host
        return self._conclude(run, settings, opening.options)

    def _run(
        self, model: "ModelIdentity | ServedModel", template: TemplateIdentity | None
    ) -> ModelRun:
        folder = Path(self.out) if self.out is not None else self._default(model, template)
        return ModelRun(battery=self.asked, folder=folder, force=self.force, progress=self.progress)

    def _default(
        self, model: "ModelIdentity | ServedModel", template: TemplateIdentity | None
    ) -> Path:
        """A folder for this model, template, budget and prompts; samples and judges may grow."""
        own = model.to_dict()
        what = [
            [own.get("weights_hash"), own["dtype"], own["quantization"]]
            if isinstance(model, ModelIdentity)
            else own,
            None if template is None else template.to_dict(),
            None if self.asked.prompts is None else self.asked.prompts.hash,
            self.asked.plan.max_new_tokens,
        ]
        name = "".join(c if c.isalnum() or c in "-_.+" else "-" for c in model.name)
        return default_store(self.store) / f"probe-{name}-{content_hash(what)[:8]}"

    def _kept(
        self,
        run: ModelRun,
        settings: dict[str, Any],
        model: "ModelIdentity | ServedModel",
        template: TemplateIdentity | None,
    ) -> Probed | None:
        """The run if all of it is there: same settings, model, template, prompts and judges."""
        from refusaldir.report.probe_document import load_probe

        path = run.folder / SUMMARY
        if self.force or not path.exists():
            return None
        try:
            document = load_probe(path)
        except StoreError:
            return None  # It is made anew from the replies.
        parts = {"single": document["single"], **document["escalations"]}
        asked = {name: prompts for name, prompts, _ in self.asked.parts()}
        if document["options"] != settings or {n for n in parts if parts[n]} != set(asked):
            return None
        same = ("weights_hash", "dtype", "quantization", "where", "name", "extra")
        own = {key: value for key, value in model.to_dict().items() if key in same}
        if isinstance(model, ModelIdentity):
            del own["name"]
        versions = [judge.open().version for judge in self.asked.judges if judge.kind != "hf"]
        for name, prompts in asked.items():
            made = parts[name]["provenance"]
            if (
                made["prompts_hash"] != prompts.hash
                or _template(made) != template
                or any(made["model"].get(key) != value for key, value in own.items())
                or not set(versions) <= set(made["judges"])
                or not (run.folder / FILES[name]).exists()
            ):
                return None
        files = {name: run.folder / name for name in [SUMMARY, *(FILES[n] for n in asked)]}
        return Probed(document=document, folder=run.folder, files=files, reused=True)

    def _conclude(
        self, run: ModelRun, settings: dict[str, Any], options: LoadOptions | None
    ) -> Probed:
        run.judge(options)
        document = run.summarise(settings)
        return Probed(document=document, folder=run.folder, files=run.files)


def _template(provenance: Mapping[str, Any]) -> TemplateIdentity | None:
    made = provenance["template"]
    return None if made is None else TemplateIdentity.from_dict(made)
