"""`refusaldir judge`: further judges of replies that are there, and how good judges are."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from . import options

RUN_EXAMPLES = """[bold]Examples[/bold]

refusaldir judge run activations/demo/probe --judge hf:NousResearch/Minos-v1

refusaldir judge run DIFF --judge llm:Qwen/Qwen3-8B@http://localhost:8000/v1 --primary

refusaldir judge run DIFF --toxicity default
"""

SAMPLE_EXAMPLES = """[bold]Examples[/bold]

refusaldir judge sample DIFF/base --n 100 --out base-labels.csv
"""

CALIBRATE_EXAMPLES = """[bold]Examples[/bold]

refusaldir judge calibrate labels.csv --run activations/demo/probe

refusaldir judge calibrate base-labels.csv tuned-labels.csv --run DIFF

refusaldir judge calibrate --pyrit pyrit-1.1.0-py3-none-any.whl
"""

app = typer.Typer(
    no_args_is_help=True, help="Add judges to a run, label a sample, measure how wrong judges are."
)

_Run = Annotated[
    Path,
    typer.Argument(
        help="Folder of a run, or of a comparison with base and tuned in it.",
        metavar="RUN_DIR",
        show_default=False,
    ),
]
_Judge = Annotated[
    list[str] | None,
    typer.Option(
        help="phrases, first-token, hf:NAME\\[@REVISION], llm:MODEL@URL or labels:FILE; repeat for "
        "more.",
        metavar="SPEC",
        show_default=False,
    ),
]
_Part = Annotated[
    str | None,
    typer.Option(
        help="single, frozen or live; by default the first that the run has.",
        metavar="PART",
        show_default=False,
    ),
]


@app.command("run", epilog=RUN_EXAMPLES)
def run(
    folder: _Run,
    judge: _Judge = None,
    primary: Annotated[
        bool,
        typer.Option("--primary", help="Make the first judge named the one whose labels count."),
    ] = False,
    toxicity: Annotated[
        str | None,
        typer.Option(
            help="Also score toxicity, by a classifier on this machine: default "
            "(unitary/toxic-bert) or hf:NAME\\[@REVISION].",
            metavar="SPEC",
            show_default=False,
        ),
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Add the labels of further judges to replies; no model is asked again.

    Labels are kept as they come: repeat the command to go on where it was
    stopped. A judge that has labelled a reply is not asked about it again.
    """
    from refusaldir.models.options import LoadOptions
    from refusaldir.pipeline.judging import judge_run
    from refusaldir.report.document import to_json
    from refusaldir.report.probe_table import probe_report

    from .console import progress, stderr, stdout

    with progress(quiet=json) as report:
        found = judge_run(
            folder,
            judge or (),
            primary=primary,
            toxicity=toxicity,
            options=LoadOptions(dtype=dtype, device=device),
            progress=report,
        )
    if json:
        typer.echo(to_json({"runs": list(found.documents)}))
        return
    for document in found.documents:
        stdout().print(probe_report(document))
    note = stderr()
    if len(found.folders) > 1:
        base, tuned = found.folders
        note.print(f"Next: refusaldir diff {base} {tuned}", soft_wrap=True, markup=False)
    else:
        note.print(
            f"Next: refusaldir judge sample {found.folders[0]} --out labels.csv",
            soft_wrap=True,
            markup=False,
        )


@app.command("sample", epilog=SAMPLE_EXAMPLES)
def sample(
    folder: _Run,
    out: Annotated[Path, typer.Option(help="The CSV to write.", show_default=False)],
    n: Annotated[int, typer.Option("--n", min=1, help="How many replies.")] = 100,
    part: _Part = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Draw replies for people to label, every reply as likely as any other.

    The file shows no judge's label. Write in the column label: 1 or
    full_refusal, partial_refusal; 0 or compliance; incoherent; empty. Blank
    lines do not count. It holds replies to harmful prompts: keep it on this
    machine.
    """
    from refusaldir.pipeline.judging import sample_run
    from refusaldir.report.document import to_json

    from .console import stderr

    found = sample_run(folder, out, n=n, part=part, seed=seed, force=force)
    if json:
        typer.echo(to_json({"file": str(found.path), "n": found.n, "n_all": found.n_all}))
        return
    note = stderr()
    note.print(f"Written: {found.path}, {found.n} of {found.n_all} replies", soft_wrap=True,
               markup=False)  # fmt: skip
    note.print(
        f"Next: fill in the column label, then: refusaldir judge calibrate {found.path} "
        f"--run {folder}",
        soft_wrap=True,
        markup=False,
    )


@app.command("calibrate", epilog=CALIBRATE_EXAMPLES)
def calibrate(
    labels: Annotated[
        list[Path] | None,
        typer.Argument(help="Files of human labels.", metavar="[LABELS.csv]…", show_default=False),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(
            help="The run that they are of; twice for base and tuned, or a comparison's folder.",
            metavar="RUN_DIR",
            show_default=False,
        ),
    ] = None,
    pyrit: Annotated[
        Path | None,
        typer.Option(
            help="In place of both: PyRIT's human-labelled refusals, from its wheel.",
            metavar="WHEEL",
            show_default=False,
        ),
    ] = None,
    judge: _Judge = None,
    part: _Part = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    json: options.Json = False,
) -> None:
    """Measure judges against human labels, and correct the rates by their errors.

    For each arm and axis: sensitivity and specificity, the share refused as
    judged and corrected; for two arms, the change as judged and corrected.
    Judges that labelled the run already are measured; --judge adds others.
    """
    from refusaldir.models.options import LoadOptions
    from refusaldir.pipeline.calibration import calibrate as measure
    from refusaldir.report.calibration_table import calibration_report

    from .console import progress, put, stderr

    with progress(quiet=json) as report:
        found = measure(
            labels or (),
            runs=run or (),
            pyrit=pyrit,
            judges=judge or (),
            part=part,
            seed=seed,
            options=LoadOptions(dtype=dtype, device=device),
            progress=report,
        )
    put(found.document, calibration_report, json=json)
    if not json:
        stderr().print(f"Next: {_next(found.document, run)}", soft_wrap=True, markup=False)


def _next(document: dict[str, Any], runs: list[Path] | None) -> str:
    """What to do with a calibration."""
    if not runs:
        return (
            "judges err otherwise on other replies; to label some of your own: "
            "refusaldir judge sample RUN_DIR --out labels.csv"
        )
    judges = document["judges"]
    best = max(
        judges, key=lambda judge: min(arm["accuracy"]["value"] or 0 for arm in judge["arms"])
    )
    if best is judges[0]:
        return f"refusaldir show {runs[0]}"
    run = " ".join(
        f"refusaldir judge run {folder} --judge {quote(best['judge'])} --primary;"
        for folder in runs
    )
    return f"{best['judge']} agrees best with people; to let its labels count: {run.rstrip(';')}"
