"""Any scenario in a sweep: its function is called, and the numbers in what it returns are the trial's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracker.component import locate
from tracker.errors import TrackerError
from tracker.scenarios.job import Job, read_job
from tracker.sweep.outcome import Limits, Outcome, Trials
from tracker.tracking import store
from tracker.tracking.run import Run, flattened


class PlainTrials(Trials):
    """A scenario's function as the objective of a sweep."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.target = str(job.settings.scenario.get("_target_", ""))
        self.function = locate(self.target, "scenario._target_")
        self.uri = store.tracking_uri()
        self.client = store.connect(self.uri)
        self.title = job.settings.tracking.experiment or job.anchor.name
        self.experiment = store.experiment_id(self.client, self.uri, self.title)
        self.signature = {"scenario": self.target, "tolerance": job.task.tolerance}

    def check(self, config: Mapping[str, Any]) -> None:
        """See `Trials.check`."""
        self._job(config)

    def start(self, config: Mapping[str, Any], overrides: list[str], name: str, tags: Mapping[str, str]) -> Run:
        """See `Trials.start`."""
        return Run(self.client, self.uri, self.experiment, name, "trial", tags, flattened(config))

    def measure(self, config: Mapping[str, Any], limits: Limits) -> Outcome:
        """See `Trials.measure`."""
        returned = self.function(self._job(config))
        if not isinstance(returned, Mapping):
            raise TrackerError(f"{self.target} returns {type(returned).__name__}; a sweep needs a dict of metrics")
        numbers = {
            str(name): float(value)
            for name, value in returned.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        outcome = Outcome(numbers)
        if "performance/drop" in numbers:
            outcome.violation = self.job.task.beyond(numbers["performance/drop"])
        return outcome

    def _job(self, config: Mapping[str, Any]) -> Job:
        return read_job(config, [], self.job.folder, self.job.started)
