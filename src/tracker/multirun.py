"""What follows a multirun: Hydra calls it by conf/base.yaml. Every command imports it, so it imports nothing heavy."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from tracker import signals

log = logging.getLogger("tracker")
begun: list[Path] = []  # folders of multiruns whose curves have not been drawn


class Curves(Callback):
    """Draws the curve of each anchor that a plain multirun compressed; a sweep draws its own."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note where the jobs will be, in whatever processes."""
        if not str(config.hydra.sweeper.get("_target_")).startswith("hydra_plugins.tracker_sweeper."):
            begun[:] = [Path(str(config.hydra.sweep.dir)).absolute()]

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Draw."""
        draw()


def draw() -> None:
    """Draw the curves of what has ended; also called where a job failed, after which Hydra tells nobody.

    No plot is worth a multirun: whatever goes wrong is told in a line.
    """
    while begun:
        folder = begun.pop()
        try:
            if not any(folder.glob("*/")):  # refused before a job began
                continue
            from tracker.report.multirun import log_curves
            from tracker.update.multirun import log_modes

            log_curves(folder)
            log_modes(folder)
        except Exception as error:
            signals.check()  # an interrupted import fails in ways of its own
            from tracker.__main__ import message_of

            log.warning("the curve of this multirun is not drawn: %s", message_of(error))
