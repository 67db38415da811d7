"""A failed run in MLflow: marked, and without what would make it look finished."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)
# Artifacts that a run which failed must not keep.
RESULTS = ("bitstream", "anchor", "scores", "tensors.json", "stages.json", "stages", "plots")


def mark(client: MlflowClient, run_id: str, reason: str) -> None:
    """End a run FAILED, with nothing left that looks like a result."""
    discard(client, client.get_run(run_id))
    client.set_tag(run_id, "tracker.error", reason)
    client.set_terminated(run_id, "FAILED")


def discard(client: MlflowClient, run: Run) -> None:
    """Take back what makes a failed run look finished: artifacts but the configuration, its model, three tags."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_RUN_NOTE

    tables = [entry["path"] for entry in json.loads(run.data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))]
    for name in dict.fromkeys((*RESULTS, *tables)):
        try:
            get_artifact_repository(run.info.artifact_uri).delete_artifacts(name)
        except Exception as error:  # nothing of that name, or a store that cannot delete
            log.debug("artifacts %s of the failed run remain: %s", name, error)
    experiment, made = run.info.experiment_id, f"source_run_id = '{run.info.run_id}'"
    for model in client.search_logged_models([experiment], made):  # one whose answer was lost is no output of the run
        client.finalize_logged_model(model.model_id, "FAILED")
    for tag in ("tracker.bitstream.sha256", "tracker.transparent", MLFLOW_RUN_NOTE):
        if tag in run.data.tags:
            client.delete_tag(run.info.run_id, tag)
