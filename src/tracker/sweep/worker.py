"""A worker: takes a trial of the study, measures it, tells what it found, until none is left."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tracker import signals
from tracker.errors import TrackerError
from tracker.sweep.alive import Heart
from tracker.sweep.conditions import excess
from tracker.sweep.history import ERROR, OUTCOME, RUN_ID, key_of, stored
from tracker.sweep.outcome import Limits, Outcome
from tracker.sweep.parent import PARENT, BestSoFar
from tracker.sweep.proposing import Proposing
from tracker.sweep.settings import DROP, SIZE
from tracker.sweep.space import suggest
from tracker.sweep.sweep import Sweep
from tracker.tasks.base import ROUNDING
from tracker.tracking.outage import ServerLost

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

log = logging.getLogger("tracker")
FAILURES_BEFORE_STOPPING = 3
# The last one is what joblib counts cores by, and with it how many processes code tensors.
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "LOKY_MAX_CPU_COUNT",
)


class _Enough(Exception):
    """No further trial is begun."""


class Worker:
    """One process of a sweep."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.settings, self.shared = sweep, sweep.settings, sweep.shared
        self.history, self.trials = sweep.history, sweep.trials
        self.parent = str(self.shared.study.user_attrs[PARENT])
        name = "sweep/best_bytes" if sweep.objective == SIZE else f"sweep/best_{sweep.objective}"
        self.best = BestSoFar(self.trials.client, self.trials.uri, self.parent, name)

    def work(self) -> str:
        """Run trials until none is left.

        Returns:
            Why it ended, for people; empty where all trials are done.

        Raises:
            TrackerError: more trials failed than are allowed.
        """
        from optuna.exceptions import ExperimentalWarning

        signals.begin()
        # Optuna says so for every trial; those that break a constraint are kept from it.
        warnings.filterwarnings("ignore", message="Constraints have been set, but CmaEsSampler")
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        try:
            reason = self._work()
        except ServerLost:  # there is nobody to tell
            raise
        except BaseException as error:
            if not isinstance(error, Exception):  # it may come between taking a trial and running it
                self.shared.give_back(f"interrupted: {type(error).__name__}")
            self.best.flush()
            raise
        self.best.flush()
        return reason

    def _work(self) -> str:
        while True:
            try:
                trial = self.shared.claim(self.sweep.most, self._decided, self._sampler)
            except _Enough as reason:
                return str(reason)
            if trial is not None:
                self._run(trial)
            elif self.shared.all_done(self.sweep.most):
                return ""
            else:
                signals.check()
                self.shared.await_change()

    def _decided(self, trials: list[FrozenTrial]) -> Mapping[str, Any] | None:
        """Whether another trial is begun at all, and what is tried next whatever the sampler thinks."""
        self.history.read(trials)
        self.best.note(self.history)
        if problem := too_many_failed(self.sweep):
            raise TrackerError(problem)
        if reason := self._enough():
            raise _Enough(reason)
        return self.sweep.planner.propose(self.history)

    def _sampler(self, place: int) -> BaseSampler:
        sampler, seed, space = self.sweep.sampler, self.settings.seed, self.sweep.space
        return Proposing(
            lambda attempt: sampler.build(seed, place, space, attempt),
            space,
            self.sweep.planner.along if sampler.can_be_moved and self.sweep.single else None,
            self.history,
            self.sweep.planner.tolerance,
            sampler.attempts,
            sampler.remembers,
        )

    def _enough(self) -> str:
        """Why no further trial is begun; empty where one is."""
        timeout, patience = self.settings.timeout, self.settings.patience
        if timeout is not None and time.monotonic() - self.sweep.began > timeout:
            return f"hydra.sweeper.timeout: {timeout:g} s are over"
        if patience is not None and self.history.since_best() >= patience:
            return f"hydra.sweeper.patience: no better one in {patience} trials"
        return ""

    def _run(self, trial: Trial) -> None:
        """One trial, whatever becomes of it."""
        try:
            with Heart(self.shared.study._storage, trial._trial_id):
                values = suggest(trial, self.sweep.space)
                outcome = self._logged(trial, values)
        except ServerLost as error:  # which is not the trial's fault: another takes its place
            self.shared.give_back(str(error))
            raise
        except Exception as error:
            signals.check()
            self._failed(trial, error)
        else:
            self._show(trial, values, outcome)

    def _logged(self, trial: Trial, values: Mapping[str, Any]) -> Outcome:
        """A trial with its MLflow run: measured, logged, told."""
        config, overrides = self.sweep.config(values), self.sweep.overrides(values)
        study, number = self.shared.name, str(trial.number)
        tags = {"mlflow.parentRunId": self.parent, "tracker.study": study, "tracker.trial": number}
        with self.trials.start(config, overrides, f"trial {trial.number}", tags) as run:
            outcome = self._measured(values, config)
            run.log_results(outcome.metrics, tags_of(outcome))
            # The study first: were this process killed in between, the run would be mended by what the study has.
            self._tell(trial, outcome, run.id)
        return outcome

    def _measured(self, values: Mapping[str, Any], config: Mapping[str, Any]) -> Outcome:
        """What the trial finds; from an earlier trial, where one tells already."""
        same = self.history.by_params.get(key_of(values))
        if same is not None:
            return Outcome(**{**stored(same.outcome), "stopped": f"the same as trial {same.number}"})
        limits = self._limits()
        if limits.size is not None:
            coarser = self.sweep.planner.coarser(values, self.history, limits.size)
            if coarser is not None:
                return Outcome(stopped=f"finer than trial {coarser.number}, which is no smaller than the best")
        return self.trials.measure(config, limits)

    def _limits(self) -> Limits:
        """What need not be measured: nothing is left out where several objectives are wanted of every trial."""
        if not self.sweep.single:
            return Limits(evaluated=self.history.by_content.get)
        best = self.history.best()
        everything = self.sweep.sampler.models_feasibility
        only_size = self.sweep.objective == SIZE and best is not None and not everything
        return Limits(
            size=best.value if only_size and best is not None else None,
            confidence=self.settings.confidence if self.settings.transparent else None,
            bounds=tuple(self.settings.bounds),
            evaluated=self.history.by_content.get,
            seconds=self.history.seconds(),
        )

    def _tell(self, trial: Trial, outcome: Outcome, run_id: str) -> None:
        """Constraints and values, as far as they were measured."""
        from optuna.trial import TrialState

        trial.set_user_attr(OUTCOME, {**stored(outcome), RUN_ID: run_id})
        known, broken = self._constrain(trial, outcome)
        complete = broken or known
        if broken and not self.sweep.sampler.knows_constraints:
            complete = False
        values = [outcome.metrics.get(name) for name in self.settings.directions]
        measured = [value for value in values if value is not None]
        study = self.shared.study
        if complete and len(measured) == len(values):
            study.tell(trial, measured, skip_if_finished=True)
            return
        if len(values) == 1 and measured:
            trial.report(measured[0], 0)
        study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)

    def _constrain(self, trial: Trial, outcome: Outcome) -> tuple[bool, bool]:
        """Set the constraints that were measured; whether these are all, and whether one is broken."""
        missing, broken = False, False
        if self.settings.transparent:
            if outcome.violation is None:
                if not outcome.stopped:
                    raise TrackerError(
                        f"the trial has no {DROP}, so nobody can tell whether it is transparent; return it, or set "
                        "hydra.sweeper.transparent=false"
                    )
                missing = True
            else:
                trial.set_constraint(DROP, outcome.violation)
                broken = outcome.violation > 0
        for bound in self.settings.bounds:
            value = outcome.metrics.get(bound.name)
            if value is None:
                if not outcome.stopped:
                    raise TrackerError(f"hydra.sweeper.constraints: the trial has no metric {bound.name}")
                missing = True
            else:
                trial.set_constraint(str(bound), excess(bound, value))
                broken = broken or excess(bound, value) > 0
        return not missing, broken

    def _failed(self, trial: Trial, error: Exception) -> None:
        """A trial that raised: recorded with its error."""
        from optuna.trial import TrialState

        from tracker.__main__ import message_of

        reason = message_of(error)
        trial.set_user_attr(ERROR, reason)
        self.shared.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        log.warning("trial %d failed: %s", trial.number, reason)

    def _show(self, trial: Trial, values: Mapping[str, Any], outcome: Outcome) -> None:
        """One line for a trial."""
        words = " ".join(f"{key.removeprefix('codec.')}={_short(value)}" for key, value in values.items())
        metrics = outcome.metrics
        found = []
        if SIZE in metrics:
            rate = f", {metrics['size/rate_percent']:.2f} %" if "size/rate_percent" in metrics else ""
            found.append(f"{metrics[SIZE]:,.0f} bytes{rate}")
        if DROP in metrics:
            found.append(f"drop {shown(metrics[DROP])}")
        if outcome.stopped:
            found.append(f"({outcome.stopped})")
        if not found:
            found = [f"{name} {metrics[name]:.6g}" for name in self.settings.directions if name in metrics]
        log.info("trial %d: %s: %s", trial.number, words, " ".join(found))


