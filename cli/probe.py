"""`refusaldir probe`: what one model refuses and what it answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options

if TYPE_CHECKING:
    from refusaldir.probes.endpoint import Endpoint

EXAMPLES = """[bold]Examples[/bold]

refusaldir probe smollm2-135m+aligned --limit 40

refusaldir probe ./my-model --temperature 0,0.7 --samples 5 --escalations both

refusaldir probe ./my-model --battery xstest --judge llm:gpt-4o@https://api.openai.com/v1

refusaldir probe --endpoint http://localhost:8000/v1 --served-model org/model
"""

_SERVER = "Server in place of MODEL"


def probe(
    model: Annotated[
        str | None,
        typer.Argument(
            help="WHERE\\[@REVISION]\\[+ADAPTER…]: Hub id, directory, .gguf file or bundled name. "
            "None with --endpoint.",
            show_default=False,
        ),
    ] = None,
    battery: Annotated[
        str,
        typer.Option(
            "--battery",
            "-p",
            help="battery (960 harmful prompts and their twins), contrast, a file with labels, a "
            "preset, a Hugging Face data set, or off (escalations alone).",
            rich_help_panel="Prompts",
        ),
    ] = "battery",
    harmful: options.Harmful = None,
    harmless: options.Harmless = None,
    column_map: options.ColumnMap = None,
    limit: options.Limit = None,
    system: options.System = "default",
    thinking: options.Thinking = None,
    template: options.Template = None,
    temperature: options.Temperature = "0",
    samples: options.Samples = 5,
    seeds: options.Seeds = "0",
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Budget of each reply.", rich_help_panel="Behaviour")
    ] = 192,
    escalations: options.Escalations = "off",
    judge: options.Judge = None,
    refusal_token: options.RefusalToken = None,
    direction: Annotated[
        Path | None,
        typer.Option(
            help="A direction (.safetensors) to project every prompt on.",
            rich_help_panel="Behaviour",
            metavar="FILE",
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Address of an OpenAI-compatible server, e.g. http://localhost:8000/v1. The key "
            "comes from $OPENAI_API_KEY.",
            rich_help_panel=_SERVER,
            metavar="URL",
        ),
    ] = None,
    served_model: Annotated[
        str | None,
        typer.Option(help="Name that it serves the model by.", rich_help_panel=_SERVER),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Requests at a time.", rich_help_panel=_SERVER)
    ] = 8,
    timeout: Annotated[
        float,
        typer.Option(
            help="Seconds without an answer after which a request is tried again.",
            rich_help_panel=_SERVER,
        ),
    ] = 300.0,
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    quantize: options.Quantize = None,
    trust_remote_code: options.TrustRemoteCode = False,
    backend: options.Backend = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the replies; named by itself otherwise.")
    ] = None,
    store: options.Store = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Ask one model harmful prompts and their harmless twins, and say what it refuses.

    Writes the replies, which stay on this machine, and their summary
    probe.json. Repeat the command to go on with what was cut off; more
    samples, judges or prompts ask only for what is missing. Two runs are
    compared by refusaldir diff.
    """
    from refusaldir.pipeline.probing import probe as run
    from refusaldir.report.probe_table import probe_report

    from .console import progress, put, stderr

    server = _server(endpoint, served_model, concurrency, timeout)
    given = options.source(None, harmful, harmless, column_map, limit, system, thinking, template)
    del given["prompts"]
    with progress(quiet=json) as report:
        result = run(
            model,
            battery=battery,
            **given,
            escalations=escalations,
            temperatures=options.parse_numbers(temperature, "--temperature", float),
            samples=samples,
            seeds=options.parse_numbers(seeds, "--seeds", int),
            max_new_tokens=max_new_tokens,
            judges=judge,
            refusal_tokens=refusal_token,
            direction=direction,
            endpoint=server,
            batch_size=batch_size,
            **options.opening(dtype, device, device_map, quantize, trust_remote_code, backend),
            out=out,
            store=store,
            force=force,
            progress=report,
        )
    put(result.document, probe_report, json=json)
    if json:
        return
    note = stderr()
    if result.reused:
        note.print(
            f"Kept: {result.folder} holds this run already.",
            soft_wrap=True,
            markup=False,
        )
    for name, path in result.files.items():
        note.print(f"{name}: {path}", soft_wrap=True, markup=False)
    note.print(
        f"Next: probe the fine-tune likewise, then refusaldir diff {result.folder} ITS_FOLDER",
        soft_wrap=True,
        markup=False,
    )


def _server(
    endpoint: str | None, served_model: str | None, concurrency: int, timeout: float
) -> "Endpoint | None":
    """The server that the options name.

    Raises:
        RefusaldirError: Only one of the two was given.
    """
    from refusaldir.errors import RefusaldirError
    from refusaldir.probes.chat_client import Patience
    from refusaldir.probes.endpoint import Endpoint

    if (endpoint is None) != (served_model is None):
        raise RefusaldirError(
            "A server is named by its address and the model it serves",
            expected="both --endpoint URL and --served-model NAME",
            got="--endpoint alone" if served_model is None else "--served-model alone",
        )
    if endpoint is None or served_model is None:
        return None
    return Endpoint(
        url=endpoint,
        model=served_model,
        concurrency=concurrency,
        patience=Patience(timeout=timeout),
    )
