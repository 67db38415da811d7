"""Sweeps on engines and storages that several machines share. What is not installed or not allowed here is skipped.

SLURM: a cluster that answers, and this folder of pytest's (--basetemp) where all its nodes see it. Ray: in a network
namespace of its own, since it listens on every interface.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import optuna
import pytest
from conftest import Completed, Here, runs

from tracker.errors import TrackerError
from tracker.sweep import alive
from tracker.sweep.storage import Storage
from tracker.sweep.study import INTERRUPTED

pytestmark = pytest.mark.slow
PATIENCE = 600  # seconds, for a busy machine
TRIALS = 12
SLOW = """
import os, time
from pathlib import Path

def run(job):
    import torch
    scenario = job.settings.scenario
    with Path("begun.txt").open("a") as file:
        file.write(f"{os.getpid()} {torch.get_num_threads()} {scenario['a']}\\n")
    time.sleep(scenario["seconds"])
    return {"size/bitstream_bytes": 1000 - scenario["a"], "performance/drop": 0.0}
"""


@pytest.fixture
def slow(ready: Path) -> list[str]:
    """The command of a sweep of 12 trials that take half a second each; what it varies stands on the command line."""
    (ready / "conf" / "scenario").mkdir(parents=True)
    (ready / "conf" / "scenario" / "slow.yaml").write_text("_target_: slow.run\na: 0.0\nseconds: 0.5\n")
    (ready / "slow.py").write_text(SLOW)
    words = ["--config-dir", "conf", "-m", "scenario=slow", "hydra/sweeper=tracker", "hydra.sweeper.study_name=s"]
    words += ["hydra.sweeper.sampler=random", "scenario.a=interval(0,500)", f"hydra.sweeper.n_trials={TRIALS}"]
    return [sys.executable, "-m", "tracker", *words]


def start(command: Sequence[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    environment = {**os.environ, **environment}
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=environment)


def begun(folder: Path) -> list[list[str]]:
    """Process, threads and value of each trial that was begun."""
    file = folder / "begun.txt"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def kill_one(folder: Path, process: subprocess.Popen[str]) -> int:
    """SIGKILL, in the middle of a trial, for the process that began the first one."""
    while len(begun(folder)) < 3 and process.poll() is None:
        time.sleep(0.05)
    assert begun(folder), process.communicate()[1]
    pid = int(begun(folder)[0][0])
    before = sum(int(line[0]) == pid for line in begun(folder))
    while sum(int(line[0]) == pid for line in begun(folder)) == before and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    return pid


def ends_well(process: subprocess.Popen[str], timeout: float = PATIENCE) -> None:
    try:
        _, told = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, told


def trials_in(url: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s", storage=Storage(url).backend).trials


def check_whole(folder: Path, url: str | None = None, killed: bool = False) -> None:
    """Exactly 12 trials are complete, each once, in the study and in MLflow; a killed one was tried again."""
    trials = trials_in(url or f"sqlite:///{folder}/mlruns/optuna.db")
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(complete) == len({trial.params["scenario.a"] for trial in complete}) == TRIALS
    assert all(trial.value == 1000 - trial.params["scenario.a"] for trial in complete)
    rest = [trial for trial in trials if trial.state.name != "COMPLETE"]
    assert all(trial.state.name == "FAIL" and INTERRUPTED in trial.system_attrs for trial in rest)
    assert bool(rest) == killed
    assert len({trial.system_attrs[alive.OWNER]["pid"] for trial in trials}) >= 2  # more than one worked
    finished = [run for run in runs(folder, "trial") if run.info.status == "FINISHED"]
    numbers = Counter(run.data.tags["tracker.trial"] for run in finished)
    assert numbers == Counter(str(trial.number) for trial in complete)
    (parent,) = runs(folder, "sweep")
    assert parent.info.status == "FINISHED"


def check_nnc(folder: Path, done: Completed) -> list[optuna.trial.FrozenTrial]:
    """A whole sweep of NNC: 12 trials by two workers, and the best working point measured on the report split."""
    assert done.returncode == 0, done.stderr
    storage = f"sqlite:///{folder}/mlruns/optuna.db"
    (summary,) = optuna.get_all_study_summaries(storage)
    trials = optuna.load_study(study_name=summary.study_name, storage=storage).trials
    assert len(trials) == TRIALS
    assert all(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials)
    assert len({trial.system_attrs[alive.OWNER]["pid"] for trial in trials}) == 2
    (parent,) = runs(folder, "sweep")
    (final,) = runs(folder, "compression")
    assert final.data.params["task.split"] == "report"
    assert final.data.tags["tracker.bitstream.sha256"] == parent.data.tags["tracker.bitstream.sha256"]
    return trials


# One machine


def test_local_workers_share_trials_and_threads(slow: list[str], ready: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    ends_well(start([*slow, "+cluster=local"], ready))
    check_whole(ready)
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {int(threads) for _, threads, _ in begun(ready)} == {share}


def test_a_killed_local_worker_is_no_hang(slow: list[str], ready: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    process = start([*slow, "+cluster=local", "hydra.sweeper.threads=1"], ready)
    kill_one(ready, process)
    ends_well(process)
    check_whole(ready, killed=True)


# Storages that commands join on


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of an empty database."""
    with database() as (url, _):
        yield url


