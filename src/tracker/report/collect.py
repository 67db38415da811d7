"""What a report is made of: the working points that a tracking store has, by application and by codec."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tracker.errors import TrackerError
from tracker.tracking.store import DATABASES, SQLITE

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("tracker")
PAGE = 1000  # runs that are asked for at a time; a server answers with all that is known of each
TAGS = (
    "tracker.anchor.sha256",
    "tracker.anchor.run_id",
    "tracker.task.sha256",
    "tracker.codec",
    "tracker.bitstream.sha256",
    "tracker.transparent",
)
PARAMS = ("anchor.name", "anchor._target_", "data.name", "task.name", "task.tolerance", "transparency.confidence")
METRICS = (
    "size/bitstream_bytes",
    "size/rate_percent",
    "performance/anchor",
    "performance/decoded",
    "performance/drop",
)


@dataclass
class Record:
    """A run of kind ``compression``, and what of it a report needs."""

    run_id: str
    experiment: str
    started: int
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


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


def applications(client: MlflowClient, uri: str, names: Sequence[str], split: str) -> list[Application]:
    """Everything that was measured on a split.

    Args:
        client: of the store.
        uri: of the store.
        names: of experiments; none for all.
        split: of the task.

    Raises:
        TrackerError: there is no such experiment, or nothing in it.
    """
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records(client, uri, experiments(client, names), split):
        identity = [record.tags[name] for name in ("tracker.anchor.sha256", "tracker.task.sha256")]
        decided = [record.params.get(name, "") for name in ("task.tolerance", "transparency.confidence")]
        groups[(*identity, *decided)].append(record)
    if not groups:
        place = f"the experiments {', '.join(names)}" if names else "this store"
        raise TrackerError(
            f"{place} have no finished compression run on the split {split}; make one by python -m tracker +codec=nnc, "
            "or set MLFLOW_TRACKING_URI"
        )
    known: dict[str, Any] = {}
    found = [_application(client, group, split, known) for group in groups.values()]
    return sorted(found, key=lambda one: (one.anchor, one.data, one.tolerance, one.confidence or 0, one.sha256))


def experiments(client: MlflowClient, names: Sequence[str]) -> list[str]:
    """The ids of experiments.

    Raises:
        TrackerError: there is none of that name.
    """
    found: dict[str, str] = {}
    token = None
    while True:
        page = client.search_experiments(max_results=PAGE, page_token=token)
        found |= {one.name: one.experiment_id for one in page}
        token = page.token
        if not token:
            break
    for name in names:
        if name not in found:
            raise TrackerError(f"there is no experiment {name!r}; there are {', '.join(sorted(found))[:500]}")
    return [found[name] for name in names or found]


def records(client: MlflowClient, uri: str, experiment_ids: list[str], split: str) -> list[Record]:
    """The finished runs of kind ``compression``, on a split, that have all that a report needs.

    A database is asked for just these columns: `MlflowClient.search_runs` makes objects of all parameters, metrics and
    tags of each run, which takes half a minute and more than a gigabyte for 10,000 of them.
    """
    found: Iterable[Record] | None = None
    if uri.startswith((SQLITE, *DATABASES)):
        from sqlalchemy.exc import SQLAlchemyError

        try:
            found = list(from_database(client, experiment_ids, split))
        except (ImportError, AttributeError, SQLAlchemyError) as error:  # another MLflow, with other tables
            log.debug("the store's tables cannot be read (%s): its runs are asked for", error)
    if found is None:
        found = from_client(client, experiment_ids, split)
    needed = {"tracker.anchor.sha256", "tracker.task.sha256", "tracker.codec"}
    return [
        one
        for one in found
        if needed <= one.tags.keys()
        and set(METRICS) <= one.metrics.keys()
        and math.isfinite(one.metrics["size/bitstream_bytes"])
    ]


def from_client(client: MlflowClient, experiment_ids: list[str], split: str) -> Iterator[Record]:
    """The runs, by MLflow's own search, from any store."""
    wanted = (
        f"tags.`tracker.kind` = 'compression' AND params.`task.split` = '{split}' AND attributes.status = 'FINISHED'"
    )
    token = None
    while experiment_ids:
        page = client.search_runs(experiment_ids, wanted, max_results=PAGE, page_token=token)
        for run in page:
            info, data = run.info, run.data
            yield Record(
                info.run_id,
                info.experiment_id,
                info.start_time,
                tags={key: data.tags[key] for key in TAGS if key in data.tags},
                params={key: data.params[key] for key in PARAMS if key in data.params},
                metrics={key: data.metrics[key] for key in METRICS if key in data.metrics},
            )
        token = page.token
        if not token:
            return


def from_database(client: MlflowClient, experiment_ids: list[str], split: str) -> Iterator[Record]:
    """The same runs, by four queries to the tables of MLflow's SQL store."""
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag
    from sqlalchemy import select

    def having(table: Any, key: str, value: str) -> Any:
        return select(table.run_uuid).where(table.key == key, table.value == value)

    wanted: Any = (
        select(SqlRun.run_uuid, SqlRun.experiment_id, SqlRun.start_time)
        .where(SqlRun.experiment_id.in_([int(one) for one in experiment_ids]))
        .where(SqlRun.lifecycle_stage == "active", SqlRun.status == "FINISHED")
        .where(SqlRun.run_uuid.in_(having(SqlTag, "tracker.kind", "compression")))
        .where(SqlRun.run_uuid.in_(having(SqlParam, "task.split", split)))
    )
    sources: list[tuple[Any, Sequence[str], str]] = [
        (SqlTag, TAGS, "tags"),
        (SqlParam, PARAMS, "params"),
        (SqlLatestMetric, METRICS, "metrics"),
    ]
    with client._tracking_client.store.ManagedSessionMaker() as session:
        found = {run: Record(run, str(owner), started) for run, owner, started in session.execute(wanted)}
        for table, keys, part in sources:
            columns = [table.run_uuid, table.key, table.value]
            if table is SqlLatestMetric:
                columns.append(table.is_nan)
            for run, key, value, *nan in session.execute(select(*columns).where(table.key.in_(keys))):
                if run in found:
                    getattr(found[run], part)[key] = math.nan if any(nan) else value
    yield from found.values()


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
        higher_is_better=_higher_is_better(group),
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


def _higher_is_better(group: list[Record]) -> bool:
    """The metric's direction, which the signs of the drops tell: a drop is positive where the decoded model is worse.

    Where no run differs from its anchor there is nothing to tell, nor anything that would depend on it.
    """
    signs = [
        (one.metrics["performance/anchor"] - one.metrics["performance/decoded"]) * one.metrics["performance/drop"]
        for one in group
    ]
    return sum((sign > 0) - (sign < 0) for sign in signs) >= 0


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
