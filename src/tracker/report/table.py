"""The field's table: a row for each application and codec, with the run that each figure comes from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tracker.errors import TrackerError
from tracker.report.collect import Application, Point
from tracker.report.curves import Saving, front, rate_saving, usual_baseline
from tracker.tracking.store import without_secrets


@dataclass(frozen=True)
class Row:
    """A codec on an application: its smallest transparent working point, or else the one with the smallest drop."""

    application: Application
    label: str  # the anchor, told apart from others of its name
    point: Point
    saving: Saving | None  # None in the baseline's own row


@dataclass(frozen=True)
class Report:
    """What all formats are written from.

    Attributes:
        rows: of the table.
        applications: with their labels.
        baseline: the codec that savings are against.
        split: of the task.
        store: where the runs are, without secrets.
        runs: how many working points there are.
    """

    rows: Sequence[Row]
    applications: Sequence[tuple[str, Application]]
    baseline: str
    split: str
    store: str
    runs: int

    def fronts(self) -> Iterator[tuple[str, Application, Point]]:
        """All working points that a saving or a curve is made of."""
        for label, application in self.applications:
            for points in application.points.values():
                for point in front(points):
                    yield label, application, point

    def address(self, experiment: str, run_id: str) -> str:
        """A run's page on a server; empty for a database, which has no pages of its own."""
        if not self.store.startswith(("http://", "https://")):
            return ""
        return f"{self.store.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def make(applications: Sequence[Application], uri: str, split: str, baseline: str | None) -> Report:
    """The report of some applications.

    Args:
        applications: at least one.
        uri: of the store.
        split: that they were measured on.
        baseline: a codec; by default the one that was tried on most of them.

    Raises:
        TrackerError: nobody has tried the baseline.
    """
    codecs = sorted({codec for one in applications for codec in one.points})
    if baseline is not None and baseline not in codecs:
        raise TrackerError(f"no run has the codec {baseline!r} of --baseline; there are {', '.join(codecs)[:500]}")
    baseline = baseline or usual_baseline(applications)
    labelled = list(zip(labels(applications), applications, strict=True))
    rows = []
    for label, application in labelled:
        chosen = [chosen_point(points) for points in application.points.values()]
        for point in sorted(chosen, key=lambda one: (not one.transparent, one.size, one.codec)):
            saving = None
            if point.codec != baseline:
                saving = rate_saving(application.points.get(baseline, ()), application.points[point.codec])
            rows.append(Row(application, label, point, saving))
    runs = sum(len(points) for one in applications for points in one.points.values())
    return Report(rows, labelled, baseline, split, without_secrets(uri), runs)


def chosen_point(points: Sequence[Point]) -> Point:
    """The smallest transparent one; where there is none, that with the smallest drop. Of equal ones the newest."""
    transparent = [point for point in points if point.transparent]
    if transparent:
        return min(transparent, key=lambda one: (one.size, -one.started, one.run_id))
    return min(
        points, key=lambda one: (math.inf if math.isnan(one.drop) else one.drop, one.size, -one.started, one.run_id)
    )


def labels(applications: Sequence[Application]) -> list[str]:
    """The anchors' names, with the first digits of what sets them apart where two have the same."""
    found = [one.anchor for one in applications]
    for digest in ("sha256", "task_sha256"):
        # Rows of one anchor that differ in the data set or the tolerance are told apart by these columns already.
        keys = [
            (label, one.data, one.tolerance, one.confidence) for label, one in zip(found, applications, strict=True)
        ]
        often = Counter(keys)
        found = [
            f"{label} {getattr(one, digest)[:8]}" if often[key] > 1 else label
            for label, one, key in zip(found, applications, keys, strict=True)
        ]
    return found
