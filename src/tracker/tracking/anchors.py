"""Anchors in MLflow: each is evaluated and logged once per (weights, task), and found again."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.cache import cache_folder
from tracker.component import code_digest
from tracker.tasks.base import Evaluation
from tracker.tracking.outage import ServerLost, guarded
from tracker.tracking.run import Run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import Tensor

    from tracker.scenarios.job import Job

log = logging.getLogger(__name__)
WEIGHTS = "model.safetensors"
SCORES = "scores.safetensors"
KEY = "tracker.anchor.key"  # a tag
ADDRESS = re.compile(r"0x[0-9a-fA-F]+")  # of an object in memory, in its text form


@dataclass(frozen=True)
class LoggedAnchor:
    """An anchor's run and what was measured in it.

    Attributes:
        run_id: of the run of kind ``anchor``.
        evaluation: the metrics and the scores of each sample.
        found: whether it had been logged before.
    """

    run_id: str
    evaluation: Evaluation
    found: bool


def task_digest(job: Job, architecture: str, data_sha256: str, device: str) -> str:
    """SHA-256 (hex) over all that an anchor's performance depends on besides its weights.

    Args:
        job: its task, data set and anchor, and the user's own code behind them.
        architecture: in words, which tell what weights do not (activations, strides).
        data_sha256: of the split.
        device: results on a CPU and on a GPU differ in the last digits.
    """
    settings = job.settings
    identity = {
        "task": job.task.identity(),
        "data": {**job.data.identity(), "sha256": data_sha256},
        "anchor": job.anchor.identity(),
        "preprocessing": job.anchor.preprocessing(),
        "architecture": ADDRESS.sub("", architecture),
        "code": code_digest(settings.anchor, settings.task, settings.data),
        "device": device.split(":")[0],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def anchor_key(sha256: str, task_sha256: str) -> str:
    """One word for an anchor and its task.

    Only runs of kind ``anchor`` have it as a tag: a database finds it without reading that of every run.
    """
    return hashlib.sha256(f"{sha256}{task_sha256}".encode()).hexdigest()[:24]


def logged_anchor(
    client: MlflowClient,
    experiment: str,
    sha256: str,
    task_sha256: str,
    make: Callable[[], LoggedAnchor],
    lock_folder: Path,
) -> LoggedAnchor:
    """The anchor's run, made only where there is none.

    Args:
        client: of the tracking store.
        experiment: the experiment's id.
        sha256: digest of the weights.
        task_sha256: digest of the task.
        make: evaluates and logs the anchor.
        lock_folder: shared by the processes of this machine; one of them makes the run, the others wait.
    """
    from filelock import FileLock

    key = anchor_key(sha256, task_sha256)
    if found := find_anchor(client, experiment, sha256, task_sha256):
        return found
    with FileLock(lock_folder / f"anchor-{key}.lock"):
        if found := find_anchor(client, experiment, sha256, task_sha256):
            return found
        made = make()
        # Another machine may have done the same meanwhile; then the one that began first serves both.
        first = find_anchor(client, experiment, sha256, task_sha256)
        if first is not None and first.run_id != made.run_id:
            client.delete_run(made.run_id)
            return first
        return made


def find_anchor(client: MlflowClient, experiment: str, sha256: str, task_sha256: str) -> LoggedAnchor | None:
    """The first finished run of this anchor and task whose scores can be read, from this experiment or another."""
    with guarded(client.tracking_uri):
        others = [found.experiment_id for found in client.search_experiments()]
        for experiments in ([experiment], sorted(set(others) - {experiment})):
            if experiments and (anchor := _first_anchor(client, experiments, sha256, task_sha256)):
                return anchor
    return None


def _first_anchor(client: MlflowClient, experiments: list[str], sha256: str, task_sha256: str) -> LoggedAnchor | None:
    runs = client.search_runs(
        experiments,
        f"tags.`{KEY}` = '{anchor_key(sha256, task_sha256)}' AND attributes.status = 'FINISHED'",
        order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
        max_results=10,
    )
    for run in runs:
        metrics = json.loads(run.data.tags.get("tracker.metrics", "[]"))
        values = {name: run.data.metrics[f"{name}/anchor"] for name in metrics if f"{name}/anchor" in run.data.metrics}
        try:
            with guarded(client.tracking_uri):
                scores = read_scores(client, run.info.run_id)
        except ServerLost:
            raise
        except Exception as error:  # whatever the artifact store raises: artifacts may have been cleaned up
            log.warning("the anchor of run %s is evaluated again: its scores are gone (%s)", run.info.run_id, error)
            continue
        if values and len(values) == len(metrics):
            return LoggedAnchor(run.info.run_id, Evaluation(values, scores), found=True)
    return None


def read_scores(client: MlflowClient, run_id: str) -> Any:
    """The scores of an anchor's samples, shape (N, K); None where its task has none."""
    from safetensors.numpy import load

    # Without a folder of ours MLflow makes its own, and leaves it there.
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        path = Path(client.download_artifacts(run_id, f"scores/{SCORES}", folder))
        return load(path.read_bytes()).get("scores")


def read_weights(client: MlflowClient, run_id: str) -> dict[str, Tensor]:
    """The weights that `log_anchor` stored, tied names included."""
    from safetensors import safe_open

    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        path = client.download_artifacts(run_id, f"anchor/{WEIGHTS}", folder)
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (it is no mapping)
            tied = json.loads((stored.metadata() or {}).get("tied", "{}"))
    return tensors | {name: tensors[first] for name, first in tied.items()}


def log_anchor(run: Run, tensors: Mapping[str, Tensor], evaluation: Evaluation, folder: Path) -> None:
    """Store an anchor's weights as safetensors, and its scores.

    Args:
        run: of kind ``anchor``.
        tensors: the state dict; tied tensors are stored once.
        evaluation: what was measured.
        folder: for files on their way.
    """
    import numpy as np
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file

    from tracker.bitstream.state import aliases, own_memory

    tied = aliases(tensors)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        own, scores = Path(scratch) / "anchor", Path(scratch) / "scores"
        own.mkdir()
        scores.mkdir()
        unique = own_memory({name: tensor for name, tensor in tensors.items() if name not in tied})
        save_file(
            unique,
            own / WEIGHTS,
            {"format": "pt", **({"tied": json.dumps(tied)} if tied else {})},
        )
        arrays = {} if evaluation.scores is None else {"scores": np.ascontiguousarray(evaluation.scores)}
        save_arrays(arrays, scores / SCORES)
        run.log_folder(own, "anchor")
        run.log_folder(scores, "scores")
