"""The sweep's own MLflow run, whose children are the trials of whatever process or host."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tracker.sweep.distributions import shown
from tracker.tracking.outage import guarded
from tracker.tracking.run import Run, flattened

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from tracker.sweep.history import History
    from tracker.sweep.sweep import Sweep

PARENT = "tracker:parent"
SECONDS_BETWEEN_WORDS = 1.0


class SweepRun(Run):
    """A run of kind ``sweep``: made by the first who works on a study, found again by all others.

    As any run it ends FAILED when the command that opened it is killed; the command that goes on with the study opens
    it again.
    """

    def __init__(self, sweep: Sweep) -> None:
        trials, self.shared = sweep.trials, sweep.shared
        self.discarded = False  # whether a command that was killed has left nothing of its results
        tags = {"tracker.study": self.shared.name, "tracker.storage": sweep.shared.storage.shown}
        own = flattened(sweep.settings.model_dump(), "sweep.")
        # A star, which stands for every layer, is no letter that MLflow takes in a name.
        own = {key.replace(".*", ".each"): value for key, value in own.items()}
        params = {**flattened(sweep.config(sweep.base)), **own}
        for key, parameter in sweep.space.items():
            params[key] = shown(parameter.distribution)
        name = f"sweep {self.shared.name}"[:250]
        super().__init__(trials.client, trials.uri, trials.experiment, name, "sweep", tags, params)

    def __enter__(self) -> SweepRun:
        """Create the run, or open it again."""
        with self.shared.storage.locked(self.shared.name):
            found = self.shared.study.user_attrs.get(PARENT)
            if found is None or not self._reopened(str(found)):
                super().__enter__()
                self.shared.study.set_user_attr(PARENT, self.id)
        return self

    def _reopened(self, run_id: str) -> bool:
        """Take up the run of an earlier command; whether it is still there."""
        from mlflow.exceptions import MlflowException

        try:
            with guarded(self.uri):  # a server that does not answer is no reason for another run
                info = self.client.get_run(run_id).info
        except MlflowException:
            return False
        if info.lifecycle_stage == "deleted":
            return False
        self.discarded = info.status == "FAILED"
        self.resume(run_id)
        return True


class BestSoFar:
    """The best first objective so far, as a metric of the sweep's run with a step for each finished trial.

    It is sent once a second at most, so that it does not cost every trial a call of its own.
    """

    def __init__(self, client: MlflowClient, uri: str, run_id: str, name: str) -> None:
        self.client, self.uri, self.run_id, self.name = client, uri, run_id, name
        self.waiting: list[Metric] = []
        self.step, self.sent = -1, time.monotonic()

    def note(self, history: History) -> None:
        """Take down where the sweep stands."""
        from mlflow.entities import Metric

        ended, best = history.ended, history.best()
        if best is None or best.value is None or ended == self.step:
            return
        self.step = ended
        self.waiting.append(Metric(self.name, best.value, int(time.time() * 1000), ended))
        if time.monotonic() - self.sent > SECONDS_BETWEEN_WORDS:
            self.flush()

    def flush(self) -> None:
        """Send what was taken down."""
        if self.waiting:
            with guarded(self.uri):
                self.client.log_batch(self.run_id, metrics=self.waiting)
        self.waiting, self.sent = [], time.monotonic()
