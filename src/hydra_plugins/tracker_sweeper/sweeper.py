"""What Hydra calls for ``-m`` with ``hydra/sweeper=tracker``. Every command imports it, so it imports nothing heavy."""

from __future__ import annotations

from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class TrackerSweeper(Sweeper):
    """An Optuna study; the launcher starts its workers."""

    def __init__(self, **settings: Any) -> None:
        # They are read from the configuration, where the workers find them too.
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what `sweep` needs."""
        from hydra.core.plugins import Plugins

        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the study to its end; what was found is returned."""
        from tracker.sweep.command import run_sweep

        assert self.config is not None and self.launcher is not None
        return run_sweep(self.config, self.launcher)
