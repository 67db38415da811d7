"""A killed run shows as failed: a small process that outlives the run's own and marks it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time

RESUMED = "tracker.resumed"  # when a later command took the run up, in seconds since 1970
# Keeps the runs that have begun and not ended. "failed" means that the store could not be told: one more try, now.
SCRIPT = """
open=
while read -r verb run; do
    rest=
    for other in $open; do [ "$other" = "$run" ] || rest="$rest $other"; done
    open=$rest
    case $verb in
        begun) open="$open $run" ;;
        failed) "$0" -m tracker.tracking.watchdog "$run" & ;;
    esac
done
[ -z "$open" ] || exec "$0" -m tracker.tracking.watchdog $open
"""


class Watchdog:
    """Waits in a shell (a few hundred KiB) for the end of this process, and then marks the runs that were open.

    It reads a pipe that only this process can write to. The end of the pipe means that the process is gone, and then
    the shell starts Python to mark the runs that have begun and not ended.
    """

    def __init__(self, uri: str) -> None:
        """Start it, for the runs of this process in one store."""
        # The URI goes through the environment: a command line can be read by every user of the machine.
        environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT, sys.executable],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )

    def tell(self, verb: str, run_id: str) -> bool:
        """Say what has become of a run: ``begun``, ``ended`` or ``failed``; whether it was heard."""
        pipe = self.process.stdin
        try:
            if pipe is not None:
                pipe.write(f"{verb} {run_id}\n".encode())
                pipe.flush()
        except OSError:  # the shell is gone
            return False
        return True


def tell(uri: str, verb: str, run_id: str) -> None:
    """Say to this process' watchdog what has become of a run; the first word starts it.

    Args:
        uri: of the tracking store.
        verb: ``begun``, ``ended``, or ``failed`` where the store could not be told.
        run_id: of the run, as for `mark_failed`.
    """
    if os.name != "posix":
        return
    key = (os.getpid(), uri)  # a process that was forked needs one of its own
    if key not in running or not running[key].tell(verb, run_id):
        running[key] = Watchdog(uri)
        running[key].tell(verb, run_id)


running: dict[tuple[int, str], Watchdog] = {}


def mark_failed(uri: str, run_id: str, before: float = math.inf) -> None:
    """Mark a run FAILED if it still looks as if it were running.

    Args:
        uri: of the tracking store.
        run_id: of the run; EXPERIMENT/WORD, as `creating` has it, for one whose id was never heard.
        before: when its process ended; a server may answer much later, when another one has taken the run up.
    """
    from mlflow import MlflowClient

    from tracker.tracking.creating import NEVER_BEGAN, forget, made
    from tracker.tracking.discard import discard

    client = MlflowClient(uri)
    experiment, _, name = run_id.rpartition("/")
    for run in made(client, experiment, name) if experiment else [client.get_run(name)]:
        if run.info.status == "RUNNING" and float(run.data.tags.get(RESUMED, 0)) < before:
            discard(client, run)
            if "tracker.error" not in run.data.tags:
                reason = NEVER_BEGAN if experiment else "killed: the process ended without a word"
                client.set_tag(run.info.run_id, "tracker.error", reason)
            client.set_terminated(run.info.run_id, "FAILED")
    forget(name)


if __name__ == "__main__":
    now = time.time()
    for run_id in sys.argv[1:]:
        mark_failed(os.environ["MLFLOW_TRACKING_URI"], run_id, now)
