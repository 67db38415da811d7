"""What a report is made of: the working points that a tracking store has, by application and by codec."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracker.errors import TrackerError
from tracker.report.runs import Record, experiments, records

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Point:
    """A working point: one run.

    Attributes:
        run_id: of the run that measured it.
        experiment: its experiment's id.
        started: milliseconds.
        codec: its chain.
        size: bytes of the bitstream.
        rate: in percent.
        decoded: the primary metric of the decoded model.
        drop: positive where that is worse than the anchor.
        transparent: as the run decided.
        sha256: digest of the bitstream.
    """

    run_id: str
    experiment: str
    started: int
    codec: str
    size: int
    rate: float
    decoded: float
    drop: float
    transparent: bool
    sha256: str


@dataclass(frozen=True)
class Application:
    """An anchor on a task, and all that was tried on it; figures of one application compare with each other.

    Attributes:
        anchor: its name.
        sha256: digest of its weights.
        task_sha256: digest of all else that its performance depends on.
        run_id: of the anchor's own run.
        experiment: id of that run's experiment.
        model: the class of the model.
        layers: types of layers with weights, with their counts; empty where the anchor's run does not tell.
        data: the data set's name, with its split.
        data_sha256: its digest, as far as MLflow keeps it.
        metric: the primary one.
        performance: the anchor's, in that metric.
        higher_is_better: that metric's direction.
        tolerance: the largest drop that counts as transparent.
        confidence: with which the drop had to be within it; None where the drop itself decides.
        points: by codec.
    """

    anchor: str
    sha256: str
    task_sha256: str
    run_id: str
    experiment: str
    model: str
    layers: str
    data: str
    data_sha256: str
    metric: str
    performance: float
    higher_is_better: bool
    tolerance: float
    confidence: float | None
    points: Mapping[str, Sequence[Point]]


def applications(
    client: MlflowClient, uri: str, names: Sequence[str], split: str, anchor: str | None = None
) -> list[Application]:
    """Everything that was measured on a split.

    Args:
        client: of the store.
        uri: of the store.
        names: of experiments; none for all.
        split: of the task.
        anchor: id of an anchor's run, whose alone are wanted.

    Raises:
        TrackerError: there is no such experiment, or nothing in it.
    """
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records(client, uri, experiments(client, names), split, anchor):
        identity = [record.tags[name] for name in ("tracker.anchor.sha256", "tracker.task.sha256")]
        decided = [record.params.get(name, "") for name in ("task.tolerance", "transparency.confidence")]
        groups[(*identity, *decided)].append(record)
    if not groups:
        place = f"the experiments {', '.join(names)} have" if names else "this store has"
        raise TrackerError(
            f"{place} no finished compression run on the split {split}; make one by python -m tracker +codec=nnc, "
            "or set MLFLOW_TRACKING_URI"
        )
    known: dict[str, Any] = {}
    found = [_application(client, group, split, known) for group in groups.values()]
    return sorted(found, key=lambda one: (one.anchor, one.data, one.tolerance, one.confidence or 0, one.sha256))


def _application(client: MlflowClient, group: list[Record], split: str, known: dict[str, Any]) -> Application:
    """The runs of one anchor, task and tolerance.

    Args:
        client: of the store.
        group: the runs, of which there is at least one.
        split: of the task.
        known: the anchors' runs that were asked for already.
    """
    first = max(group, key=lambda one: (one.started, one.run_id))
    anchor_id = first.tags.get("tracker.anchor.run_id", "")
    if anchor_id not in known:
        known[anchor_id] = _run(client, anchor_id) or _run(client, first.run_id)
    run = known[anchor_id]
    tags = run.data.tags if run else {}
    inputs = [one.dataset for one in run.inputs.dataset_inputs] if run and run.inputs else []
    points: dict[str, list[Point]] = defaultdict(list)
    for record in group:
        points[record.tags["tracker.codec"]].append(_point(record))
    metric = json.loads(tags.get("tracker.metrics", "[]"))
    performance = first.metrics["performance/anchor"]
    return Application(
        anchor=first.params.get("anchor.name", ""),
        sha256=first.tags["tracker.anchor.sha256"],
        task_sha256=first.tags["tracker.task.sha256"],
        run_id=anchor_id,
        experiment=run.info.experiment_id if run else "",
        model=tags.get("tracker.anchor.model") or first.params.get("anchor._target_", "").rpartition(".")[2],
        layers=tags.get("tracker.anchor.layers", ""),
        data=f"{first.params.get('data.name', '')}/{split}",
        data_sha256=inputs[0].digest if inputs else "",
        metric=metric[0] if metric else "performance",
        performance=performance,
        higher_is_better=higher_is_better(
            (one.metrics["performance/anchor"], one.metrics["performance/decoded"], one.metrics["performance/drop"])
            for one in group
        ),
        tolerance=_number(first.params.get("task.tolerance")) or 0.0,
        confidence=_number(first.params.get("transparency.confidence")),
        points=dict(sorted(points.items())),
    )


def _run(client: MlflowClient, run_id: str) -> Any:
    """A run; None where it is gone."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id) if run_id else None
    except MlflowException:
        return None


def _point(record: Record) -> Point:
    tags, metrics = record.tags, record.metrics
    return Point(
        run_id=record.run_id,
        experiment=record.experiment,
        started=record.started,
        codec=tags["tracker.codec"],
        size=int(metrics["size/bitstream_bytes"]),
        rate=metrics["size/rate_percent"],
        decoded=metrics["performance/decoded"],
        drop=metrics["performance/drop"],
        transparent=tags.get("tracker.transparent") == "true",
        sha256=tags.get("tracker.bitstream.sha256", ""),
    )


def higher_is_better(measured: Iterable[tuple[float, float, float]]) -> bool:
    """The metric's direction, which the signs of the drops tell: a drop is positive where the decoded model is worse.

    Where no run differs from its anchor there is nothing to tell, nor anything that would depend on it.

    Args:
        measured: the anchor's performance, the decoded model's, and the drop, of each run.
    """
    signs = [(anchor - decoded) * drop for anchor, decoded, drop in measured]
    return sum((sign > 0) - (sign < 0) for sign in signs) >= 0


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
