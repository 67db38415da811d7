"""Runs and sweeps against a real `mlflow server` that goes away: for a moment, or for good."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from test_interruption import until

pytestmark = [pytest.mark.skipif(os.name != "posix", reason="process groups"), pytest.mark.slow]
PASSWORD, TOKEN = "pa55-of-the-server", "t0ken-of-the-server"
ACCEPTED = (f"Basic {b64encode(f'somebody:{PASSWORD}'.encode()).decode()}", f"Bearer {TOKEN}")
PATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "6", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1"}
CODER = """
import shutil, sys, time
from pathlib import Path
Path(sys.argv[3]).write_text("here")
while not Path(sys.argv[3] + ".go").exists():
    time.sleep(0.05)
shutil.copy(sys.argv[1], sys.argv[2])
"""


class Server:
    """`mlflow server` on the loopback device, which can be stopped and started again."""

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        store = [
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination",
            f"{folder}/artifacts",
        ]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        self.command = [sys.executable, "-m", "mlflow", "server", *store, *where, *words]
        own = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        self.environment = {**own, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **environment}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers some seconds later."""
        nowhere = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(
            self.command, cwd=self.folder, env=self.environment, start_new_session=True, **nowhere
        )

    def await_start(self) -> None:
        until(self.answers, None, 120)

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """Kill it, as a machine that fails would."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
            until(lambda: not self.answers())


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    server.await_start()
    yield server
    server.stop()


@pytest.fixture
def server(one_server: Server) -> Server:
    """A server that runs, whatever the test before has left."""
    if one_server.process is None:
        one_server.start()
    one_server.await_start()
    return one_server


class Command:
    """A command against a server, with an experiment of its own and a coder that waits until it may go on."""

    def __init__(self, folder: Path, server: Server, *words: str, waits: bool = True, **environment: str) -> None:
        self.folder, self.server, self.sign = folder, server, folder / "sign"
        script = folder / "coder.py"
        script.write_text(CODER)
        (folder / "other.go").touch()
        coder = ["+codec=external"] if waits else []
        for part, sign in ({"encode": "sign", "decode": "other"} if waits else {}).items():
            command = f"{sys.executable} {script} {{input}} {{output}} {folder / sign}"
            coder.append(f"codec.external.{part}_command='{command}'")
        self.experiment = f"of-{folder.name}"
        self.words = [*coder, f"tracking.experiment={self.experiment}", *words]
        self.environment = {**os.environ, "MLFLOW_TRACKING_URI": server.uri, **environment}
        self.process = self.start("tracker", *self.words)

    def start(self, module: str, *words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until_encoding(self) -> None:
        until(self.sign.exists, self.process)

    def go_on(self) -> None:
        (self.folder / "sign.go").touch()

    def ended(self, process: subprocess.Popen[str] | None = None) -> tuple[int | None, str, str]:
        process = process or self.process
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def send(self, *words: str) -> tuple[int | None, str, str]:
        return self.ended(self.start("tracker.send", *words))

    def runs(self, kind: str) -> list:
        """The runs of its experiment, read from the server's own database."""
        client = store_of(self.server)
        experiment = client.get_experiment_by_name(self.experiment)
        assert experiment is not None
        return client.search_runs([experiment.experiment_id], f"tags.`tracker.kind` = '{kind}'")

    def files(self, run: object) -> dict[str, bytes]:
        """A run's artifacts, as the server has them on its disk."""
        folder = Path(str(run.info.artifact_uri).replace("mlflow-artifacts:", f"{self.server.folder}/artifacts"))
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def store_of(server: Server) -> MlflowClient:
    """The server's own database, which is there while the server is not."""
    return MlflowClient(f"sqlite:///{server.folder}/mlflow.db")


def same(one: object, other: object) -> None:
    """Two runs of one configuration have logged the same, but for times and identities."""

    def timeless(metrics: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if not name.startswith(("time/", "memory/"))}

    assert timeless(one.data.metrics) == timeless(other.data.metrics)
    assert set(one.data.metrics) == set(other.data.metrics)
    assert set(one.data.params) == set(other.data.params)
    assert set(one.data.tags) == set(other.data.tags)
    assert len(one.outputs.model_outputs) == len(other.outputs.model_outputs) == 1