@contextlib.contextmanager
def database() -> Iterator[tuple[str, Callable[[str], None]]]:
    """An empty database of a PostgreSQL on loopback, which asks for a password: its URL, and what starts and stops."""
    pytest.importorskip("psycopg")
    found = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed: there is no initdb")
    tools = Path(found).resolve().parent
    root = os.geteuid() == 0  # as whom it refuses to run
    if root and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip("there is no user postgres to run PostgreSQL as")
    options = {"user": "postgres", "env": {"PATH": os.environ["PATH"]}} if root else {}
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        (folder / "password").write_text("secret\n")
        if root:
            shutil.chown(folder, "postgres")
            shutil.chown(folder / "password", "postgres")

        def run(tool: str, *words: str) -> None:
            subprocess.run([tools / tool, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL, **options)

        data = str(folder / "data")
        run("initdb", "-D", data, "-E", "UTF8", "-U", "tracker", "-A", "scram-sha-256", f"--pwfile={folder}/password")

        def control(verb: str) -> None:
            where = ("-l", f"{folder}/log", "-o", f"-h 127.0.0.1 -p {port} -k {folder}")
            run("pg_ctl", "-D", data, "-w", *(where if verb == "start" else ("-m", "immediate")), verb)

        control("start")
        try:
            yield f"postgresql://tracker:secret@127.0.0.1:{port}/postgres", control
        finally:
            control("stop")


@pytest.fixture
def storage(request: pytest.FixtureRequest, ready: Path) -> Iterator[str]:
    """A storage by its kind."""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres")
        yield url
        optuna.delete_study(study_name="s", storage=Storage(url).backend)
    elif request.param == "journal":
        yield f"journal://{ready}/study.log"
    else:
        port = free_port()
        serve = (
            "import optuna\n"
            f"storage = optuna.storages.RDBStorage('sqlite:///{ready}/behind.db')\n"
            f"optuna.storages.run_grpc_proxy_server(storage, host='127.0.0.1', port={port})\n"
        )
        server = start([sys.executable, "-W", "ignore", "-c", serve], ready)
        yield f"grpc://127.0.0.1:{port}"
        server.kill()
        server.communicate()


@pytest.mark.parametrize("storage", ["postgresql", "journal", "grpc"], indirect=True)
def test_two_commands_share_a_storage(storage: str, slow: list[str], ready: Path) -> None:
    command = [*slow, f"hydra.sweeper.storage={storage}"]
    for process in [start(command, ready), start(command, ready)]:
        ends_well(process)
    check_whole(ready, storage)
    assert len(begun(ready)) == TRIALS  # none was measured twice


def test_without_slurm_one_line_says_what_to_do(here: Here, ready: Path) -> None:
    done = here("-m", "+codec=nnc", "+sweep=nnc", "+cluster=slurm", "hydra.sweeper.n_jobs=2", PATH=str(ready / "no"))
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: SLURM takes no job here") and "+cluster=local" in line


@pytest.mark.parametrize("storage", ["grpc"], indirect=True)
def test_a_proxy_has_a_lock_of_tickets(storage: str) -> None:
    """Held by one at a time, in the order in which they asked, and freed where its holder was killed."""
    from optuna.trial import TrialState, create_trial

    first = Storage(storage)
    with first.locked("a"):
        pass
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    owner = {**alive.this_process(), "pid": killed.pid, "began": alive._began(killed.pid)}
    study_id = first.backend.get_study_id_from_name("a (lock)")
    first.backend.create_new_trial(study_id, create_trial(state=TrialState.RUNNING, system_attrs={alive.OWNER: owner}))
    inside: list[int] = []
    most = 0

    def enter(number: int) -> None:
        nonlocal most
        storage_of_its_own = Storage(storage)
        for _ in range(5):
            with storage_of_its_own.locked("a"):
                inside.append(number)
                most = max(most, len(inside))
                time.sleep(0.01)
                inside.pop()

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    assert most == 0  # the first ticket's owner lives
    with first.locked("b"):
        killed.kill()
        killed.wait()
        for thread in threads:
            thread.join(60)
    assert most == 1
    states = [trial.state for trial in first.backend.get_all_trials(study_id)]
    assert states == [TrialState.PRUNED] * (1 + 1 + 4 * 5)


@pytest.mark.parametrize("storage", ["postgresql", "journal"], indirect=True)
def test_what_a_killed_command_had_begun_another_does(storage: str, slow: list[str], ready: Path) -> None:
    command = [*slow, f"hydra.sweeper.storage={storage}"]
    processes = [start(command, ready), start(command, ready)]
    killed = kill_one(ready, processes[0])
    for process in processes:
        if process.pid == killed:
            process.communicate(timeout=60)
        else:
            ends_well(process)
    check_whole(ready, storage, killed=True)


def test_new_servers_are_set_up_once(postgres: str) -> None:
    """Commands that start together on an empty database do not hinder each other."""
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty")
    url = postgres.removesuffix("postgres") + "empty"
    opened = f"import sys; from tracker.sweep.storage import Storage; sys.stdin.read(1); Storage({url!r})"
    processes = [
        subprocess.Popen([sys.executable, "-c", opened], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    time.sleep(2)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    for process in processes:
        _, told = process.communicate(timeout=60)
        assert process.returncode == 0, told


def test_locks_of_a_server_keep_others_out(postgres: str) -> None:
    first, second = Storage(postgres), Storage(postgres)
    entered = threading.Event()

    def enter() -> None:
        with second.locked("a"):
            entered.set()

    with first.locked("a"):
        thread = threading.Thread(target=enter)
        thread.start()
        with second.locked("b"):
            assert not entered.wait(0.5)
    thread.join(10)
    assert entered.is_set()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("secret@", "wrong@"), "password authentication failed"),
        (("/postgres", "/nothere"), 'database "nothere" does not exist'),
        (("postgresql://", "postgresql+nothing://"), "postgresql.nothing"),
    ],
)
def test_what_is_wrong_with_a_server_is_one_line(change: tuple[str, str], told: str, postgres: str) -> None:
    with pytest.raises(TrackerError) as caught:
        Storage(postgres.replace(*change))
    assert told in str(caught.value)
    assert "secret" not in str(caught.value) and "wrong" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("grpc://127.0.0.1:1", "does not answer"),
        ("grpc://nowhere", "not complete"),
        ("journal:///proc/x/y", "cannot be opened"),
        ("sqlite:////proc/x.db", "cannot be opened"),
        ("postgresql+nodriver://a:b@127.0.0.1/x", "cannot be reached"),
    ],
)
def test_storages_that_cannot_be_opened(url: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracker.sweep.storage.SECONDS_TO_CONNECT", 1)
    with pytest.raises(TrackerError, match=told) as caught:
        Storage(url)
    assert "\n" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(TrackerError, match=r"pip install 'tracker\[mysql\]'"):
        Storage("mysql://a:b@127.0.0.1/x")


# SLURM


@pytest.fixture
def slurm() -> int:
    """CPUs of a node, where at least two are idle."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        pytest.skip("SLURM is not installed: there is no sbatch")
    asked = ["sinfo", "--noheader", "--Node", "--format=%T %c"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
    idle = [line.split() for line in answer.stdout.splitlines() if line.startswith("idle ")]
    if answer.returncode or len(idle) < 2:
        pytest.skip("no SLURM with two idle nodes answers")
    return min(int(count) for _, count in idle)


@pytest.fixture
def accounting(slurm: int) -> None:
    if shutil.which("sacct") is None or subprocess.run(["sacct", "-n"], capture_output=True, check=False).returncode:
        pytest.skip("SLURM keeps no accounts (sacct fails), without which submitit waits for a killed job for ever")


def test_slurm(slurm: int, tracker, ready: Path) -> None:
    words = ["-m", "+codec=nnc", "+sweep=nnc", "+cluster=slurm", f"hydra.launcher.cpus_per_task={slurm}"]
    done = tracker(*words, f"hydra.sweeper.n_trials={TRIALS}", cwd=ready)
    trials = check_nnc(ready, done)
    owners = [trial.system_attrs[alive.OWNER] for trial in trials]
    assert len({owner["SLURM_JOB_ID"] for owner in owners}) == 2
    assert len({owner["SLURMD_NODENAME"] for owner in owners}) == 2


@pytest.mark.usefixtures("accounting")
def test_a_killed_slurm_job_is_no_hang(slurm: int, slow: list[str], ready: Path) -> None:
    process = start([*slow, "+cluster=slurm", f"hydra.launcher.cpus_per_task={slurm}"], ready)
    kill_one(ready, process)
    ends_well(process)
    check_whole(ready, killed=True)


def test_slurm_jobs_join_by_hand(slurm: int, slow: list[str], ready: Path) -> None:
    script = Path(__file__).parents[1] / "examples" / "sweep_slurm.sh"
    words = slow[slow.index("-m", 2) + 1 :]  # after `python -m tracker --config-dir conf -m`
    submit = ["sbatch", "--wait", "--array=1-2", f"--cpus-per-task={slurm}", str(script), "--config-dir", "conf"]
    process = start([*submit, *words], ready, PYTHON=sys.executable)
    _, told = process.communicate(timeout=PATIENCE)
    logs = "".join(path.read_text() for path in ready.glob("tracker-*.log"))
    assert process.returncode == 0, told + logs
    check_whole(ready)
    assert {int(threads) for _, threads, _ in begun(ready)} == {slurm}


# Ray


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[list[str]]:
    """Words before a command that Ray is to run in: a network namespace of its own, and short paths."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    alone = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    try:
        allowed = subprocess.run([*alone, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        allowed = False
    if not allowed:
        pytest.skip("a network namespace of its own (unshare -n, ip) is not allowed here")
    with tempfile.TemporaryDirectory(prefix="ray") as home:
        yield ["env", f"HOME={home}", f"RAY_TMPDIR={home}", *alone]


def test_ray(apart: list[str], ready: Path) -> None:
    words = ["-m", "+codec=nnc", "+sweep=nnc", "+cluster=ray", f"hydra.sweeper.n_trials={TRIALS}"]
    process = start([*apart, sys.executable, "-m", "tracker", *words], ready)
    out, told = process.communicate(timeout=PATIENCE)
    check_nnc(ready, Completed(words, process.returncode, out, told))


def test_a_killed_ray_worker_is_no_hang(apart: list[str], slow: list[str], ready: Path) -> None:
    process = start([*apart, *slow, "+cluster=ray"], ready)
    kill_one(ready, process)
    ends_well(process)
    check_whole(ready, killed=True)
