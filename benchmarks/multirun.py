"""One multirun of tracker, and the runs that it left in the store; for the other scripts of this folder."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from typing import Any


def compression_runs(
    experiment: str, count: int, words: list[str], strict: bool = True, kind: str = "compression"
) -> list[Any]:
    """Run ``python -m tracker -m WORDS`` into an experiment.

    Args:
        experiment: its name; runs of other commands may be in it, and begin meanwhile.
        count: how many jobs the words describe.
        words: of the command line.
        strict: whether a job that fails ends the script; else its run is left out.
        kind: of the runs.

    Returns:
        The MLflow runs, the newest first.
    """
    from mlflow import MlflowClient

    from tracker.tracking.store import tracking_uri

    own = f"{time.strftime('%Y-%m-%d/%H-%M-%S')}-{uuid.uuid4().hex}"  # its runs tell where their output is
    where = [f"hydra.sweep.dir=multirun/{own}", f"tracking.experiment={experiment}"]
    command = [sys.executable, "-m", "tracker", "-m", *words, *where]
    subprocess.run(command, check=strict, stdout=subprocess.DEVNULL)
    client = MlflowClient(tracking_uri())
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client.search_runs(
        [found.experiment_id],
        f"tags.`tracker.kind` = '{kind}' AND attributes.status = 'FINISHED' AND "
        f"tags.`tracker.hydra.output` LIKE '%{own}%'",
        order_by=["attributes.start_time DESC"],
        max_results=count,
    )
