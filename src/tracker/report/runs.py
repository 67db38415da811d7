"""The runs that a report is made of, read from a tracking store, however many there are."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tracker.errors import TrackerError
from tracker.tracking.store import DATABASES, SQLITE

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("tracker")
PAGE = 1000  # runs that are asked for at a time; a server answers with all that is known of each
ANCHOR = "tracker.anchor.run_id"
TAGS = (
    "tracker.anchor.sha256",
    ANCHOR,
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


def records(
    client: MlflowClient, uri: str, experiment_ids: list[str], split: str, anchor: str | None = None
) -> list[Record]:
    """The finished runs of kind ``compression``, on a split, that have all that a report needs.

    A database is asked for just these columns: `MlflowClient.search_runs` makes objects of all parameters, metrics and
    tags of each run, which takes half a minute and more than a gigabyte for 10,000 of them.

    Args:
        client: of the store.
        uri: of the store.
        experiment_ids: to look in.
        split: of the task.
        anchor: id of an anchor's run, whose alone are wanted.
    """
    found: Iterable[Record] | None = None
    if uri.startswith((SQLITE, *DATABASES)):
        from sqlalchemy.exc import SQLAlchemyError

        try:
            found = list(from_database(client, experiment_ids, split, anchor))
        except (ImportError, AttributeError, SQLAlchemyError) as error:  # another MLflow, with other tables
            log.debug("the store's tables cannot be read (%s): its runs are asked for", error)
    if found is None:
        found = from_client(client, experiment_ids, split, anchor)
    needed = {"tracker.anchor.sha256", "tracker.task.sha256", "tracker.codec"}
    return [
        one
        for one in found
        if needed <= one.tags.keys()
        and set(METRICS) <= one.metrics.keys()
        and math.isfinite(one.metrics["size/bitstream_bytes"])
    ]


def from_client(
    client: MlflowClient, experiment_ids: list[str], split: str, anchor: str | None = None
) -> Iterator[Record]:
    """The runs, by MLflow's own search, from any store."""
    wanted = (
        f"tags.`tracker.kind` = 'compression' AND params.`task.split` = '{split}' AND attributes.status = 'FINISHED'"
    )
    if anchor is not None:
        wanted += f" AND tags.`{ANCHOR}` = '{anchor}'"
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


def from_database(
    client: MlflowClient, experiment_ids: list[str], split: str, anchor: str | None = None
) -> Iterator[Record]:
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
    if anchor is not None:
        wanted = wanted.where(SqlRun.run_uuid.in_(having(SqlTag, ANCHOR, anchor)))
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
