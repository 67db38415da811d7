"""The model registry: a run's result as a version, and the alias of the smallest transparent one.

See https://mlflow.org/docs/latest/ml/model-registry for versions, tags and aliases.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tracker.errors import TrackerError
from tracker.tracking.outage import Repeated

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger("tracker")
ALIAS = "transparent"
SIZE, DROP = "size/bitstream_bytes", "performance/drop"
ANCHOR = "tracker.anchor.sha256"
SIZE_TAG = "tracker.bitstream.bytes"
TOLERANCE, DATA = "tracker.tolerance", "tracker.data"


def register(client: MlflowClient, run_id: str, name: str | None = None) -> ModelVersion:
    """Register a run's model, and move the alias where it is the smallest transparent one.

    Args:
        client: of the store that has the run.
        run_id: of a run of kind ``compression`` that has ended.
        name: of the registered model; by default the anchor's.

    Returns:
        The version; the one that there was, where the run's model is registered already.

    Raises:
        TrackerError: there is no such run, it has no model, or the name belongs to another anchor's models.
    """
    run, model = logged_model(client, run_id)
    name = name or model.tags["tracker.anchor"]
    check_name(client, name, run.data.tags[ANCHOR])
    version = next((one for one in versions_of(client, name) if one.run_id == run_id), None)
    if version is None:
        _create(client, name)
    reason = not_promotable(run, terms(client, name, run))
    if version is None:
        before = Repeated.count
        version = client.create_model_version(
            name,
            f"models:/{model.model_id}",
            run_id,
            tags=tags_of(run, transparent=not reason),
            description=description(run),
            model_id=model.model_id,
        )
        if Repeated.count != before:  # the server may have made it twice
            version = _first(client, name, run_id)
        log.info("registered as models:/%s/%s", name, version.version)
    if reason:
        log.info("models:/%s@%s is not moved to it: %s", name, ALIAS, reason)
    else:
        point_to_smallest(client, name)
    return client.get_model_version(name, version.version)


def promote(client: MlflowClient, name: str, version: str) -> None:
    """Give a version the alias ``transparent``.

    Raises:
        TrackerError: its drop on the split that figures are reported on is beyond the tolerance, its own or the name's.
    """
    run = client.get_run(str(client.get_model_version(name, version).run_id))
    if reason := not_promotable(run, terms(client, name, run)):
        raise TrackerError(f"models:/{name}/{version} cannot be promoted: {reason}")
    client.set_registered_model_alias(name, ALIAS, version)


def point_to_smallest(client: MlflowClient, name: str) -> None:
    """Move the alias to the smallest version that was found transparent; the first of equal ones."""
    good = [one for one in versions_of(client, name) if one.tags.get("tracker.transparent") == "true"]
    smallest = min(good, key=lambda one: (int(one.tags[SIZE_TAG]), int(one.version)))
    client.set_registered_model_alias(name, ALIAS, smallest.version)
    size = f"{int(smallest.tags[SIZE_TAG]):,}"
    log.info("models:/%s@%s is version %s, %s bytes", name, ALIAS, smallest.version, size)


def terms(client: MlflowClient, name: str, run: Run) -> dict[str, str]:
    """On what the versions of a name compare: the tolerance and the data of the first one measured for figures.

    They are tags of the registered model, so that a run with a tolerance of its own does not take the alias from
    those that kept to it. Whoever wants others changes the tags.
    """
    found = {key: value for key, value in client.get_registered_model(name).tags.items() if key in (TOLERANCE, DATA)}
    if not_promotable(run, {}) and not found:
        return {}
    own = {TOLERANCE: run.data.params.get("task.tolerance", ""), DATA: data_of(run)}
    for key in own.keys() - found.keys():
        client.set_registered_model_tag(name, key, own[key])
    return own | found


def data_of(run: Run) -> str:
    """The data that a run was measured on, with their digest."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return " ".join(f"{one.dataset.name} {one.dataset.digest}" for one in inputs[:1])


def not_promotable(run: Run, terms: Mapping[str, str]) -> str:
    """Why a run's result is not transparent as far as anyone can tell; empty where it is.

    Args:
        run: of kind ``compression``.
        terms: what the versions of the name compare on, as far as there is any.
    """
    split, drop = run.data.params.get("task.split", ""), run.data.metrics.get(DROP)
    if split != "report":
        return f"it was measured on the split {split}, and not on that for figures"
    if run.info.status != "FINISHED" or drop is None:
        return f"its run is {run.info.status}"
    if terms.get(DATA, data_of(run)) != data_of(run):
        return f"it was measured on {data_of(run)}, and the name's versions on {terms[DATA]}"
    tolerance = run.data.params.get("task.tolerance", "the task's")
    if run.data.tags.get("tracker.transparent") != "true":
        return f"its drop is {drop:.4g} on the split for figures, and the tolerance is {tolerance}"
    if drop > _number(terms.get(TOLERANCE)):
        return f"its drop is {drop:.4g}, and the tolerance of the name {terms[TOLERANCE]} (its own is {tolerance})"
    return ""


