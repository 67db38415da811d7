"""``python -m tracker -m ... +sweep=NAME``: what the command does, from top to bottom."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from tracker.errors import TrackerError
from tracker.sweep.finish import finish
from tracker.sweep.parent import SweepRun
from tracker.sweep.sweep import Sweep
from tracker.sweep.worker import Worker, share_threads, too_many_failed
from tracker.tracking import store
from tracker.tracking.outage import guarded

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher

log = logging.getLogger("tracker")
SUBMITTING = ("FailedJobError", "srun")  # submitit's words where SLURM takes no job
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
prepared: list[Sweep] = []  # for the worker in this process, so that it need not do everything again


def run_sweep(config: DictConfig, launcher: Launcher) -> dict[str, Any]:
    """Search: open the study, start workers, and log the best working point once all trials are done.

    Args:
        config: the multirun's, with its node ``hydra``.
        launcher: starts the workers: in this process, in others, or on a cluster.

    Raises:
        TrackerError: it cannot work, or too many trials failed.
    """
    started = time.perf_counter()
    store.prepare(store.tracking_uri())
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")
    with tempfile.TemporaryDirectory(prefix="sweep-", dir=folder) as scratch:
        sweep = Sweep(config.hydra, Path(scratch), started)
        here = config.hydra.launcher._target_ == BASIC
        if here and sweep.settings.n_jobs > 1:
            raise TrackerError(
                f"hydra.sweeper.n_jobs={sweep.settings.n_jobs} needs a launcher that runs jobs side by side: add "
                "+cluster=local (or slurm, ray)"
            )
        with SweepRun(sweep) as run:
            words = [*sweep.fixed, *([] if here else varied(sweep, config.hydra.overrides.task))]
            points = len(sweep.planner.plan or ())
            if points > sweep.most:
                log.info(
                    "%d of the space's %d points are tried; a larger hydra.sweeper.n_trials tries all",
                    sweep.most,
                    points,
                )
            reason = launch(sweep, launcher, words, here)
            if not reason and 0 < points < sweep.settings.n_trials:
                reason = f"all {points} points of the space were tried"
            with guarded(run.uri):
                found = finish(sweep, run, reason, Path(scratch))
            if problem := too_many_failed(sweep):
                raise TrackerError(problem)
            return found


def launch(sweep: Sweep, launcher: Launcher, words: Sequence[str], here: bool) -> str:
    """Start workers until no trial is left, again where some of them were killed.

    Args:
        sweep: set up.
        launcher: Hydra's.
        words: overrides of each worker.
        here: whether the only worker is this process.

    Returns:
        Why they ended early, if they did.
    """
    if sweep.shared.all_done(sweep.most):
        log.info(
            "nothing to do: the study has its %d trials (n_trials=%d): a larger n_trials goes on with it, "
            "hydra.sweeper.study_name=NAME begins another",
            len(sweep.shared.finished()),
            sweep.settings.n_trials,
        )
    before, number = -1, 0
    while True:
        ended = len(sweep.shared.finished())
        if sweep.shared.all_done(sweep.most):
            return ""
        problems, reason = _launched(sweep, launcher, words, here, number)
        number += sweep.settings.n_jobs
        done = bool(reason) or sweep.shared.all_done(sweep.most)
        fatal = not done and bool(problems) and (isinstance(problems[0], TrackerError) or ended == before)
        for problem in problems[fatal:]:
            if str(problem) != too_many_failed(sweep):  # which is told at the end
                log.warning("a worker ended: %s", " ".join(str(problem).split())[:300] or type(problem).__name__)
        if done:
            return reason
        if fatal:
            raise _told(problems[0], sweep)
        before = ended


def _launched(
    sweep: Sweep, launcher: Launcher, words: Sequence[str], here: bool, number: int
) -> tuple[list[Exception], str]:
    """One batch of workers: what went wrong with some, and why they ended early."""
    from hydra.core.utils import JobStatus

    if here:
        prepared.append(sweep)
    problems: list[Exception] = []
    reason = ""
    try:
        for job in launcher.launch([list(words)] * sweep.settings.n_jobs, initial_job_idx=number):
            if job.status == JobStatus.FAILED:
                problems.append(job._return_value)  # the property also prints
            else:
                reason = reason or job.return_value
    except TrackerError:
        raise
    except Exception as error:  # a job that was killed, as each launcher tells it
        if any(word in f"{type(error).__name__}: {error}" for word in SUBMITTING):
            raise TrackerError(
                f"SLURM takes no job here ({' '.join(str(error).split())[:200]}); see whether `sinfo` lists the "
                "partition, or let +cluster=local run the workers on this machine"
            ) from error
        problems.append(error)
    finally:
        prepared.clear()
    return problems, reason


def _told(problem: Exception, sweep: Sweep) -> Exception:
    """An error of a storage that went away, in words of this program; any other as it is."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import OperationalError

    if not isinstance(problem, StorageInternalError | OperationalError):
        return problem
    reason = " ".join(str(problem.__cause__ or problem).split())[:200]
    return TrackerError(
        f"hydra.sweeper.storage={sweep.shared.storage.shown} was lost ({reason}); the same command goes on with the "
        "study once it answers again"
    )


def varied(sweep: Sweep, overrides: Sequence[str]) -> list[str]:
    """What the command line varies, as a word that a launcher hands on: it takes no word in sweep syntax for a job."""
    from hydra.core.override_parser.types import Override, Quote, QuotedString

    spaces: dict[str, Any] = {}
    for key, _, value in (word.partition("=") for word in overrides if word not in sweep.fixed):
        space = QuotedString(value, Quote.single)
        spaces[key] = {"space": space} if isinstance(sweep.settings.params.get(key), Mapping) else space
    return [f"++hydra.sweeper.params={Override._get_value_element_as_str(spaces)}"] if spaces else []


def work(hydra: DictConfig, folder: Path, started: float) -> str:
    """A worker's job, in whatever process the launcher put it."""
    # Before anything is measured; the command that started this worker has checked both.
    share_threads(int(hydra.sweeper.n_jobs), hydra.sweeper.threads)
    sweep = prepared[0] if prepared else Sweep(hydra, folder, started)
    return Worker(sweep).work()
