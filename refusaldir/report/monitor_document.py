"""What a training monitor found, as a trajectory document with the refusal scores beside it."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from refusaldir.report.document import Document, plain
from refusaldir.report.trajectory_document import build_trajectory

if TYPE_CHECKING:
    from refusaldir.drift.training import TrainingPoint
    from refusaldir.drift.trajectory import Trajectory
    from refusaldir.records import ModelIdentity, Provenance


def build_monitor(
    trajectory: "Trajectory",
    points: Sequence["TrainingPoint"],
    *,
    model: "ModelIdentity",
    base: "Provenance",
    token: str,
    reason: str,
    counts: Mapping[str, int],
    monitor: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Document:
    """Put a monitored run into the form of ``trajectory.json``.

    Args:
        trajectory: Drift over the measurements.
        points: The measurements.
        model: The model in training.
        base: Provenance of base's capture.
        token: The token at the site, as text.
        reason: How the site was chosen.
        counts: ``n_harmful``, ``n_harmless`` and ``n_clusters``.
        monitor: How the run was watched: seconds, what stopped it, and what it needs to go on.
        options: The settings, JSON-ready.
    """
    site = trajectory.site
    where = {"hook": site.hook, "layer": site.layer, "position": site.position}
    shared: dict[str, Any] = {
        "base": base.to_dict(),
        "tuned": {"model": model.to_dict()},
        "behaviour": None,
        "precision": None,
        "drift": {"site": {**where, "token": token, "reason": reason}, **counts, "notes": []},
    }
    documents = [{**shared, "verdict": {"headline": point.headline}} for point in points]
    document = build_trajectory(trajectory, documents, options=options)
    for row, point in zip(document["checkpoints"], points, strict=True):
        if point.harmful is not None and point.harmless is not None:
            parts = point.to_dict()
            row["score"] = plain({side: parts[side] for side in ("harmful", "harmless")})
    return document | {"monitor": plain(monitor)}


def monitor_csv(points: Sequence["TrainingPoint"]) -> str:
    """The measurements, one a line, every figure with the ends of its interval."""
    out = io.StringIO()
    names = list(points[0].figures()) if points else []
    writer = csv.writer(out, lineterminator="\n")
    ends = [f"{name}{end}" for name in names for end in ("", "_lower", "_upper")]
    writer.writerow(["step", "epoch", *ends])
    for point in points:
        cells = point.figures()
        writer.writerow(
            [point.step, point.epoch]
            + [end for name in names for e in [cells[name]] for end in (e.value, e.lower, e.upper)]
        )
    return out.getvalue()