def _number(text: str | None) -> float:
    """A tolerance; without limit where there is none."""
    try:
        return float(text or math.inf)
    except ValueError:
        return math.inf


def logged_model(client: MlflowClient, run_id: str) -> tuple[Run, LoggedModel]:
    """A run, and the logged model that it made.

    Raises:
        TrackerError: there is no such run, or it made none.
    """
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise TrackerError(f"there is no run {run_id[:64]} in this store; set MLFLOW_TRACKING_URI") from error
    outputs = run.outputs.model_outputs if run.outputs else []
    if not outputs:
        kind = run.data.tags.get("tracker.kind", "unknown")
        raise TrackerError(f"the run {run_id} (kind {kind}) has no model; give one of kind compression that finished")
    return run, client.get_logged_model(outputs[-1].model_id)


def versions_of(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions of a registered model; none where there is none of that name.

    Raises:
        TrackerError: no filter of MLflow's can name it.
    """
    from mlflow.exceptions import MlflowException

    found: list[ModelVersion] = []
    token = None
    quote = '"' if "'" in name else "'"
    while True:
        try:
            page = client.search_model_versions(f"name = {quote}{name}{quote}", page_token=token)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise TrackerError(f"no registered model can be named {name[:80]!r}: choose a plainer name") from error
        found += page
        token = page.token
        if not token:
            return found


def _first(client: MlflowClient, name: str, run_id: str) -> ModelVersion:
    """The one version of a run's model that stays; it was made at least once."""
    first, *others = sorted(
        (one for one in versions_of(client, name) if one.run_id == run_id), key=lambda one: int(one.version)
    )
    for other in others:
        client.delete_model_version(name, other.version)
    return first


def _create(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise TrackerError(f"no registered model can be named {name!r}: {error.message}") from error


def check_name(client: MlflowClient, name: str, anchor: str) -> None:
    """Refuse a name whose versions are of another anchor, with which those of this one would not compare.

    Args:
        client: of the store.
        name: of a registered model that need not exist.
        anchor: digest of the anchor's weights.

    Raises:
        TrackerError: that.
    """
    for version in versions_of(client, name):
        if version.tags.get(ANCHOR) not in (None, anchor):
            raise TrackerError(
                f"models:/{name} has versions of another anchor, with which this one's do not compare; choose another "
                "name by tracking.registered_model=NAME"
            )


def tags_of(run: Run, transparent: bool) -> dict[str, str]:
    """A version's tags: what one wants to know before taking it."""
    metrics, tags = run.data.metrics, run.data.tags
    found = {
        SIZE_TAG: f"{metrics[SIZE]:.0f}",
        "tracker.rate_percent": f"{metrics['size/rate_percent']:.4g}",
        "tracker.drop": f"{metrics[DROP]:.6g}",
        TOLERANCE: run.data.params.get("task.tolerance", ""),
        "tracker.split": run.data.params.get("task.split", ""),
    }
    found["tracker.transparent"] = str(transparent).lower()
    kept = ("tracker.codec", "tracker.bitstream.sha256", ANCHOR)
    return found | {name: tags[name] for name in kept if name in tags}


def description(run: Run) -> str:
    """A version's description, in Markdown, with links to the runs that it comes from."""
    metrics, tags, experiment = run.data.metrics, run.data.tags, run.info.experiment_id

    def link(word: str, run_id: str | None) -> str:
        return f"[{word}](#/experiments/{experiment}/runs/{run_id})" if run_id else ""

    links = [
        link("run", run.info.run_id),
        link("anchor", tags.get("tracker.anchor.run_id")),
        link("sweep", tags.get("mlflow.parentRunId")),
    ]
    return (
        f"**{tags.get('tracker.codec', '')}**: {metrics[SIZE]:,.0f} bytes, {metrics['size/rate_percent']:.2f} % of the "
        f"anchor, drop {metrics[DROP]:.4g} (tolerance {run.data.params.get('task.tolerance', '')}). "
        + " · ".join(word for word in links if word)
    )
