"""One MLflow run, which ends FINISHED only if everything in it was logged."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tracker import signals
from tracker.cache import cache_folder
from tracker.errors import TrackerError
from tracker.tracking import watchdog
from tracker.tracking.store import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

log = logging.getLogger(__name__)
PARAMS_PER_CALL = 100  # MLflow's limit for one batch
# Artifacts that a run which failed must not keep.
RESULTS = ("bitstream", "anchor", "scores", "tensors.json", "stages.json", "stages", "plots")


class Run:
    """A context manager around an MLflow run.

    On the way out the run ends FINISHED, or, after any exception (Ctrl-C and SIGTERM included), FAILED with the error
    in the tag ``tracker.error`` and without artifacts that look finished. A watchdog process does the same for a run
    whose process was killed.
    """

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

    def __enter__(self) -> Run:
        """Create the run."""
        from mlflow.tracking.context.registry import resolve_tags

        tags = resolve_tags(self.tags)
        with signals.held():  # no run without its watchdog
            run = self.client.create_run(self.experiment, tags=tags, run_name=self.name)
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
        with signals.held():
            self.client.update_run(run_id, status="RUNNING")
            self.id = run_id
            self.artifact_uri = self.client.get_run(run_id).info.artifact_uri
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
                self.client.set_terminated(self.id, "FINISHED")
                told = True
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
            self.client.log_batch(self.id, params=entries[start : start + PARAMS_PER_CALL])

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log metrics, all with the same time stamp."""
        self.log_results(metrics, {})

    def log_results(self, metrics: Mapping[str, float], tags: Mapping[str, str], model: str | None = None) -> None:
        """Log metrics and set tags, in one call.

        Args:
            metrics: by name.
            tags: by name.
            model: the id of the logged model whose metrics these are as well, on the run's data set.
        """
        import time

        from mlflow.entities import Metric, RunTag

        signals.check()
        now = int(time.time() * 1000)
        linked = {"model_id": model, "dataset_name": self.data[0], "dataset_digest": self.data[1]} if model else {}
        entries = [Metric(key, float(value), now, 0, **linked) for key, value in metrics.items()]
        self.client.log_batch(self.id, metrics=entries, tags=[RunTag(key, value) for key, value in tags.items()])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self.log_results({}, tags)

    def log_folder(self, folder: Path, name: str) -> None:
        """Upload a folder's files as artifacts below ``name``.

        Raises:
            TrackerError: they cannot be stored.
        """
        signals.check()
        try:
            self.client.log_artifacts(self.id, str(folder), name)
        except Exception as error:
            raise _not_stored(f"{name}/", error) from error

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Log a table that the UI shows and `mlflow.load_table` reads; a row need not have all columns.

        MLflow's own `log_table` goes through pandas, which makes 0 of 1e-12, and 38.0 of a 38 in a column with a gap.

        Raises:
            TrackerError: it cannot be stored.
        """
        from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

        columns = list(dict.fromkeys(key for row in rows for key in row))
        if not columns:
            return
        signals.check()
        table = {"columns": columns, "data": [[_plain(row.get(key)) for key in columns] for row in rows]}
        try:
            self.client.log_text(self.id, json.dumps(table, allow_nan=False), name)
        except Exception as error:
            raise _not_stored(name, error) from error
        known = json.loads(self.client.get_run(self.id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
        entry = {"path": name, "type": "table"}
        if entry not in known:
            self.client.set_tag(self.id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*known, entry]))

    def log_data(self, name: str, digest: str, split: str, source: str) -> None:
        """Log the data set's split as the run's input."""
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        origin = CodeDatasetSource({"tracker.data": source})
        dataset = MetaDataset(origin, name=f"{name}/{split}", digest=digest[:36])  # type: ignore[abstract]
        entity = DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", split)])
        self.client.log_inputs(self.id, [entity])
        self.data = (dataset.name, dataset.digest)

    def log_model(self, model: str, folder: Path) -> None:
        """Upload a logged model's files, and name it as the run's output.

        Args:
            model: its id.
            folder: with MLmodel.

        Raises:
            TrackerError: they cannot be stored.
        """
        from mlflow.entities import LoggedModelOutput

        signals.check()
        self.client.log_outputs(self.id, [LoggedModelOutput(model, step=0)])
        try:
            self.client.log_model_artifacts(model, str(folder))
        except Exception as error:
            raise _not_stored("of the model", error) from error

    def stored(self, name: str) -> Path:
        """The stored artifacts below ``name``, fetched into a local folder that goes when the run ends."""
        if self.fetched is None:  # without a folder of ours MLflow makes its own, and leaves it there
            self.fetched = tempfile.TemporaryDirectory(prefix="fetched-", dir=cache_folder())
        return Path(self.client.download_artifacts(self.id, name, self.fetched.name))

    def _fail(self, error: BaseException) -> bool:
        """Mark the run; whether the store took it."""
        reason = str(error) if isinstance(error, TrackerError) else f"{type(error).__name__}: {error}"
        try:
            discard(self.client, self.client.get_run(self.id))
            self.client.set_tag(self.id, "tracker.error", without_password(reason, self.uri)[:4000])
            self.client.set_terminated(self.id, "FAILED")
        except Exception as second:  # the store itself may be what failed; the first error is the one to tell
            log.debug("the run %s could not be marked as failed: %s", self.id, second)
            return False
        return True


def _not_stored(name: str, error: Exception) -> TrackerError:
    """The error for artifacts; every artifact store has its own exceptions."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return TrackerError(f"the artifacts {name} cannot be stored ({reason[:200]}); is there space left?")


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


def discard(client: MlflowClient, run: MlflowRun) -> None:
    """Take back what makes a failed run look finished: artifacts but the configuration, its model, three tags."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_RUN_NOTE

    tables = [entry["path"] for entry in json.loads(run.data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))]
    for name in dict.fromkeys((*RESULTS, *tables)):
        try:
            get_artifact_repository(run.info.artifact_uri).delete_artifacts(name)
        except Exception as error:  # nothing of that name, or a store that cannot delete
            log.debug("artifacts %s of the failed run remain: %s", name, error)
    for output in run.outputs.model_outputs if run.outputs else []:
        client.finalize_logged_model(output.model_id, "FAILED")
    for tag in ("tracker.bitstream.sha256", "tracker.transparent", MLFLOW_RUN_NOTE):
        if tag in run.data.tags:
            client.delete_tag(run.info.run_id, tag)


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
