"""Whether the process that runs a trial is still there.

On the same machine the system tells. From elsewhere a heartbeat does, for every kind of storage: Optuna's own is for
databases only. It is a number that changes; the observer's clock measures for how long it has not.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

OWNER, BEAT = "tracker:owner", "tracker:beat"
SECONDS_BETWEEN_BEATS = 20.0
BEATS_MISSED = 6  # before a trial counts as abandoned: nncodec keeps Python from running while it codes a tensor


def this_process() -> dict[str, Any]:
    """What identifies this process: machine, number, and when it began, since numbers are used again.

    For people also the SLURM job and its node.
    """
    slurm = {name: os.environ[name] for name in ("SLURM_JOB_ID", "SLURMD_NODENAME") if name in os.environ}
    return {"machine": _machine(), "pid": os.getpid(), "began": _began(os.getpid()), **slurm}


def is_gone(owner: dict[str, Any]) -> bool | None:
    """Whether a process has ended; None where that cannot be told from here."""
    if owner.get("machine") != _machine():
        return None
    return _began(owner["pid"]) != owner["began"]


class Watch:
    """Which running trials have been abandoned."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[Any, float]] = {}

    def abandoned(self, trial: FrozenTrial) -> bool:
        """Whether the process of a running trial has gone, or has given no sign for too long."""
        owner = trial.system_attrs.get(OWNER)
        if owner is not None and (gone := is_gone(owner)) is not None:
            return gone
        beat, now = trial.system_attrs.get(BEAT), time.monotonic()
        last, since = self.seen.setdefault(trial.number, (beat, now))
        if beat != last:
            self.seen[trial.number] = (beat, now)
            return False
        return now - since > SECONDS_BETWEEN_BEATS * BEATS_MISSED


class Heart:
    """Beats for a trial while it runs: ``with Heart(storage, trial_id):``."""

    def __init__(self, storage: BaseStorage, trial_id: int) -> None:
        self.storage, self.trial_id = storage, trial_id
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _beat(self) -> None:
        count = 0
        while not self.done.wait(SECONDS_BETWEEN_BEATS):
            count += 1
            # A storage that is away for a moment, or a trial that another has taken over: the next word tells.
            with contextlib.suppress(Exception):
                self.storage.set_trial_system_attr(self.trial_id, BEAT, count)


def _machine() -> str:
    """The host and its boot, and the namespace in which process numbers count."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _began(pid: int) -> str | None:
    """When a process of this machine began; None where there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None
