"""What a run logs, as plain data: done at once, or kept and done later, with the same outcome however often it is done.

Each operation takes the client, the run's id, what it logs (as JSON has it) and a folder of files or None.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.errors import TrackerError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric

Operation = Callable[["MlflowClient", str, Mapping[str, Any], Path | None], None]


def log_results(client: MlflowClient, run_id: str, what: Mapping[str, Any], folder: Path | None) -> None:
    """``metrics`` by name, all of the same ``time`` and ``step``, and ``tags``."""
    from mlflow.entities import RunTag

    tags = [RunTag(key, value) for key, value in what["tags"].items()]
    client.log_batch(run_id, metrics=_metrics(what), tags=tags)


def _metrics(what: Mapping[str, Any], **linked: Any) -> list[Metric]:
    from mlflow.entities import Metric

    step = what.get("step", 0)
    return [Metric(key, value, what["time"], step, **linked) for key, value in what["metrics"].items()]


def log_folder(client: MlflowClient, run_id: str, what: Mapping[str, Any], folder: Path | None) -> None:
    """A folder's files, as artifacts below ``name``."""
    try:
        client.log_artifacts(run_id, str(folder), what["name"])
    except Exception as error:
        raise not_stored(f"{what['name']}/", error) from error


def log_table(client: MlflowClient, run_id: str, what: Mapping[str, Any], folder: Path | None) -> None:
    """A ``table``, as the artifact ``name``."""
    from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

    name = what["name"]
    try:
        client.log_text(run_id, json.dumps(what["table"], allow_nan=False), name)
    except Exception as error:
        raise not_stored(name, error) from error
    known = json.loads(client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    entry = {"path": name, "type": "table"}
    if entry not in known:
        client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*known, entry]))


def log_model(client: MlflowClient, run_id: str, what: Mapping[str, Any], folder: Path | None) -> None:
    """A logged model with its files, as the run's output, with ``metrics`` on the run's ``data`` set."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    from tracker.tracking import outage

    assert folder is not None
    logged = _begun(client, run_id, what) if what.get("again") else None
    if logged is None:
        before = outage.Repeated.count
        logged = client.create_logged_model(
            what["experiment"], what["name"], run_id, dict(what["tags"]), None, what["flavor"]
        )
        if outage.Repeated.count != before:  # the server may have made it twice
            logged = _begun(client, run_id, what) or logged
    stored = False
    try:
        model = Model.load(str(folder / "MLmodel"))
        model.model_id = model.model_uuid = logged.model_id
        model.artifact_path, model.run_id = logged.artifact_location, run_id
        model.save(str(folder / "MLmodel"))
        outputs = client.get_run(run_id).outputs if what.get("again") else None
        if logged.model_id not in [one.model_id for one in (outputs.model_outputs if outputs else [])]:
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        try:
            client.log_model_artifacts(logged.model_id, str(folder))
        except Exception as error:
            raise not_stored("of the model", error) from error
        linked = {"dataset_name": what["data"][0], "dataset_digest": what["data"][1]}
        client.log_batch(run_id, metrics=_metrics(what, model_id=logged.model_id, **linked))
        stored = True
    finally:
        _finalize(client, logged, stored)


def _begun(client: MlflowClient, run_id: str, what: Mapping[str, Any]) -> LoggedModel | None:
    """The run's model, where an earlier try came as far as making it; of several, as answers were lost, one stays."""
    found = client.search_logged_models([what["experiment"]], f"source_run_id = '{run_id}'")
    ready = sorted(found, key=lambda model: (model.status != "READY", model.creation_timestamp, model.model_id))
    for other in ready[1:]:
        client.finalize_logged_model(other.model_id, "FAILED")
        client.delete_logged_model(other.model_id)
    return ready[0] if ready else None


def _finalize(client: MlflowClient, logged: LoggedModel, stored: bool) -> None:
    """Say that a model is whole, or that it is not, for which a store that was just lost is not asked again."""
    from tracker.tracking import outage

    if stored or outage.answers(str(client.tracking_uri)):
        client.finalize_logged_model(logged.model_id, "READY" if stored else "FAILED")


def end(client: MlflowClient, run_id: str, what: Mapping[str, Any], folder: Path | None) -> None:
    """The run ends, with a ``status``, at a ``time`` in milliseconds where that is not now."""
    client.set_terminated(run_id, what["status"], what.get("time"))


def register(client: MlflowClient, run_id: str, what: Mapping[str, Any], folder: Path | None) -> None:
    """The run's model becomes a version of the registered model ``name``; after its end."""
    from tracker.tracking import registry

    registry.register(client, run_id, what["name"])


OPERATIONS: dict[str, Operation] = {
    "results": log_results,
    "folder": log_folder,
    "table": log_table,
    "model": log_model,
    "end": end,
    "register": register,
}


def not_stored(name: str, error: Exception) -> TrackerError:
    """The error for artifacts; every artifact store has its own exceptions."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return TrackerError(f"the artifacts {name} cannot be stored ({reason[:200]}); is there space left?")
