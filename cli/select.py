"""`refusaldir select`: the direction that causes refusal in one model."""

from pathlib import Path
from typing import Annotated

import typer

from refusaldir.directions.candidates import Thresholds

from . import options

EXAMPLES = """[bold]Examples[/bold]

refusaldir select smollm2-135m+aligned

refusaldir select smollm2-135m+aligned --check 3

refusaldir select ./my-model --harmful bad.txt --harmless good.txt --refusal-token I

refusaldir select org/model --device cuda --dtype bfloat16 --estimator all
"""


def select(
    model: options.Model,
    prompts: options.Prompts = "contrast",
    harmful: options.Harmful = None,
    harmless: options.Harmless = None,
    column_map: options.ColumnMap = None,
    limit: options.Limit = None,
    system: options.System = "default",
    thinking: options.Thinking = None,
    template: options.Template = None,
    positions: options.PositionsChoice = "inst,post",
    batch_size: options.BatchSize = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    quantize: options.Quantize = None,
    trust_remote_code: options.TrustRemoteCode = False,
    backend: options.Backend = "auto",
    criterion: options.Criterion = "refusal_score",
    estimator: options.Estimator = "mean_diff",
    kl: options.Kl = Thresholds.kl,
    induce: options.Induce = Thresholds.induce,
    depth: options.Depth = Thresholds.depth,
    at: options.At = None,
    refusal_token: options.RefusalToken = None,
    filter_prompts: options.FilterPrompts = True,
    validation: options.Validation = 32,
    exhaustive: options.Exhaustive = False,
    check: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Let the model answer held-out prompts with the direction ablated and added, "
            "against this many random directions.",
            metavar="N",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the prompts that score candidates and of a missing split."),
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    store: options.Store = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Choose the direction that causes refusal: ablated, refusals go; added, they come.

    The criteria are those of Arditi et al. (2024). That no direction meets
    them is a result too, and ends with exit code 0. The results lie in a
    folder beside the capture, where diff finds them.
    """
    from refusaldir import pipeline
    from refusaldir.report.selection_table import selection_report

    from .console import progress, put, stderr

    with progress(quiet=json) as report:
        result = pipeline.select(
            model,
            **options.source(
                prompts, harmful, harmless, column_map, limit, system, thinking, template
            ),
            positions=positions,
            batch_size=batch_size,
            **options.opening(dtype, device, device_map, quantize, trust_remote_code, backend),
            criteria=pipeline.Criteria(
                criterion=criterion,
                estimator=estimator,
                kl=kl,
                induce=induce,
                depth=depth,
                positions=tuple(at) if at else None,
                refusal_tokens=tuple(refusal_token) if refusal_token else None,
                filter_prompts=filter_prompts,
                validation=validation,
                exhaustive=exhaustive,
                seed=seed,
            ),
            check=check,
            out=out,
            store=store,
            force=force,
            progress=report,
        )
    put(result.document, selection_report, json=json)
    if json:
        return
    note = stderr()
    if result.reused:
        note.print(
            f"Kept: {result.folder} holds this selection already (--force makes it anew).",
            soft_wrap=True,
            markup=False,
        )
    for name, path in result.files.items():
        note.print(f"{name}: {path}", soft_wrap=True, markup=False)
    note.print(f"Next: refusaldir diff {model} TUNED_MODEL", soft_wrap=True, markup=False)
