"""`refusaldir plan`: how many prompts a comparison needs."""

from pathlib import Path
from typing import Annotated

import typer

from . import options

EXAMPLES = """[bold]Examples[/bold]

refusaldir plan

refusaldir plan base.h5 --rotation 5 --translation 0.1

refusaldir plan base.h5 tuned.h5 --site resid_pre.18@-1 --power 0.9 --json
"""

_CHANGE = "Changes to be seen"
_PILOT = "Pilot"


def plan(
    base: Annotated[
        Path | None,
        typer.Argument(help="A capture of base (.h5).", metavar="[PILOT]", show_default=False),
    ] = None,
    tuned: Annotated[
        Path | None,
        typer.Argument(
            help="A capture of tuned on the same prompts.", metavar="[TUNED]", show_default=False
        ),
    ] = None,
    rotation: Annotated[
        float, typer.Option(help="Rotation, in degrees.", rich_help_panel=_CHANGE)
    ] = 10.0,
    norm: Annotated[
        float, typer.Option(help="Shrinkage of the norm, as a share.", rich_help_panel=_CHANGE)
    ] = 0.1,
    translation: Annotated[
        float, typer.Option(help="Shift of a class, in base SDs.", rich_help_panel=_CHANGE)
    ] = 0.25,
    refusal_change: Annotated[
        float, typer.Option(help="Fall of the refusal rate, as a share.", rich_help_panel=_CHANGE)
    ] = 0.1,
    base_rate: Annotated[
        float, typer.Option(help="Refusal rate of base.", rich_help_panel=_CHANGE)
    ] = 0.9,
    discordant: Annotated[
        float | None,
        typer.Option(
            help="Share of prompts that flip without a net change: 0.1, where the base rate "
            "leaves room for that.",
            rich_help_panel=_CHANGE,
            show_default=False,
        ),
    ] = None,
    shared: Annotated[
        float | None,
        typer.Option(
            help="Share of noise that tuned has in common with base, where only base was "
            "captured: 0.81; 0 is the safe choice.",
            rich_help_panel=_PILOT,
            show_default=False,
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            help="E.g. resid_pre.18@-1; otherwise the one where base separates best.",
            rich_help_panel=_PILOT,
            metavar="HOOK.LAYER@POS",
        ),
    ] = None,
    power: Annotated[float, typer.Option(help="Chance to see a change that is there.")] = 0.8,
    level: Annotated[float, typer.Option(help="Level of diff's findings together.")] = 0.95,
    json: options.Json = False,
) -> None:
    """Say how many prompts a comparison needs, and what it could see.

    A pilot capture, even a small one, gives the noise of your model; a
    second one, of the tuned model, what noise the two have in common.
    Loads neither torch nor a model.
    """
    from refusaldir.pipeline.planning import plan as work_out
    from refusaldir.report.plan_table import plan_report

    from .console import put, stderr

    result = work_out(
        base,
        tuned,
        rotation=rotation,
        norm=norm,
        translation=translation,
        refusal_change=refusal_change,
        base_rate=base_rate,
        discordant=discordant,
        power=power,
        level=level,
        shared=shared,
        site=site,
    )
    put(result.document, plan_report, json=json)
    if json:
        return
    if base is None:
        following = "refusaldir extract MODEL, then refusaldir plan with its capture"
    elif tuned is None:
        following = f"refusaldir diff {base} TUNED_MODEL"
    else:
        following = f"refusaldir diff {base} {tuned}"
    stderr().print(f"Next: {following}", soft_wrap=True, markup=False, highlight=False)
