"""``python -m tracker``: Hydra composes the configuration, the scenario it names does the work."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from tracker import multirun, signals
from tracker.cache import keep_libraries_tidy
from tracker.errors import TrackerError

log = logging.getLogger("tracker")
VERBOSE = bool(os.environ.get("HYDRA_FULL_ERROR"))
# Config groups of launchers that are packages of their own, with the extra that installs them.
LAUNCHERS = {f"hydra/launcher/{name}": extra for name, extra in (("joblib", "joblib"), ("ray", "ray"))}
LAUNCHERS |= {f"hydra/launcher/submitit_{name}": "slurm" for name in ("slurm", "local")}
ENDED = {True: "; a run that had begun is marked FAILED, start it again", False: " before a run began"}


def config_folder() -> str:
    """conf/, inside the installed package or at the top of the checkout."""
    inside = Path(__file__).parent / "conf"
    return str(inside if inside.is_dir() else Path(__file__).parents[2] / "conf")


@hydra.main(version_base="1.3", config_path=config_folder(), config_name="config")
def job(config: DictConfig) -> Any:
    """One job: a single run, or one of a multirun, in whatever process the launcher put it."""
    started = time.perf_counter()
    signals.install()  # some launchers run jobs in processes of their own
    keep_libraries_tidy()
    hydra_config: Any = HydraConfig.get()
    is_sweep = str(hydra_config.sweeper.get("_target_")).startswith("hydra_plugins.tracker_sweeper.")
    try:
        from tracker.tracking import store

        store.prepare(store.tracking_uri())
        from tracker.component import locate
        from tracker.scenarios.job import read_job

        if is_sweep:
            if hydra_config.mode != RunMode.MULTIRUN:
                raise TrackerError("a sweep needs -m (--multirun): python -m tracker -m ... +sweep=NAME")
            from tracker.sweep.command import work  # this job is a sweep's worker

            return work(hydra_config, Path(hydra_config.runtime.output_dir), started)
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        folder = Path(hydra_config.runtime.output_dir)
        prepared = read_job(plain, list(hydra_config.overrides.task), folder, started)
        return locate(str(plain["scenario"].get("_target_", "")), "scenario._target_")(prepared)
    except Exception as error:
        signals.check()  # an interrupted import fails in ways of its own
        if hydra_config.mode == RunMode.MULTIRUN:
            # Hydra tells only the first failure of a multirun, and only when all jobs are done; a sweep tells all.
            if not is_sweep:
                log.error("failed: %s", message_of(error))
            raise
        raise SystemExit(report(error)) from error


def message_of(error: BaseException) -> str:
    """One line for an exception, without the password that MLFLOW_TRACKING_URI may hold."""
    from tracker.tracking import store

    return store.without_password(_message_of(error), store.tracking_uri())


def _message_of(error: BaseException) -> str:
    if isinstance(error, TrackerError):
        return str(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is missing; set it on the command line, as {error.full_key}=VALUE"
    if isinstance(error, ConfigCompositionException) and isinstance(
        error.__cause__, ConfigKeyError | ConfigAttributeError
    ):
        return _unknown_key(str(error.__cause__.full_key))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        if extra := LAUNCHERS.get(error.missing_cfg_file):
            return f"there is no {error.missing_cfg_file}; pip install 'tracker[{extra}]'"
        there = (
            f"there are {', '.join(sorted(error.options))}" if error.options else "`python -m tracker --help` lists all"
        )
        return f"there is no {error.missing_cfg_file}; {there}"
    if isinstance(error, ValueError) and str(error).startswith("Only one of --"):  # Hydra's check of its own flags
        return f"{error}: leave out all of them but one"
    if isinstance(error, OverrideParseException) and "*" in error.override.partition("=")[0]:
        return (
            f"{error.override}: a key with a star cannot be given on the command line; write it into a file, as "
            "conf/sweep/svd_layers.yaml does, and choose that by +sweep=NAME (and --config-dir)"
        )
    if isinstance(error, OverrideParseException) and "onstraints=" in error.override:
        return (
            f"{error.override}: write bounds as a list with quotes of its own, "
            "'hydra.sweeper.constraints=[\"cost/mac_ratio<=0.6\"]'"
        )
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = error.__cause__
        text = f"{error} ({cause})" if cause is not None and str(cause) not in str(error) else str(error)
        return " ".join(line.strip() for line in text.splitlines() if line.strip())
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}; give another folder, or make space or the permission for this one"
    text = " ".join(str(error).split())[:300]
    if "No space left" in text or "disk is full" in text:  # as safetensors and SQLite tell it
        return f"{text}; make space and run again"
    return f"unexpected {type(error).__name__}: {text} (set HYDRA_FULL_ERROR=1 for the traceback, and please report it)"


def _unknown_key(key: str) -> str:
    """Hydra's own advice, to append with a plus sign, would only be refused one step later."""
    if key.startswith("hydra."):
        return f"{key} is not an option; look at `python -m tracker --cfg hydra` with the same words for those that are"
    stage = key.split(".")[1] if key.count(".") == 1 and key.startswith("codec.") else None
    first = f"add +codec={stage}, or +codec=[...,{stage},...] in a chain; " if stage else ""
    return (
        f"{key} is not an option here; {first}look at `python -m tracker --cfg job` for those that are (a codec's are "
        "there with +codec=NAME; where +codec itself is swept over, ++KEY=VALUE sets it; one that your class has and "
        "your config does not: +KEY=VALUE)"
    )


