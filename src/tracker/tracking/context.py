"""Tags for every run of tracker's: what made it, and where. MLflow finds this by its entry point."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from mlflow.tracking.context.abstract_context import RunContextProvider

VERSIONS = ("tracker", "nncodec", "torch", "aimet-torch", "tensorflow", "mlflow")
SLURM = {"job": "SLURM_JOB_ID", "array_task": "SLURM_ARRAY_TASK_ID", "cluster": "SLURM_CLUSTER_NAME"}


class TrackerContext(RunContextProvider):
    """A run context provider (https://mlflow.org/docs/latest/ml/plugins), for runs that tracker's scenarios begin.

    Runs that other code logs from the same environment are left alone.
    """

    def in_context(self) -> bool:
        """Whether a scenario of tracker's is at work in this process."""
        return "tracker.scenarios.bench" in sys.modules

    def tags(self) -> dict[str, str]:
        """Versions, the device, and the Hydra, SLURM or Ray job."""
        return {**machine(), **hydra_job(), **slurm_job(), **ray_job()}


@functools.cache
def machine() -> dict[str, str]:
    """What stays the same in a process: versions of what is installed, the host, its processor and its GPU."""
    tags = {"tracker.host": platform.node(), "tracker.python": platform.python_version(), "tracker.cpu": processor()}
    for name in VERSIONS:
        try:
            tags[f"tracker.version.{name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        tags["tracker.gpu"] = torch.cuda.get_device_name()
    return tags


def processor() -> str:
    """The processor's model, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def hydra_job() -> dict[str, str]:
    """The job's number within a multirun, and the folder that Hydra gave it."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    if not HydraConfig.initialized():
        return {}
    hydra = HydraConfig.get()
    found = {"tracker.hydra.output": str(hydra.runtime.output_dir)}
    if hydra.mode is not None and hydra.mode.name == "MULTIRUN" and not OmegaConf.is_missing(hydra.job, "num"):
        found["tracker.hydra.job"] = str(hydra.job.num)
    return found


def slurm_job() -> dict[str, str]:
    """The job that SLURM runs this process in."""
    return {f"tracker.slurm.{name}": os.environ[key] for name, key in SLURM.items() if os.environ.get(key)}


def ray_job() -> dict[str, str]:
    """The job that Ray runs this process in."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return {}
    context = ray.get_runtime_context()
    return {"tracker.ray.job": context.get_job_id(), "tracker.ray.node": context.get_node_id()}
