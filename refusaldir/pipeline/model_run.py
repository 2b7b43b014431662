"""One model's run in its folder, stage by stage: replies, surprise, judges, summary.

Each stage rewrites the file of a part whole and is done only where it is missing, so that a run
that was stopped anywhere goes on there when the same command is repeated.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusaldir.errors import OutputExistsError
from refusaldir.models.options import LoadOptions
from refusaldir.pipeline.battery import Battery
from refusaldir.pipeline.opening import release
from refusaldir.pipeline.progress import ProgressFn, counter
from refusaldir.probes.behaviour import Behaviour
from refusaldir.probes.escalation import conversations_of, user_turns
from refusaldir.probes.judged import SURPRISE, with_surprise
from refusaldir.probes.run import FILES, ProbeRun

if TYPE_CHECKING:
    from refusaldir.probes.host import Along, Host
    from refusaldir.probes.model_host import ModelHost
    from refusaldir.probes.refusal_tokens import RefusalTokens

#: The summary; a folder that holds it is complete.
SUMMARY = "probe.json"


@dataclass(kw_only=True)
class ModelRun:
    """A model's run.

    Args:
        battery: What it is asked.
        folder: Where everything goes.
        role: Which model it is, in words for the progress; empty where there is but one.
        force: Replace what another run left in the folder.
        progress: Called with stage, done and total.

    Attributes:
        found: The parts so far, by name.
    """

    battery: Battery
    folder: Path
    role: str = ""
    force: bool = False
    progress: ProgressFn
    found: dict[str, Behaviour] = field(default_factory=dict)

    @property
    def refusal_tokens(self) -> "RefusalTokens | None":
        """The tokens behind the scores of what is there; None where nothing is."""
        first = next(iter(self.found.values()), None)
        return None if first is None else first.refusal_tokens

    @property
    def run(self) -> ProbeRun:
        """The parts that are there."""
        return ProbeRun(**self.found)

    def ask(self, host: "Host", along: "Along") -> None:
        """Stage 1: the replies, labelled by phrases, with what their prompts show.

        Without refusal tokens, those found in the replies to single prompts serve escalations too.

        Raises:
            OutputExistsError: The folder holds another run, or more of this one.
            RefusaldirError: As `refusaldir.probes.measure.measure` says.
        """
        from refusaldir.probes.measure import measure

        self._refuse_others()
        for name, prompts, mode in self.battery.parts():
            total = sum(len(user_turns(p)) if mode else 1 for p in prompts)
            stage = self._stage("Respond" if mode is None else f"Escalate {mode}")
            self.found[name] = measure(
                host,
                prompts,
                self.battery.plan,
                mode=mode,
                along=along,
                path=self.folder / FILES[name],
                force=self.force,
                on_rows=counter(self.progress, stage, total * self.battery.plan.per_prompt),
            )
            (self.folder / SUMMARY).unlink(missing_ok=True)  # What it summed up may have grown.
            if along.tokens is None and name == "single":
                along = replace(along, tokens=self.found[name].refusal_tokens)

    def _stage(self, what: str) -> str:
        return f"{what} {self.role}".strip()

    def _refuse_others(self) -> None:
        """Parts in the folder that this run does not ask for are another run's, or more of it."""
        asked = {name for name, _, _ in self.battery.parts()}
        for name, file in FILES.items():
            path = self.folder / file
            if name in asked or not path.exists():
                continue
            if not self.force:
                raise OutputExistsError(
                    "The folder holds replies that this run does not ask for",
                    where=path,
                    next_step="Ask for them too, choose another --out, or remove them with --force",
                )
            path.unlink()

    def surprised(self, scorer: str) -> bool:
        """Whether every reply has been scored under a model, see `surprise`."""
        return all(
            part.provenance.scorers.get(SURPRISE) == scorer
            and all(SURPRISE in row.secondary or not row.response.strip() for row in part.rows)
            for part in self.found.values()
        )

    def surprise(self, host: "ModelHost") -> None:
        """Stage 2: how surprising every reply is to a model: base, or the model itself.

        Args:
            host: The model that scores.
        """
        from refusaldir.probes.generation.perplexity import surprises

        scorer = scorer_of(host)
        if self.surprised(scorer):
            return
        stage = f"Read replies of {self.role}" if self.role else "Read replies"
        total = sum(len(part.rows) for part in self.found.values())
        count = counter(self.progress, stage, total)
        for name, prompts, _ in self.battery.parts():
            part = self.found[name]
            values = surprises(
                host.hooked,
                host.render(conversations_of(part, prompts)).ids,
                [row.response for row in part.rows],
                batch_size=host.batch_size,
                on_batch=count,
            )
            self._keep(name, with_surprise(part, values, scorer))

    def _keep(self, name: str, part: Behaviour) -> None:
        self.found[name] = part
        part.to_jsonl(self.folder / FILES[name], force=True)

    def judge(self, options: LoadOptions | None = None) -> None:
        """Stage 3: what every judge says; a model that judges is alone in memory.

        Args:
            options: Dtype and device of judges that are models.

        Raises:
            ProbeError: A judge cannot be used. What was judged is kept.
            ModelSpecError: A judge's model is not there.
        """
        from refusaldir.probes.judging.labelling import add_judges

        primary = ""
        if options is not None:  # What was allowed for the model is not for a judge.
            options = replace(options, trust_remote_code=False, quantize=None)
        for spec in self.battery.judges:
            judge = spec.open(options=options)
            primary = primary or judge.version
            for name in self.found:
                rows = len(self.found[name].rows)
                stage = f"{self._stage('Judge')} by {spec}"
                count = counter(self.progress, stage, rows)
                self.found[name] = add_judges(
                    self.found[name],
                    [judge],
                    primary=primary,
                    path=self.folder / FILES[name],
                    on_labelled=_counted(count),
                )
            del judge
            release()

    def summarise(self, options: dict[str, Any]) -> dict[str, Any]:
        """Stage 4: write the summary, last, so that a folder that holds it is complete.

        Args:
            options: The settings of the document.
        """
        from refusaldir.probes.summary import summarise
        from refusaldir.report.document import write_json
        from refusaldir.report.probe_document import build_probe

        document = build_probe(summarise(self.run), options=options)
        write_json(document, self.folder / SUMMARY)
        return document

    @property
    def files(self) -> dict[str, Path]:
        """What was written, by name, the summary first."""
        names = [SUMMARY, *(FILES[name] for name in self.found)]
        return {name: self.folder / name for name in names}


def scorer_of(host: "ModelHost") -> str:
    """Names the model under which replies are scored."""
    model = host.model
    return f"{model.name} {model.weights_hash[:16]} {model.dtype}"


def _counted(count: Callable[[int], None]) -> Callable[[str, int], None]:
    return lambda version, rows: count(rows)