def too_many_failed(sweep: Sweep) -> str:
    """What is told where more trials failed than are allowed; else empty."""
    failed, ended, rate = sweep.history.failed, sweep.history.ended, sweep.settings.max_failure_rate
    if len(failed) < min(FAILURES_BEFORE_STOPPING, sweep.most) or len(failed) <= rate * ended:
        return ""
    return (
        f"{len(failed)} of {ended} trials failed, more than hydra.sweeper.max_failure_rate={rate:g} allows; the last: "
        f"{failed[max(failed)]}; once that is mended, hydra.sweeper.study_name=NAME begins a new study"
    )


def tags_of(outcome: Outcome) -> dict[str, str]:
    """A trial's tags, from what it found."""
    tags = {}
    if outcome.sha256:
        tags["tracker.bitstream.sha256"] = outcome.sha256
    if outcome.violation is not None:
        tags["tracker.transparent"] = str(outcome.violation <= 0).lower()
    if outcome.stopped:
        tags["tracker.stopped"] = outcome.stopped
    return tags


def share_threads(workers: int, threads: int | None) -> None:
    """Leave each worker of a machine its share of the CPU, so that parallel trials do not fight for it.

    Args:
        workers: on this machine.
        threads: of each; None: as many as there are, shared out.
    """
    if workers == 1 and threads is None:
        return
    import torch
    from threadpoolctl import threadpool_limits

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = threads or max(1, available // workers)
    for name in THREADS:
        os.environ.setdefault(name, str(count))  # for what is imported later
    threadpool_limits(count)
    torch.set_num_threads(count)


def _short(value: Any) -> str:
    return shown(value) if isinstance(value, float) else str(value)


def shown(value: float) -> str:
    """Four digits; what differs from 0 by rounding only is 0."""
    return f"{0.0 if abs(value) < ROUNDING else value:.4g}"
