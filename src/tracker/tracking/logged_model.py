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
) -> None:
    """Log a bitstream as the run's model, in the flavor ``nnc``.

    Args:
        run: that made it.
        anchor: whose architecture the receiver builds.
        bitstream: the folder with manifest.json.
        scratch: for files on their way.
        metrics: of the run, to be linked to the model and the data set.
        tags: of the model.
        described: its signature and an input example.

    Where the architecture cannot travel, no model is logged, which is said.

    Raises:
        TrackerError: it cannot be stored.
    """
    from tracker import flavor
    from tracker.flavor.own_code import own_code

    folder = scratch / NAME
    code = own_code({type(anchor).__module__, *anchor.imports().values()}) or None
    try:
        flavor.save_model(
            bitstream, folder, anchor, signature=described[0], input_example=described[1], code_paths=code
        )
    except TrackerError as error:
        log.warning("no model is logged: %s", error)
        return
    try:
        run.log_model(folder, NAME, flavor.FLAVOR_NAME, metrics, tags)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