def report(error: BaseException) -> int:
    """Print an error in one line, with its traceback only where HYDRA_FULL_ERROR asks for it; the exit status."""
    if VERBOSE:
        import traceback

        traceback.print_exception(error)
    print(f"error: {message_of(error)}", file=sys.stderr)
    return 1


def overrides_first(words: Sequence[str]) -> list[str]:
    """A command line with its overrides in one piece, as Hydra's parser wants them: not ``anchor=A -m +codec=B``."""
    from hydra._internal.utils import get_args_parser

    options = get_args_parser()._actions
    valued = {name for action in options if action.nargs is None for name in action.option_strings}
    before = ["", *words]
    overrides = [
        not word.startswith("-") and ("=" in word or word.startswith("~")) and earlier not in valued
        for earlier, word in zip(before, words, strict=False)
    ]
    return [
        *(word for word, one in zip(words, overrides, strict=True) if one),
        *(word for word, one in zip(words, overrides, strict=True) if not one),
    ]


def main() -> int:
    """The command line, with one line for whatever the user can mend; the exit status."""
    signals.received.clear()
    signals.ending.clear()
    signals.install()
    # Importing torch, nncodec, torchmetrics and mlflow makes millions of objects that stay; at Python's default
    # thresholds the garbage collector looks through all of them again and again, a quarter of the start-up time.
    gc.set_threshold(100_000, 50, 100)
    logging.raiseExceptions = False  # a reader that has had enough (`| head`) is no reason for a traceback
    sys.argv[1:] = overrides_first(sys.argv[1:])
    # Hydra then raises instead of printing its own summary of the traceback.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    warnings.filterwarnings("ignore", category=UserWarning, module=r"hydra\._internal")
    try:
        try:
            status = ran()
        except (KeyboardInterrupt, signals.Terminated) as error:
            status = interrupted(error)
    except (KeyboardInterrupt, signals.Terminated) as error:  # an impatient one, before that could be told
        status = interrupted(error)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    if "tracker.tracking.store" in sys.modules:
        sys.modules["tracker.tracking.store"].abandon()
    return status


def interrupted(error: BaseException) -> int:
    """Tell of Ctrl-C or SIGTERM; the exit status."""
    signals.ending.append("begun")
    status, word = signals.STATUS[KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else signals.Terminated]
    print(f"error: {word}{ENDED[bool(signals.begun)]}", file=sys.stderr)
    signals.ending.append("told")
    return status


def ran() -> int:
    """Hydra's part; the exit status."""
    try:
        job()
    except Exception as error:
        status = report(error)
        multirun.draw()  # of the jobs that did not fail
        return status
    return 0


def leave(status: int) -> NoReturn:
    """End the process without taking the interpreter apart.

    With torch, nncodec and mlflow loaded that takes two seconds and only gives memory back, which the system does at
    once. What must happen at exit still happens, in the order of CPython's own Py_FinalizeEx: executors stop and
    threads end, exit handlers run, output is flushed.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
