"""A killed run shows as failed: a small process that outlives the run's own and marks it."""

from __future__ import annotations

import os
import subprocess
import sys


class Watchdog:
    """Waits in a shell (a few hundred KiB) for the end of this process.

    It reads a pipe that only this process can write to. A word on it means that all went well; its end without one
    means that the process is gone, and then the shell starts Python to mark the run.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        if os.name != "posix":
            return
        mark = 'read -r word || exec "$0" -m tracker.tracking.watchdog "$1"'
        # The URI goes through the environment: a command line can be read by every user of the machine.
        environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", mark, sys.executable, run_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )

    def stop(self) -> None:
        """The run has ended, and the store knows."""
        if self.process is None or self.process.stdin is None:
            return
        try:
            self.process.stdin.write(b"done\n")
            self.process.stdin.close()
        except OSError:
            pass  # the shell is gone already
        self.process.wait()

    def leave(self) -> None:
        """The run has ended, and the store could not be told: the watchdog tries once more, by itself."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()


def mark_failed(uri: str, run_id: str) -> None:
    """Mark a run FAILED if it still looks as if it were running."""
    from mlflow import MlflowClient

    from tracker.tracking.run import discard

    client = MlflowClient(uri)
    run = client.get_run(run_id)
    if run.info.status == "RUNNING":
        discard(client, run)
        if "tracker.error" not in run.data.tags:
            client.set_tag(run_id, "tracker.error", "killed: the process ended without a word")
        client.set_terminated(run_id, "FAILED")


if __name__ == "__main__":
    mark_failed(os.environ["MLFLOW_TRACKING_URI"], sys.argv[1])
