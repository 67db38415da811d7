"""MLflow's own server on a store, as a process that ends with this one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO

from tracker.errors import TrackerError
from tracker.tracking import store

PATIENCE = 120.0  # seconds until it must answer; it imports for some
GRACE = 10.0  # seconds to end


def free_port(host: str, port: int) -> int:
    """The port, or any free one for 0.

    Raises:
        TrackerError: it is in use, or the host has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as probe:
        # As the server will do: what an earlier one leaves behind for a minute is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise TrackerError(
                f"{host}:{port} cannot be listened on ({reason}); give another by --port or --host"
            ) from error
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def served(uri: str, host: str, port: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a new ``mlflow server`` on a database, and its process, until the block is left.

    Args:
        uri: of the database.
        host: address to listen on.
        port: to listen on; 0 for any.

    Raises:
        TrackerError: it does not start.
    """
    port = free_port(host, port)
    with tempfile.TemporaryFile() as output:
        process = _started(uri, host, port, output)
        try:
            _wait(process, host, port, output)
            shown = f"[{host}]" if ":" in host else host
            yield f"http://{shown}:{port}", process
        finally:
            _end(process)


def _started(uri: str, host: str, port: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    # By the environment, as anybody may read a command line, and the URI of a database may hold a password.
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    environment.pop("MLFLOW_TRACKING_URI", None)
    # Half a dozen processes for jobs of language models' evaluations, of which there are none here.
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    file = store.database_file(uri)
    if file is not None:
        command += ["--artifacts-destination", (file.parent / "artifacts").as_uri()]
    # A group of its own: Ctrl-C comes to this process alone, which then ends all of MLflow's.
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _wait(process: subprocess.Popen[bytes], host: str, port: int, output: IO[bytes]) -> None:
    """Wait until it answers."""
    import requests

    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # all interfaces, this one among them
    address = f"http://{f'[{reached}]' if ':' in reached else reached}:{port}/health"
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise TrackerError(f"mlflow server ended with status {process.returncode}: {_last_line(output)}")
        with contextlib.suppress(requests.RequestException):
            # Not through a proxy, which the environment may name.
            session = requests.Session()
            session.trust_env = False
            if session.get(address, timeout=2).ok:
                return
        time.sleep(0.2)
    raise TrackerError(f"mlflow server does not answer at {address} after {PATIENCE:.0f} s: {_last_line(output)}")


def _last_line(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it with all processes that it began; at once, where a second Ctrl-C asks for it."""
    try:
        _signal(process, signal.SIGTERM)
        process.wait(GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
