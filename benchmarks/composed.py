"""The job that words of a command line describe; for the other scripts of this folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tracker.__main__ import config_folder
from tracker.scenarios.job import Job, read_job


def job_of(words: list[str], folder: Path) -> Job:
    """Compose and check a configuration.

    Args:
        words: as behind ``python -m tracker``.
        folder: for what the job writes.
    """
    with initialize_config_dir(config_folder(), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("config", words), resolve=True)
    return read_job(config, words, folder, time.perf_counter())
