"""refusaldir: measure what a fine-tune did to a chat model's refusal direction.

The commands' functions are here, loaded when first used:

    import refusaldir as rd

    base = rd.extract("smollm2-135m+aligned")
    result = rd.diff(base.path, "smollm2-135m+aligned+tuned")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refusaldir.directions.exchange import load_direction as load_direction
    from refusaldir.directions.reference import import_direction as import_direction
    from refusaldir.errors import RefusaldirError as RefusaldirError
    from refusaldir.models.options import LoadOptions as LoadOptions
    from refusaldir.pipeline import Criteria as Criteria
    from refusaldir.pipeline import Diff as Diff
    from refusaldir.pipeline import Extracted as Extracted
    from refusaldir.pipeline import LayersFound as LayersFound
    from refusaldir.pipeline import Probed as Probed
    from refusaldir.pipeline import Selected as Selected
    from refusaldir.pipeline import Series as Series
    from refusaldir.pipeline import diff as diff
    from refusaldir.pipeline import diff_series as diff_series
    from refusaldir.pipeline import extract as extract
    from refusaldir.pipeline import probe as probe
    from refusaldir.pipeline import read_direction as read_direction
    from refusaldir.pipeline import select as select
    from refusaldir.pipeline import which_layers as which_layers
    from refusaldir.pipeline.behaviour_pair import BehaviourDiff as BehaviourDiff
    from refusaldir.pipeline.behaviour_pair import diff_behaviour as diff_behaviour
    from refusaldir.pipeline.behaviour_pair import read_behaviour as read_behaviour
    from refusaldir.pipeline.calibration import calibrate as calibrate
    from refusaldir.pipeline.judging import judge_run as judge_run
    from refusaldir.pipeline.judging import sample_run as sample_run
    from refusaldir.pipeline.planning import Planned as Planned
    from refusaldir.pipeline.planning import plan as plan
    from refusaldir.pipeline.report import write_report as write_report
    from refusaldir.pipeline.viewing import Viewed as Viewed
    from refusaldir.pipeline.viewing import view as view
    from refusaldir.probes.comparison import compare_replicates as compare_replicates
    from refusaldir.prompts.load import load_prompts as load_prompts
    from refusaldir.store import Capture as Capture

# Importing torch takes seconds; help and reports do without it.
_HOMES = {
    "BehaviourDiff": "refusaldir.pipeline.behaviour_pair",
    "Capture": "refusaldir.store",
    "Criteria": "refusaldir.pipeline",
    "Diff": "refusaldir.pipeline",
    "Extracted": "refusaldir.pipeline",
    "LayersFound": "refusaldir.pipeline",
    "LoadOptions": "refusaldir.models.options",
    "Planned": "refusaldir.pipeline.planning",
    "Probed": "refusaldir.pipeline",
    "RefusaldirError": "refusaldir.errors",
    "Selected": "refusaldir.pipeline",
    "Series": "refusaldir.pipeline",
    "Viewed": "refusaldir.pipeline.viewing",
    "calibrate": "refusaldir.pipeline.calibration",
    "compare_replicates": "refusaldir.probes.comparison",
    "diff": "refusaldir.pipeline",
    "diff_behaviour": "refusaldir.pipeline.behaviour_pair",
    "diff_series": "refusaldir.pipeline",
    "extract": "refusaldir.pipeline",
    "import_direction": "refusaldir.directions.reference",
    "judge_run": "refusaldir.pipeline.judging",
    "load_direction": "refusaldir.directions.exchange",
    "load_prompts": "refusaldir.prompts.load",
    "plan": "refusaldir.pipeline.planning",
    "probe": "refusaldir.pipeline",
    "read_behaviour": "refusaldir.pipeline.behaviour_pair",
    "read_direction": "refusaldir.pipeline",
    "sample_run": "refusaldir.pipeline.judging",
    "select": "refusaldir.pipeline",
    "view": "refusaldir.pipeline.viewing",
    "which_layers": "refusaldir.pipeline",
    "write_report": "refusaldir.pipeline.report",
}

__version__ = "0.1.0"

__all__ = [
    "BehaviourDiff",
    "Capture",
    "Criteria",
    "Diff",
    "Extracted",
    "LayersFound",
    "LoadOptions",
    "Planned",
    "Probed",
    "RefusaldirError",
    "Selected",
    "Series",
    "Viewed",
    "calibrate",
    "compare_replicates",
    "diff",
    "diff_behaviour",
    "diff_series",
    "extract",
    "import_direction",
    "judge_run",
    "load_direction",
    "load_prompts",
    "plan",
    "probe",
    "read_behaviour",
    "read_direction",
    "sample_run",
    "select",
    "view",
    "which_layers",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'refusaldir' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Names shown by ``dir(refusaldir)``."""
    return __all__
