"""Paired comparison of what base and tuned do with the same prompts.

Two axes, never one figure: **refusal** of harmful prompts, where a flip to an answer is a loss
of safety, and **over-refusal** of harmless ones, where a flip to a refusal is a loss of use.
"Refused" is defined in `refusaldir.probes.outcomes`. Differences are tuned − base, over the
prompts where a reply of each model could be judged; the others are counted, and the worst-case
bound says what the difference could be whatever they had been.

The unit is the prompt: of several replies it has the share refused, at each temperature, and
temperatures weigh alike. Prompts of one intent are not independent, so that intents are the unit
of every test and interval.

It measures wording, not harm: a refusal lost says nothing about how useful the answer is.
"""

from refusaldir.probes.comparison.compare import compare_runs
from refusaldir.probes.comparison.group import GroupComparison, minimum_n
from refusaldir.probes.comparison.pairing import ALLOWANCES
from refusaldir.probes.comparison.replicates import ReplicateComparison, compare_replicates
from refusaldir.probes.comparison.result import AxisComparison, BehaviourComparison, Breakdown

__all__ = [
    "ALLOWANCES",
    "AxisComparison",
    "BehaviourComparison",
    "Breakdown",
    "GroupComparison",
    "ReplicateComparison",
    "compare_replicates",
    "compare_runs",
    "minimum_n",
]
