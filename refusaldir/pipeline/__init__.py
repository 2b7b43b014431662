"""Composition root: the only room that wires the others together.

`extract` captures one model; `select` finds the direction in it that causes refusal; `probe` asks
it what it refuses; `diff` compares two models, `diff_series` a model with its checkpoints;
`which_layers` says which layers a fine-tune disturbed. The command line calls these functions and
so may you:

    import refusaldir as rd

    base = rd.extract("smollm2-135m+aligned")
    result = rd.diff(base.path, "smollm2-135m+aligned+tuned")
    print(result.document["verdict"]["headline"])
"""

from refusaldir.pipeline.comparison import Diff, diff
from refusaldir.pipeline.criteria import Criteria
from refusaldir.pipeline.direction_reading import read_direction
from refusaldir.pipeline.extraction import Extracted, extract
from refusaldir.pipeline.layers import LayersFound, which_layers
from refusaldir.pipeline.probing import Probed, probe
from refusaldir.pipeline.progress import ProgressFn
from refusaldir.pipeline.selected import Selected
from refusaldir.pipeline.selection import select
from refusaldir.pipeline.trajectory import Series, diff_series

__all__ = [
    "Criteria",
    "Diff",
    "Extracted",
    "LayersFound",
    "Probed",
    "ProgressFn",
    "Selected",
    "Series",
    "diff",
    "diff_series",
    "extract",
    "probe",
    "read_direction",
    "select",
    "which_layers",
]
