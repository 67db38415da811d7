"""Sweeps that are killed, joined and taken up again: nothing is lost, nothing counted twice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from conftest import runs

from tracker.signals import Terminated
from tracker.sweep import alive
from tracker.sweep.storage import Storage
from tracker.sweep.study import ERROR, INTERRUPTED, MOST_RETRIES, SharedStudy

SLOW = """
import os, signal, time
from pathlib import Path

def run(job):
    time.sleep(0.1)
    scenario = job.settings.scenario
    if scenario["deadly"] == scenario["a"]:
        os.kill(os.getpid(), signal.SIGKILL)
    with Path("measured.txt").open("a") as file:
        file.write(f"{scenario['a']}\\n")
    return {"size/bitstream_bytes": 1000 - scenario["a"], "performance/drop": 0.0}
"""
STUDY = "hydra.sweeper.study_name=s"


@pytest.fixture
def slow(ready: Path) -> list[str]:
    """The command of a sweep of 30 trials that take a tenth of a second each."""
    (ready / "conf" / "scenario").mkdir(parents=True)
    (ready / "conf" / "scenario" / "slow.yaml").write_text("_target_: slow.run\na: 0.0\ndeadly: -1\n")
    (ready / "slow.py").write_text(SLOW)
    words = ["--config-dir", "conf", "-m", "scenario=slow", "hydra/sweeper=tracker", STUDY, "hydra.sweeper.n_trials=30"]
    return [sys.executable, "-m", "tracker", *words, "hydra.sweeper.sampler=random", "scenario.a=interval(0,500)"]


def start(command: list[str], folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def study_in(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/mlruns/optuna.db")


def trials_begun(folder: Path) -> int:
    """How many trials there are, by a look that makes no database where there is none yet."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{folder}/mlruns/optuna.db?mode=ro", uri=True)) as connection:
            (count,) = connection.execute("SELECT count(*) FROM trials").fetchone()
    except sqlite3.Error:
        return 0
    return int(count)


def check_whole(folder: Path, count: int) -> None:
    """The study and MLflow both have `count` finished trials, each once, with what it measured."""
    trials = study_in(folder).trials
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(complete) == count
    rest = [trial for trial in trials if trial.state.name != "COMPLETE"]
    assert all(trial.state.name == "FAIL" and INTERRUPTED in trial.system_attrs for trial in rest)
    for trial in complete:
        assert trial.value == 1000 - trial.params["scenario.a"]
    finished = [run for run in runs(folder, "trial") if run.info.status == "FINISHED"]
    numbers = Counter(run.data.tags["tracker.trial"] for run in finished)
    assert numbers == Counter(str(trial.number) for trial in complete)
    assert {run.info.status for run in runs(folder, "trial")} <= {"FINISHED", "FAILED"}
    (parent,) = runs(folder, "sweep")
    assert parent.info.status == "FINISHED"


def test_killed_at_random_moments(slow: list[str], ready: Path) -> None:
    generator = random.Random(0)
    for _ in range(4):
        before = trials_begun(ready)
        process = start(slow, ready)
        while trials_begun(ready) == before and process.poll() is None:
            time.sleep(0.1)
        time.sleep(generator.uniform(0, 1))
        process.kill()
        process.communicate()
    process = start(slow, ready)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    check_whole(ready, 30)
    # What the random sampler proposed is what it proposes to a sweep that nobody disturbs.
    values = [trial.params["scenario.a"] for trial in study_in(ready).trials if trial.state.name == "COMPLETE"]
    assert len(set(values)) == 30


def test_two_commands_share_a_study(slow: list[str], ready: Path) -> None:
    processes = [start(slow, ready), start(slow, ready)]
    for process in processes:
        _, told = process.communicate(timeout=180)
        assert process.returncode == 0, told
    check_whole(ready, 30)
    owners = {trial.system_attrs[alive.OWNER]["pid"] for trial in study_in(ready).trials}
    assert owners == {process.pid for process in processes}
    measured = (ready / "measured.txt").read_text().split()
    assert len(measured) == len(set(measured)) == 30


def test_a_terminated_sweep_gives_its_trial_back(slow: list[str], ready: Path) -> None:
    process = start(slow, ready)
    while trials_begun(ready) < 3 and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143
    assert told.strip().splitlines()[-1].startswith("error: terminated")
    trials = study_in(ready).trials
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "FAIL", "WAITING"}
    assert runs(ready, "sweep")[0].info.status == "FAILED"


def test_a_trial_that_kills_its_worker_fails_in_the_end(slow: list[str], ready: Path) -> None:
    """Joined workers of one machine: a launcher that loses one starts it again."""
    command = [*slow[:-1], "scenario.a=choice(1,2,3)", "scenario.deadly=2", "hydra.sweeper.max_failure_rate=0.5"]
    for _ in range(MOST_RETRIES + 2):
        process = start(command, ready)
        process.communicate(timeout=120)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert process.returncode == 0
    trials = study_in(ready).trials
    failed = [trial for trial in trials if trial.state.name == "FAIL" and INTERRUPTED not in trial.system_attrs]
    assert [trial.params["scenario.a"] for trial in failed] == [2]
    assert "killed" in failed[0].user_attrs[ERROR]
    assert sum(trial.state.name == "COMPLETE" for trial in trials) == 2


def test_a_trial_taken_as_the_signal_came_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between Optuna's making it and anybody's signing it; a trial of another process is left alone."""
    shared = SharedStudy(Storage(f"sqlite:///{tmp_path}/study.db"), "s", ["minimize"], {})
    elsewhere = shared.study.ask()
    shared.study._storage.set_trial_system_attr(
        elsewhere._trial_id, alive.OWNER, {**alive.this_process(), "machine": "another"}
    )

    def interrupted() -> dict[str, object]:
        raise Terminated

    with monkeypatch.context() as patched, pytest.raises(Terminated):
        patched.setattr("tracker.sweep.study.this_process", interrupted)
        shared.claim(9, lambda trials: None, lambda place: optuna.samplers.RandomSampler(seed=place))
    shared.give_back("interrupted: Terminated")
    found = [(trial.state.name, INTERRUPTED in trial.system_attrs) for trial in shared.study.trials]
    assert found == [("RUNNING", False), ("FAIL", True), ("WAITING", False)]


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_abandoned_trials_are_tried_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another machine only the heartbeat tells: a trial without one is taken over after some missed beats."""
    monkeypatch.setattr(alive, "SECONDS_BETWEEN_BEATS", 0.2)  # on a busy machine a beat may come late
    shared = SharedStudy(Storage(f"{kind}:///{tmp_path}/study.db"), "s", ["minimize"], {})

    def claimed() -> optuna.Trial | None:
        return shared.claim(2, lambda trials: None, lambda place: optuna.samplers.RandomSampler(seed=place))

    first = claimed()
    assert first is not None
    value = first.suggest_float("a", 0, 1)
    elsewhere = {"machine": "another", "pid": 1, "began": "0"}
    shared.study._storage.set_trial_system_attr(first._trial_id, alive.OWNER, elsewhere)
    second = claimed()
    assert second is not None
    assert claimed() is None  # two are running, and there are to be two
    with alive.Heart(shared.study._storage, first._trial_id):
        for _ in range(20):
            assert claimed() is None  # it beats
            time.sleep(0.1)
    for _ in range(100):
        third = claimed()
        if third is not None:
            break
        time.sleep(0.1)
    assert third is not None
    assert third.suggest_float("a", 0, 1) == value
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        shared.study._storage.set_trial_user_attr(first._trial_id, "late", 1)  # whoever comes late is not counted
    assert len(shared.trials()) == 2
