"""One multirun of tracker, and the runs that it left in the store; for the other scripts of this folder."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any


def compression_runs(experiment: str, count: int, words: list[str], strict: bool = True) -> list[Any]:
    """Run ``python -m tracker -m WORDS`` into an experiment.

    Args:
        experiment: its name; older runs may be in it.
        count: how many jobs the words describe.
        words: of the command line.
        strict: whether a job that fails ends the script; else its run is left out.

    Returns:
        The MLflow runs of kind ``compression``, the newest first.
    """
    from mlflow import MlflowClient

    from tracker.tracking.store import tracking_uri

    began = int(1000 * time.time())
    command = [sys.executable, "-m", "tracker", "-m", *words, f"tracking.experiment={experiment}"]
    subprocess.run(command, check=strict, stdout=subprocess.DEVNULL)
    client = MlflowClient(tracking_uri())
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client.search_runs(
        [found.experiment_id],
        f"tags.`tracker.kind` = 'compression' AND attributes.status = 'FINISHED' AND attributes.start_time >= {began}",
        order_by=["attributes.start_time DESC"],
        max_results=count,
    )
