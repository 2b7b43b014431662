"""Intervals, paired tests and multiplicity for prompts that come in clusters.

Prompts written from one intent (a harmful request, its harmless twin, its framings) share
noise, so every interval here treats the *cluster* as the independent unit. Three tools make
most of them:

* the **delete-one-cluster jackknife** (`jackknife`), stratified by which classes a cluster
  holds, fed with leave-one-out values that the caller computes in closed form;
* **score intervals** for proportions, paired differences and AUROC, which stay honest at the
  ends of the scale (no zero-width interval because nothing was seen to differ);
* a **multiplier bootstrap** of the jackknife deviations for bands that hold over many sites
  at once (`simultaneous_critical`).

Nothing here is a test of safety: an interval that covers "no change" says only that no change
was detected at this sample size.
"""

from refusaldir.statistics.clusters import Clusters
from refusaldir.statistics.intervals import (
    cluster_bootstrap_mean,
    critical_value,
    jackknife,
    mean,
    student_interval,
)
from refusaldir.statistics.p_values import (
    benjamini_hochberg,
    holm,
    randomisation_p,
    sign_flip_p,
)
from refusaldir.statistics.proportions import (
    design_effect,
    mcnemar,
    mean_share,
    paired_proportion_difference,
    proportion,
    tango_z,
    wilson,
)
from refusaldir.statistics.ranks import kendall, spearman
from refusaldir.statistics.ratios import fieller_ends
from refusaldir.statistics.second_order import FEWEST_DF, TAKEN, Deviations, centred_kernel
from refusaldir.statistics.simultaneous import (
    band_widening,
    simultaneous_bands,
    simultaneous_critical,
)

__all__ = [
    "FEWEST_DF",
    "TAKEN",
    "Clusters",
    "Deviations",
    "band_widening",
    "benjamini_hochberg",
    "centred_kernel",
    "cluster_bootstrap_mean",
    "critical_value",
    "design_effect",
    "fieller_ends",
    "holm",
    "jackknife",
    "kendall",
    "mcnemar",
    "mean",
    "mean_share",
    "paired_proportion_difference",
    "proportion",
    "randomisation_p",
    "sign_flip_p",
    "simultaneous_bands",
    "simultaneous_critical",
    "spearman",
    "student_interval",
    "tango_z",
    "wilson",
]
