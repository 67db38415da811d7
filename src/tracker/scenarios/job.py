"""What every scenario starts from: the configuration, and all that it names, built and checked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracker.anchors.base import Anchor
from tracker.codecs.chain import Codec, build_codec, check_named_once
from tracker.component import build
from tracker.data.base import Data
from tracker.scenarios.aiming import check_target
from tracker.settings import Settings, read_settings
from tracker.tasks.base import Task


@dataclass(frozen=True)
class Job:
    """A checked configuration.

    Attributes:
        config: the composed configuration as plain containers.
        overrides: the words of the command line.
        folder: Hydra's output folder of this job.
        started: reading of `time.perf_counter` when the job began.
    """

    config: Mapping[str, Any]
    overrides: list[str]
    folder: Path
    started: float
    settings: Settings
    anchor: Anchor
    data: Data
    task: Task
    codec: Codec | None

    def seconds(self) -> float:
        """Seconds since the job began."""
        return time.perf_counter() - self.started


def read_job(config: Mapping[str, Any], overrides: list[str], folder: Path, started: float) -> Job:
    """Build and check everything that the configuration names.

    Raises:
        TrackerError: something in it cannot work.
    """
    settings = read_settings(config)
    check_named_once(overrides)
    codec = build_codec(settings.codec)
    check_target(codec, settings.target, overrides)
    return Job(
        config=config,
        overrides=overrides,
        folder=folder,
        started=started,
        settings=settings,
        codec=codec,
        anchor=build(settings.anchor, "anchor", Anchor),  # type: ignore[type-abstract]
        data=build(settings.data, "data", Data),  # type: ignore[type-abstract]
        task=build(settings.task, "task", Task),  # type: ignore[type-abstract]
    )


class Stopwatch:
    """Seconds that parts of a run took: ``with stopwatch("encode"):``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.part = ""

    def __call__(self, part: str) -> Stopwatch:
        """Name the part that is timed next."""
        self.part = part
        return self

    def add(self, part: str, seconds: float) -> None:
        """Count seconds that were measured otherwise."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.add(self.part, time.perf_counter() - self.began)
