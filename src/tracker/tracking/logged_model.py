"""The result of a compression run as an MLflow LoggedModel, with its metrics and its data set."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.errors import TrackerError

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from tracker.anchors.base import Anchor
    from tracker.tracking.run import Run

log = logging.getLogger("tracker")
NAME = "model"


def log_model(
    run: Run,
    anchor: Anchor,
    bitstream: Path,
    scratch: Path,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    described: tuple[ModelSignature, Any],
) -> str:
    """Log a bitstream as the run's model, in the flavor ``nnc``.

    Args:
        run: that made it.
        anchor: whose architecture the receiver builds.
        bitstream: the folder with manifest.json.
        scratch: for files on their way.
        metrics: of the run, to be linked to the model and the data set.
        tags: of the model.
        described: its signature and an input example.

    Returns:
        The model's id; empty where the architecture cannot travel, which is said.

    Raises:
        TrackerError: it cannot be stored.
    """
    from mlflow.models import Model

    from tracker import flavor

    folder, model = scratch / NAME, Model()
    try:
        flavor.save_model(
            bitstream, folder, anchor, mlflow_model=model, signature=described[0], input_example=described[1]
        )
    except TrackerError as error:
        log.warning("no model is logged: %s", error)
        return ""
    logged = run.client.create_logged_model(run.experiment, NAME, run.id, dict(tags), None, flavor.FLAVOR_NAME)
    stored = False
    try:
        model.model_id = model.model_uuid = logged.model_id
        model.artifact_path, model.run_id = logged.artifact_location, run.id
        model.save(str(folder / "MLmodel"))
        run.log_model(logged.model_id, folder)
        run.log_results(metrics, {}, logged.model_id)
        stored = True
    finally:
        run.client.finalize_logged_model(logged.model_id, "READY" if stored else "FAILED")
        shutil.rmtree(folder, ignore_errors=True)
    return logged.model_id
