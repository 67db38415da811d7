"""What all tests share: a cache of the session's own, and the command line as a user runs it."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported, here and by the commands that tests start: threads that fight for the same cores wait
    # for each other in loops, which makes everything several times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# What Numba compiles takes seconds, and is the same for all workers and for all commands that tests start.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"tracker-tests-numba-{os.getuid()}"))

Completed = subprocess.CompletedProcess[str]
Here = Callable[..., Completed]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing of the user's own cache is used or changed; the digits anchor is trained once per worker."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["TRACKER_CACHE"] = str(folder)
    for name in ("MLFLOW_TRACKING_URI", "HYDRA_FULL_ERROR", "TRACKER_DATA"):
        os.environ.pop(name, None)
    return folder


@pytest.fixture(autouse=True)
def store_of_its_own() -> Iterator[None]:
    """Whoever connects to a store in a test's own process sets this variable for all that come after."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(autouse=True)
def modules_of_its_own(tmp_path: Path) -> Iterator[None]:
    """Modules that a test wrote and imported are forgotten: the next test's may have the same name."""
    yield
    written = f"{tmp_path}{os.sep}"
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(written):
            del sys.modules[name]


@pytest.fixture(scope="session")
def made_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables and nothing in them, to copy: making the tables takes seconds each time."""
    from tracker.tracking import store

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    kept = os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        store.connect(f"sqlite:///{path}")
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if kept:
            os.environ["MLFLOW_TRACKING_URI"] = kept
    return path


@pytest.fixture
def ready(made_store: Path, tmp_path: Path) -> Path:
    """tmp_path, with an empty store in mlruns/ already."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy(made_store, tmp_path / "mlruns" / "mlflow.db")
    return tmp_path


@pytest.fixture
def tracker(tmp_path: Path) -> Callable[..., Completed]:
    """`python -m tracker WORDS` in an empty folder (tmp_path), or in `cwd`."""

    def run(*words: str, cwd: Path = tmp_path, module: str = "tracker", timeout: float = 300, **environment: str):
        return subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def here(ready: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    """`python -m tracker WORDS` in tmp_path, without the seconds that a new process takes to import everything."""
    from tracker import __main__ as command
    from tracker import signals

    monkeypatch.chdir(ready)
    monkeypatch.syspath_prepend(str(ready))  # as `python -m` does
    monkeypatch.setattr(signals, "install", lambda: None)  # pytest keeps its own Ctrl-C
    if "absl.logging" in sys.modules:  # its handler would close what was standard error when TensorFlow was imported
        sys.modules["absl.logging"].get_absl_handler().python_handler.stream = sys.__stderr__

    def run(*words: str, **environment: str) -> Completed:
        # Absolute: MLflow keeps one connection for each URI, whatever the current folder is by then.
        environment.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{ready}/mlruns/mlflow.db")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        if "PYTHONPATH" in environment:
            monkeypatch.syspath_prepend(environment["PYTHONPATH"])
        monkeypatch.setattr(sys, "argv", ["tracker", *words])
        importlib.invalidate_caches()  # the test may just have written a module
        kept = dict(os.environ)
        capfd.readouterr()
        try:
            status = command.main()
        finally:
            os.environ.clear()
            os.environ.update(kept)
        told = capfd.readouterr()
        return Completed(list(words), status, told.out, told.err)

    return run


def runs(folder: Path, kind: str | None = None) -> list:
    """All runs in the default store below a folder, oldest first."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    wanted = f"tags.`tracker.kind` = '{kind}'" if kind else ""
    return client.search_runs(experiments, wanted, order_by=["attributes.start_time ASC"])


def one_line(done: Completed, told: str) -> None:
    """A user's mistake is told in one line, with a status that says so."""
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert told in done.stderr
