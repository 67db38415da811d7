"""One MLflow run, which ends FINISHED only if everything in it was logged."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tracker import signals
from tracker.cache import cache_folder
from tracker.errors import TrackerError
from tracker.tracking import operations, outage, watchdog
from tracker.tracking.creating import create_run, note
from tracker.tracking.discard import mark
from tracker.tracking.outage import ServerLost
from tracker.tracking.store import without_password, without_secrets
from tracker.tracking.unsent import Kept, Unsent

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("tracker")
PARAMS_PER_CALL = 100  # MLflow's limit for one batch


class Run:
    """A context manager around an MLflow run.

    On the way out the run ends FINISHED, or, after any exception (Ctrl-C and SIGTERM included), FAILED with the error
    in the tag ``tracker.error`` and without artifacts that look finished. A watchdog process does the same for a run
    whose process was killed.

    Where a server is lost for good and ``keeps`` is set, the run goes on, and all that it logs from then on is kept in
    a local folder; it then ends with the error `Kept`.
    """

    keeps = False

    def __init__(
        self,
        client: MlflowClient,
        uri: str,
        experiment: str,
        name: str,
        kind: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            client: of the store at ``uri``.
            uri: for the watchdog.
            experiment: the experiment's id.
            name: what the UI shows.
            kind: value of the tag ``tracker.kind``.
            tags: further tags, known at the start.
            params: logged as the run begins.
        """
        self.client, self.uri, self.experiment, self.name = client, uri, experiment, name
        self.tags = {"tracker.kind": kind, **tags}
        self.params = params or {}
        self.id = ""
        self.data: tuple[str | None, str | None] = (None, None)
        self.fetched: tempfile.TemporaryDirectory[str] | None = None
        self.kept: Unsent | None = None
        self.uploaded: dict[str, Path] = {}  # folders by the name of their artifacts

    def __enter__(self) -> Run:
        """Create the run."""
        from mlflow.tracking.context.registry import resolve_tags

        tags = resolve_tags(self.tags)
        with signals.held():  # no run without its watchdog
            run = create_run(self.client, self.uri, self.experiment, self.name, tags)
            self.id = run.info.run_id
            self.artifact_uri = run.info.artifact_uri
            watchdog.tell(self.uri, "begun", self.id)
        try:
            self.log_params(self.params)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def resume(self, run_id: str) -> None:
        """Take up a run that an earlier process began, instead of creating one."""
        with outage.guarded(self.uri), signals.held():
            self.client.update_run(run_id, status="RUNNING")
            self.id = run_id
            self.artifact_uri = self.client.get_run(run_id).info.artifact_uri
            if outage.is_server(self.uri):
                # A watchdog of the command before may still wait for the server, and must not mark it now.
                self.client.set_tag(run_id, watchdog.RESUMED, str(time.time()))
            watchdog.tell(self.uri, "begun", self.id)
            if "tracker.error" in self.client.get_run(run_id).data.tags:
                self.client.delete_tag(run_id, "tracker.error")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run."""
        told = False
        try:
            if error is None:
                try:
                    signals.check()
                except BaseException as swallowed:
                    told = self._fail(swallowed)
                    raise
                self._log("end", status="FINISHED", time=int(time.time() * 1000))
                told = True
                if self.kept is not None:
                    raise Kept(self.kept.folder)
            else:
                told = self._fail(error)
        finally:
            # A second Ctrl-C may come while the run is being marked, and a full disk may refuse the mark.
            if told:
                watchdog.tell(self.uri, "ended", self.id)
            else:
                watchdog.tell(self.uri, "failed", self.id)
            if self.fetched is not None:
                self.fetched.cleanup()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, in batches."""
        from mlflow.entities import Param

        entries = [Param(key[:250], str(value)[:6000]) for key, value in params.items()]
        for start in range(0, len(entries), PARAMS_PER_CALL):
            with outage.guarded(self.uri):
                self.client.log_batch(self.id, params=entries[start : start + PARAMS_PER_CALL])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics, all with the same time stamp."""
        self.log_results(metrics, {}, step)

    def log_results(self, metrics: Mapping[str, float], tags: Mapping[str, str], step: int = 0) -> None:
        """Log metrics and set tags, in one call."""
        values = {key: float(value) for key, value in metrics.items()}
        self._log("results", metrics=values, tags=dict(tags), time=int(time.time() * 1000), step=step)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self.log_results({}, tags)

    def log_folder(self, folder: Path, name: str) -> None:
        """Upload a folder's files as artifacts below ``name``.

        Raises:
            TrackerError: they cannot be stored.
        """
        self._log("folder", folder, name=name)
        self.uploaded[name] = folder

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Log a table that the UI shows and `mlflow.load_table` reads; a row need not have all columns.

        MLflow's own `log_table` goes through pandas, which makes 0 of 1e-12, and 38.0 of a 38 in a column with a gap.

        Raises:
            TrackerError: it cannot be stored.
        """
        columns = list(dict.fromkeys(key for row in rows for key in row))
        if not columns:
            return
        table = {"columns": columns, "data": [[_plain(row.get(key)) for key in columns] for row in rows]}
        self._log("table", name=name, table=table)

    def log_data(self, name: str, digest: str, split: str, source: str) -> None:
        """Log the data set's split as the run's input."""
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        origin = CodeDatasetSource({"tracker.data": source})
        dataset = MetaDataset(origin, name=f"{name}/{split}", digest=digest[:36])  # type: ignore[abstract]
        entity = DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", split)])
        with outage.guarded(self.uri):
            self.client.log_inputs(self.id, [entity])
        self.data = (dataset.name, dataset.digest)

    def log_model(
        self, folder: Path, name: str, flavor: str, metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> None:
        """Log a model as the run's output, with its metrics on the run's data set.

        Args:
            folder: with MLmodel.
            name: of the model.
            flavor: its type.
            metrics: by name.
            tags: of the model.

        Raises:
            TrackerError: it cannot be stored.
        """
        values = {key: float(value) for key, value in metrics.items()}
        own = {"experiment": self.experiment, "name": name, "flavor": flavor, "tags": dict(tags), "data": self.data}
        self._log("model", folder, metrics=values, time=int(time.time() * 1000), **own)

    def _log(self, verb: str, folder: Path | None = None, **what: Any) -> None:
        """Do one operation, or keep it where the server was lost."""
        signals.check()
        if self.kept is None:
            try:
                with outage.guarded(self.uri):
                    operations.OPERATIONS[verb](self.client, self.id, what, folder)
                return
            except ServerLost as lost:
                self._keep(lost)
        assert self.kept is not None
        self.kept.add(verb, what, folder)

    def _keep(self, lost: ServerLost) -> None:
        """From now on, keep what is logged."""
        if not self.keeps:
            raise lost
        about = {"run": self.id, "kind": self.tags["tracker.kind"], "server": without_secrets(self.uri)}
        self.kept = Unsent.begin(about)
        reason = str(lost).partition(";")[0]
        log.warning("%s; what the run finds from now on is kept in %s", reason, self.kept.folder)

    def stored(self, name: str) -> Path:
        """The stored artifacts below ``name``, fetched into a local folder that goes when the run ends."""
        if self.fetched is None:  # without a folder of ours MLflow makes its own, and leaves it there
            self.fetched = tempfile.TemporaryDirectory(prefix="fetched-", dir=cache_folder())
        if self.kept is None:
            try:
                with outage.guarded(self.uri):
                    return Path(self.client.download_artifacts(self.id, name, self.fetched.name))
            except ServerLost as lost:
                self._keep(lost)
            except Exception as error:  # MLflow does not tell why it could not fetch; the storage may be lost
                if not (outage.is_server(self.uri) and self.keeps):
                    raise
                self._keep(ServerLost(f"the stored {name} cannot be fetched ({str(error)[:200]})"))
        return Path(shutil.copytree(self.uploaded[name], Path(self.fetched.name) / name, dirs_exist_ok=True))

    def _fail(self, error: BaseException) -> bool:
        """Mark the run; whether the store took it."""
        reason = str(error) if isinstance(error, TrackerError) else f"{type(error).__name__}: {error}"
        reason = without_password(reason, self.uri)[:4000]
        try:
            if self.kept is not None:
                self.kept.fail(reason)
                return True
            if outage.answers(self.uri):  # otherwise MLflow would wait again; the watchdog does so
                mark(self.client, self.id, reason)
                return True
        except Exception as second:  # the store itself may be what failed; the first error is the one to tell
            log.debug("the run %s could not be marked as failed: %s", self.id, second)
        if outage.is_server(self.uri) and "tracker.study" not in self.tags:  # a sweep that goes on marks its own
            note({"run": self.id, "kind": self.tags["tracker.kind"]}, self.uri, reason)
        return False


def _plain(value: Any) -> Any:
    """A value of a table as JSON has it; null for what is no number, as pandas writes it."""
    if hasattr(value, "item"):  # numpy's and PyTorch's scalars
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsOnly:
    """In a run's place, where only the metrics of a step are wanted."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Keep them."""
        self.metrics.update(metrics)

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Nothing."""

    def log_folder(self, folder: Path, name: str) -> None:
        """Nothing."""


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists as they print."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flattened(value, f"{name}."))
        else:
            flat[name] = value
    return flat