def test_long_outage_keeps_the_result_and_a_short_one_is_waited_for(tmp_path: Path, server: Server) -> None:
    command = Command(tmp_path, server, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    command.until_encoding()
    server.stop()
    command.go_on()
    status, out, err = command.ended()
    (folder,) = (tmp_path / "mlruns" / "unsent").iterdir()
    where = f"mlruns/unsent/{folder.name}"
    line = f"error: the tracking server was lost; the result is kept in {where}; python -m tracker.send sends it\n"
    assert (status, err) == (1, line)
    assert "transparent" in out and "Traceback" not in out
    status, out, err = command.send()
    assert status == 1 and err.startswith("error: the MLflow server") and err.count("\n") == 1

    server.start()
    server.await_start()
    (run,) = command.runs("compression")
    assert run.info.status == "RUNNING" and run.info.run_id == folder.name
    # It is killed on the way, when the model has been made.
    killed = (
        "import tracker.tracking.operations as o, tracker.send as s, os; o.OPERATIONS['end'] = lambda *_: os._exit(9)"
    )
    process = subprocess.run([sys.executable, "-c", f"{killed}; s.main([])"], cwd=tmp_path, env=command.environment)
    assert process.returncode == 9 and folder.exists()
    assert command.send() == (0, f"run {folder.name}: sent, FINISHED\n", "")
    assert command.send() == (0, "there is nothing to send in mlruns/unsent\n", "")
    assert not list((tmp_path / "mlruns" / "unsent").iterdir())

    # The same again, and this time the server comes back in time.
    (tmp_path / "sign.go").unlink()
    command.sign.unlink()
    other = command.start("tracker", *command.words, **PATIENT)
    until(command.sign.exists, other)
    server.stop()
    server.start()
    command.go_on()
    status, out, err = command.ended(other)
    assert (status, err) == (0, "")
    assert out.count("the tracking server does not answer; trying again for up to 62 s") == 1
    first, second = sorted(command.runs("compression"), key=lambda run: run.info.start_time)
    assert [first.info.status, second.info.status] == ["FINISHED", "FINISHED"]
    same(first, second)
    models = store_of(server).search_logged_models([first.info.experiment_id])
    assert [model.status for model in models] == ["READY", "READY"]
    assert set(command.files(first)) == set(command.files(second))
    assert command.files(first)["bitstream/manifest.json"] == command.files(second)["bitstream/manifest.json"]


def finished(runs: list) -> list[int]:
    """The numbers of the trials whose runs are finished."""
    return sorted(int(run.data.tags["tracker.trial"]) for run in runs if run.info.status == "FINISHED")


def assert_whole(command: Command, trials: int) -> None:
    """Every trial is there once, measured; the best one was measured once more, and the sweep has ended."""
    runs = command.runs("trial")
    assert finished(runs) == sorted(set(finished(runs))) and len(finished(runs)) == trials
    assert {run.info.status for run in runs} <= {"FINISHED", "FAILED"}
    (sweep,) = command.runs("sweep")
    assert sweep.info.status == "FINISHED" and sweep.data.metrics["sweep/trials"] == trials
    (best,) = (run for run in command.runs("compression") if run.info.status == "FINISHED")
    assert best.info.run_id == sweep.data.tags["tracker.best.run_id"]
    assert best.data.tags["tracker.trial"] == sweep.data.tags["tracker.best.trial"]
    assert {"trials.json", "bitstream/manifest.json"} <= set(command.files(sweep))


TRIALS = 16
SWEEP = ("-m", "+codec=nnc", "+sweep=nnc", f"hydra.sweeper.n_trials={TRIALS}", "hydra.sweeper.study_name=remote")


def test_sweep_over_outages(tmp_path: Path, server: Server) -> None:
    command = Command(tmp_path, server, *SWEEP, waits=False, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")

    def until_finished(trials: int, process: subprocess.Popen[str]) -> None:
        known = store_of(server).get_experiment_by_name
        until(lambda: bool(known(command.experiment)) and len(finished(command.runs("trial"))) >= trials, process)

    until_finished(2, command.process)
    server.stop()
    before = finished(command.runs("trial"))
    status, out, err = command.ended()
    assert status == 1 and err.startswith("error: the tracking server was lost (") and err.count("\n") == 1, err
    assert "start the same command again" in err and "Traceback" not in out

    server.start()
    server.await_start()
    again = command.start("tracker", *command.words, **PATIENT)
    until_finished(len(before) + 2, again)
    server.stop()
    server.start()  # in time
    status, out, err = command.ended(again)
    assert (status, err) == (0, "")
    assert "the tracking server does not answer" in out
    assert set(before) <= set(finished(command.runs("trial")))
    assert_whole(command, TRIALS)
    assert not (tmp_path / "mlruns" / "unsent").exists()


class Gate(BaseHTTPRequestHandler):
    """In front of a server, as a reverse proxy is: demands a password or a token, and may drop everything.

    It may also lose the answers to every other call of some, or break them off in the middle, close as it loses one,
    and be busy for some calls.
    """

    behind, closed, busy, closing = "", False, 0, ""
    losing: ClassVar[dict[str, int]] = {}
    breaking: ClassVar[tuple[str, ...]] = ()

    def serve(self) -> None:
        """Answer, or close the connection without a word."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if type(self).closed:
            self.close_connection = True
            return
        if type(self).busy:
            type(self).busy -= 1
            self.answer(503, b"nobody is there")
            return
        if self.headers.get("Authorization") not in ACCEPTED:
            self.answer(401, b"who are you?")
            return
        headers = {name: value for name, value in self.headers.items() if name in ("Content-Type", "Accept")}
        request = urllib.request.Request(self.behind + self.path, body or None, headers, method=self.command)
        try:
            with urllib.request.urlopen(request) as response:
                if self.loses():
                    self.close_connection = True
                    if self.call() in self.breaking:
                        self.answer(response.status, response.read(), whole=False)
                    return
                self.answer(response.status, response.read())
        except urllib.error.HTTPError as error:
            self.answer(error.code, error.read())

    def call(self) -> str:
        """Which of the server's calls this is, such as `runs/create`."""
        return self.path.partition("?")[0].rpartition("/mlflow/")[2]

    def loses(self) -> bool:
        """Whether the answer is lost; the server has done what was asked."""
        call = self.call()
        if call == self.closing:
            type(self).closed = True
            return True
        if self.command != "POST" or call not in self.losing:
            return False
        self.losing[call] += 1
        return self.losing[call] % 2 == 1

    def answer(self, status: int, content: bytes, whole: bool = True) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if whole else content[: len(content) // 2])

    def log_message(self, *words: object) -> None:
        """Nothing."""

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve


@pytest.fixture
def gate(server: Server) -> Iterator[ThreadingHTTPServer]:
    Gate.behind, Gate.closed, Gate.busy, Gate.closing = server.uri, False, 0, ""
    Gate.losing.clear()
    Gate.breaking = ()
    with ThreadingHTTPServer(("127.0.0.1", 0), Gate) as gate:
        threading.Thread(target=gate.serve_forever, daemon=True).start()
        yield gate
        gate.shutdown()


def assert_nowhere(folder: Path) -> None:
    """No file below a folder holds a secret, as it is or as it is sent."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for secret in (PASSWORD, TOKEN, ACCEPTED[0].split()[1]):
            assert secret.encode() not in content, path


def test_password_and_token(tmp_path: Path, server: Server, gate: ThreadingHTTPServer) -> None:
    address = f"http://127.0.0.1:{gate.server_port}"
    wrong = {"MLFLOW_TRACKING_USERNAME": "somebody", "MLFLOW_TRACKING_PASSWORD": "another-word"}
    known = {**wrong, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    once = {"MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    command = Command(tmp_path, server, **once, **known)
    refused = command.ended(command.start("tracker", *command.words, **wrong))
    assert refused[0] == 1 and refused[2].startswith("error: ") and refused[2].count("\n") == 1
    assert "MLFLOW_TRACKING_PASSWORD" in refused[2] and "another-word" not in refused[2]
    command.until_encoding()
    lines = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    assert PASSWORD not in lines
    Gate.closed = True
    command.go_on()
    status, out, err = command.ended()
    assert status == 1 and "python -m tracker.send sends it" in err
    assert PASSWORD not in out + err and "another-word" not in refused[1]
    assert_nowhere(tmp_path)  # what is kept is there
    Gate.closed = False
    token = {"MLFLOW_TRACKING_TOKEN": TOKEN, "MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""}
    status, out, err = command.ended(command.start("tracker.send", **token))
    assert (status, err) == (0, "") and "sent, FINISHED" in out and TOKEN not in out
    (run,) = command.runs("compression")
    assert run.info.status == "FINISHED"
    assert_nowhere(server.folder)  # the database and all artifacts
    assert_nowhere(tmp_path)


KNOWN = {"MLFLOW_TRACKING_USERNAME": "somebody", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
CREATED = ("experiments/create", "runs/create", "logged-models", "registered-models/create", "model-versions/create")


@pytest.mark.parametrize("breaking", [(), CREATED], ids=["lost", "broken off"])
def test_answers_that_are_lost(
    tmp_path: Path, server: Server, gate: ThreadingHTTPServer, breaking: tuple[str, ...]
) -> None:
    address = f"http://127.0.0.1:{gate.server_port}"
    Gate.losing.update(dict.fromkeys(CREATED, 0))
    Gate.breaking = breaking
    name = f"of-{tmp_path.name}"
    words = ("tracking.registered_model=" + name,)
    command = Command(tmp_path, server, *words, MLFLOW_TRACKING_URI=address, **KNOWN, **PATIENT)
    command.until_encoding()
    Gate.busy = 3
    command.go_on()
    status, out, err = command.ended()
    assert (status, err) == (0, ""), err
    assert out.count("the tracking server answers 503; trying again for up to") == 1
    assert all(Gate.losing.values())  # every kind of call has lost an answer
    client = store_of(server)
    experiment = client.get_experiment_by_name(command.experiment).experiment_id
    runs = client.search_runs([experiment])
    kinds = {run.data.tags["tracker.kind"] for run in runs}
    assert len(runs) == len(kinds) and "compression" in kinds  # the anchor's may be another test's
    assert {run.info.status for run in runs} == {"FINISHED"}
    deleted = client.search_runs([experiment], run_view_type=ViewType.DELETED_ONLY)
    assert {run.info.status for run in deleted} == {"FAILED"}
    (model,) = client.search_logged_models([experiment])
    (run,) = command.runs("compression")
    assert model.status == "READY" and [one.model_id for one in run.outputs.model_outputs] == [model.model_id]
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert version.run_id == run.info.run_id


def test_server_that_is_lost_before_a_run_begins(tmp_path: Path, server: Server, gate: ThreadingHTTPServer) -> None:
    Gate.closing = "runs/create"
    once = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{gate.server_port}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    command = Command(tmp_path, server, "+codec=nnc", waits=False, **once, **KNOWN)
    status, out, err = command.ended()
    assert status == 1 and err.startswith("error: the tracking server was lost (") and err.count("\n") == 1, err
    client = store_of(server)
    experiment = client.get_experiment_by_name(command.experiment).experiment_id
    (run,) = client.search_runs([experiment])  # the anchor's, or the next where another test has made that
    (folder,) = (tmp_path / "mlruns" / "unsent").iterdir()
    assert run.info.status == "RUNNING" and "Traceback" not in out
    until(lambda: not watched(folder.name))  # until the watchdog has given up
    Gate.closed, Gate.closing = False, ""
    reason = "marked FAILED: the tracking server was lost as the run began"
    assert command.send() == (0, f"run {folder.name}: {reason}\n", "")
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FAILED" and not list(folder.parent.iterdir())

    Gate.closing = "experiments/get-by-name"
    status, out, err = command.ended(command.start("tracker", *command.words))
    assert status == 1 and err.startswith("error: the tracking server was lost (") and err.count("\n") == 1, err


def watched(name: str) -> bool:
    """Whether a watchdog still waits to mark a run."""
    lines = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    return f"/{name}" in lines
