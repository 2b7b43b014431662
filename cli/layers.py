"""`refusaldir layers`: which layers a fine-tune disturbed."""

from pathlib import Path
from typing import Annotated

import typer

from . import options

EXAMPLES = """[bold]Examples[/bold]

refusaldir layers smollm2-135m+aligned smollm2-135m+aligned+tuned

refusaldir layers ./base ./tuned --mode full --refusal-token I

refusaldir layers ./base ./base+./my-lora --outcome projection --site resid_pre.16@-1

refusaldir layers ./base ./tuned --repair --task-text train.txt
"""

_OUTCOME, _LENSES = "Outcome", "Lenses"


def layers(
    base: Annotated[str, typer.Argument(help="A model spec, as in extract.", show_default=False)],
    tuned: Annotated[
        str,
        typer.Argument(help="A fine-tune of it, or base+ADAPTER.", show_default=False),
    ],
    prompts: options.Prompts = "contrast",
    harmful: options.Harmful = None,
    harmless: options.Harmless = None,
    column_map: options.ColumnMap = None,
    limit: options.Limit = None,
    system: options.System = "default",
    thinking: options.Thinking = None,
    template: options.Template = None,
    category: Annotated[
        str | None,
        typer.Option(help="Only harmful prompts of this category.", rich_help_panel="Prompts"),
    ] = None,
    outcome: Annotated[
        str,
        typer.Option(
            help="What the layers are held to account for: score (refusal score), projection (on "
            "the direction at its site) or rate (refusals among answers; needs --mode full).",
            rich_help_panel=_OUTCOME,
        ),
    ] = "score",
    refusal_token: Annotated[
        list[str] | None,
        typer.Option(
            help="First token of a refusal; found from base's own refusals otherwise. Repeat for "
            "more.",
            rich_help_panel=_OUTCOME,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option(min=1, help="Length of the answers (rate).", rich_help_panel=_OUTCOME),
    ] = 64,
    mode: Annotated[
        str,
        typer.Option(
            help="fast: path attribution, residual stream and weights; full: also exchange blocks "
            "between the models, one by one.",
            rich_help_panel=_LENSES,
        ),
    ] = "fast",
    heads: Annotated[
        bool,
        typer.Option("--heads", help="Take attention apart by head.", rich_help_panel=_LENSES),
    ] = False,
    site: Annotated[
        str | None,
        typer.Option(
            help="Where the direction is read, e.g. resid_pre.16@-1; that of the selection "
            "otherwise, or where base separates best.",
            rich_help_panel=_LENSES,
            metavar="HOOK.LAYER@POSITION",
        ),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Find the fewest layers whose return to base brings the outcome back, in memory.",
            rich_help_panel=_LENSES,
        ),
    ] = False,
    task_text: Annotated[
        Path | None,
        typer.Option(
            help="The fine-tune's own text, a text a line, to measure what the repair costs.",
            rich_help_panel=_LENSES,
        ),
    ] = None,
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    quantize: options.Quantize = None,
    trust_remote_code: options.TrustRemoteCode = False,
    backend: options.Backend = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for layers.json and the figure.")] = None,
    store: options.Store = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Find the layers whose change moved refusal: ranked, with bands, and how lenses agree.

    Both models are in memory together. Writes layers.json and the figure
    (PNG and SVG); no model is written.
    """
    from refusaldir import pipeline
    from refusaldir.report.layers_table import layers_report

    from .console import progress, put, stderr

    with progress(quiet=json) as report:
        result = pipeline.which_layers(
            base,
            tuned,
            **options.source(
                prompts, harmful, harmless, column_map, limit, system, thinking, template
            ),
            mode=mode,
            outcome=outcome,
            category=category,
            heads=heads,
            repair=repair,
            task_text=task_text,
            site=site,
            refusal_tokens=refusal_token,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            **options.opening(dtype, device, device_map, quantize, trust_remote_code, backend),
            seed=seed,
            out=out,
            store=store,
            force=force,
            progress=report,
        )
    put(result.document, layers_report, json=json)
    if json:
        return
    note = stderr()
    for name, path in result.files.items():
        note.print(f"{name}: {path}", soft_wrap=True, markup=False)
    note.print(
        f"Next: refusaldir show {result.folder / 'layers.json'}", soft_wrap=True, markup=False
    )
