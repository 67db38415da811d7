"""The MLflow tracking store: where it is, and that it answers before any work starts."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tracker import signals
from tracker.errors import TrackerError
from tracker.tracking import outage, sqlite
from tracker.ui import views

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_URI = "sqlite:///mlruns/mlflow.db"
SQLITE = "sqlite:///"
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
DATABASES = ("postgresql", "mysql", "mssql")  # servers that MLflow reaches through SQLAlchemy


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI`` if set, else SQLite under ``mlruns/`` of the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def without_secrets(uri: str) -> str:
    """A URI as it may be shown: no user, no password, no query."""
    scheme, separator, rest = uri.split("?")[0].partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{separator}{place.rpartition('@')[2]}{slash}{path}"


def without_password(text: str, uri: str) -> str:
    """A message, in which whatever MLflow tells of the URI it asked may hold the password; nor any other secret."""
    place = uri.partition("://")[2].partition("/")[0]
    user, at, _ = place.rpartition("@")
    text = text.replace(f"{user}{at}", "") if at else text
    for secret in filter(None, map(os.environ.get, SECRETS)):
        text = text.replace(secret, "***")
    return text


def database_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for every other store."""
    return Path(uri.removeprefix(SQLITE).split("?")[0]).absolute() if uri.startswith(SQLITE) else None


preparing = signals.helpers
connected: set[str] = set()  # servers that have answered this process


def prepare(uri: str) -> None:
    """Begin to set up a new SQLite store in another process.

    MLflow takes seconds to make its tables, and so does this process to import torch and nncodec: side by side they
    cost little. The store gets its name only when `connect` asks for it: a command that is refused leaves none.
    """
    if outage.is_server(uri) and uri not in connected:
        _check_server(uri)
    file = database_file(uri)
    if file is None or file.exists() or preparing:
        return
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-m", "tracker.tracking.store"]
    preparing.append(
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    )


def abandon() -> None:
    """End what `prepare` began and nobody waits for any more: a store must not appear after the command has ended."""
    while preparing:
        process = preparing.pop()
        process.terminate()
        process.communicate()


def _asked_for() -> bool:
    """Wait, as the process that `prepare` began, until the store is wanted; not if the other process has ended."""
    return bool(sys.stdin.readline())


def connect(uri: str, wanted: Callable[[], bool] = lambda: True) -> MlflowClient:
    """A client for a store that is there.

    Args:
        uri: an MLflow tracking URI; a new SQLite file is set up, by one process at a time.
        wanted: whether a new SQLite file is to be kept, asked when it is whole; if not, this process ends.

    Raises:
        TrackerError: the server does not answer, or the store cannot be opened.
    """
    while preparing:
        preparing.pop().communicate(b"wanted\n")  # what went wrong there goes wrong below as well, and is told
    if outage.is_server(uri):
        outage.mend_requests()
        if uri not in connected:  # one that did answer is waited for
            _check_server(uri)
    file = database_file(uri)
    if file is not None:
        _check_folder(file.parent)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if outage.is_server(uri):
        for way in ("UPLOAD", "DOWNLOAD"):  # all goes through the server, as only that may reach the storage behind it
            os.environ.setdefault(f"MLFLOW_ENABLE_PROXY_MULTIPART_{way}", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # without git there is no commit to tag a run with, no more
    # MLflow would print a server's URL with its password; the summary tells where to look.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    # An anchor's URI (runs:/, models:/) and artifact stores resolve against the same store as the client.
    os.environ["MLFLOW_TRACKING_URI"] = uri
    import mlflow
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "botocore", "boto3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what it tells is raised as well
    sqlite.quick_commits()
    try:
        mlflow.set_tracking_uri(uri)
        _check_database(uri)
        if file is None:
            client = MlflowClient(uri)
            with outage.at_once() if outage.is_server(uri) and uri not in connected else contextlib.nullcontext():
                client.search_experiments(max_results=1)
            connected.add(uri)
            return client
        from filelock import FileLock

        # MLflow creates and migrates tables when it opens a database; two processes doing so at once fail.
        with FileLock(file.with_suffix(".lock")):
            if not file.exists():
                _create(file, wanted)
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
        return client
    except Exception as error:  # every store has its own exceptions
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = reason.replace(
            "disk I/O error", "disk I/O error, as when the disk is full"
        )  # SQLite's log has no room
        advice = "set MLFLOW_TRACKING_URI to a server's address, or leave it out for a file below mlruns/"
        if outage.is_server(uri) and (answer := outage.why(error)):
            reason, advice = answer, "what it is made of may be down; try again later"
            if outage.denied(answer):
                advice = outage.SIGN_IN
        reason = without_password(reason, uri)[:200]
        raise TrackerError(f"the MLflow store {without_secrets(uri)} cannot be opened ({reason}); {advice}") from error


def _check_database(uri: str) -> None:
    """Open a database once: MLflow would try for 100 seconds before it tells what is wrong."""
    file = database_file(uri)
    if file is not None and not file.exists():
        return
    if file is None and not uri.startswith(DATABASES):
        return
    from sqlalchemy import create_engine, inspect

    engine = create_engine(uri)
    try:
        inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _create(file: Path, wanted: Callable[[], bool]) -> None:
    """A new SQLite store, under its name only when it is whole: half of MLflow's tables could never be opened again."""
    from mlflow import MlflowClient

    partial = file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        client = MlflowClient(f"{SQLITE}{partial}")
        client.search_experiments(max_results=1)
        client._tracking_client.store._dispose_engine()
        sqlite.write_ahead(partial)
        if not wanted():
            sys.exit(1)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """The experiment's id; it is made where it is missing, and brought back where it was deleted.

    The artifacts of a SQLite store lie beside the database, in ``artifacts/``.

    Raises:
        ServerLost: the server does not answer any more, or the user may not write.
    """
    from mlflow.exceptions import MlflowException

    with outage.guarded(uri):
        found = client.get_experiment_by_name(name)
        if found is None:
            file = database_file(uri)
            location = (file.parent / "artifacts").as_uri() if file else None
            try:
                # The UI then opens the experiment with its runs and charts, not with the traces of a language model.
                kind = {"mlflow.experimentKind": "custom_model_development"}
                return client.create_experiment(name, artifact_location=location, tags=kind | views.tags())
            except MlflowException as error:
                if outage.is_server(uri) and outage.why(error):
                    raise
                found = client.get_experiment_by_name(name)  # another process was faster
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return found.experiment_id


def _check_server(uri: str) -> None:
    """Ask once with a short time limit; MLflow itself would retry for minutes."""
    import requests

    try:
        status = requests.get(uri, timeout=10, allow_redirects=False).status_code
        reason = str(status) if status in outage.BUSY else ""  # of a reverse proxy
    except requests.RequestException as error:
        reason = type(error).__name__
    if reason:
        raise TrackerError(
            f"the MLflow server {without_secrets(uri)} does not answer ({reason}); start it, or set MLFLOW_TRACKING_URI"
        )


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackerError(f"the tracking folder {folder} cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise TrackerError(f"the tracking folder {folder} cannot be written to")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # by an exception, so that nothing is left behind
    connect(tracking_uri(), _asked_for)
