"""A sweep that is killed again and again, against one that nobody disturbs.

    python benchmarks/kills.py [--kills 20] [--trials 200] [--seed 0]

Two workers side by side (+cluster=local, extra: joblib) run trials of 0.1 s. At random moments the sweep's
own process or one of its workers gets SIGKILL; a sweep that has ended so is started again by the same command. Must
hold: no trial that had ended is lost or counted twice, in the study and in MLflow, and the sweep ends with as many
trials as the undisturbed one.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

SCENARIO = """
import time

def run(job):
    time.sleep(0.1)
    a = job.settings.scenario["a"]
    return {"size/bitstream_bytes": 1000 - a, "performance/drop": 0.0}
"""


def prepared() -> Path:
    """A folder with a scenario of its own."""
    folder = Path(tempfile.mkdtemp())
    (folder / "conf" / "scenario").mkdir(parents=True)
    (folder / "conf" / "scenario" / "slow.yaml").write_text("_target_: slow.run\na: 0.0\n")
    (folder / "slow.py").write_text(SCENARIO)
    return folder


def start(folder: Path, trials: int) -> subprocess.Popen[bytes]:
    """The command, in a folder."""
    words = ["--config-dir", "conf", "-m", "scenario=slow", "hydra/sweeper=tracker", "+cluster=local"]
    words += [f"hydra.sweeper.n_trials={trials}", "hydra.sweeper.study_name=s", "hydra.sweeper.sampler=random"]
    command = [sys.executable, "-m", "tracker", *words, "scenario.a=interval(0,500)"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def trials_of(folder: Path) -> list[Any]:
    """The study's trials; none where there is no study yet."""
    import optuna

    if not (folder / "mlruns" / "optuna.db").exists():
        return []
    try:
        return list(optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/mlruns/optuna.db").trials)
    except Exception:  # it is being made
        return []


def complete(trials: list[Any]) -> dict[int, tuple[float, str]]:
    """Value and parameters of the finished trials, by number."""
    return {one.number: (one.value, str(one.params)) for one in trials if one.state.name == "COMPLETE"}


def whole(folder: Path) -> tuple[int, int]:
    """How many trials the study has finished, and how many runs MLflow has of them, each once."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`tracker.kind` = 'trial'", max_results=10_000)
    numbers = Counter(run.data.tags["tracker.trial"] for run in runs if run.info.status == "FINISHED")
    found = complete(trials_of(folder))
    assert set(numbers) == {str(number) for number in found}, "MLflow and the study differ"
    assert set(numbers.values()) <= {1}, "a trial counted twice"
    assert not [run for run in runs if run.info.status == "RUNNING"], "a run left as running"
    return len(found), sum(numbers.values())


def disturbed(kills: int, trials: int, seed: int) -> tuple[int, int]:
    """A sweep that is killed so many times."""
    generator, folder = random.Random(seed), prepared()
    process, done, seen = start(folder, trials), Counter[str](), dict[int, tuple[float, str]]()
    while sum(done.values()) < kills:
        begun = len(trials_of(folder))
        while len(trials_of(folder)) <= begun and process.poll() is None:
            time.sleep(0.1)
        time.sleep(generator.uniform(0, 1.5))
        now = trials_of(folder)
        assert seen.items() <= complete(now).items(), "a finished trial was lost"
        seen = complete(now)
        workers = {one.system_attrs["tracker:owner"]["pid"] for one in now if one.state.name == "RUNNING"}
        what = "worker" if generator.random() < 0.5 and workers else "sweep"
        victim = generator.choice(sorted(workers)) if what == "worker" else process.pid
        if process.poll() is None:
            try:
                os.kill(victim, signal.SIGKILL)
                done[what] += 1
            except ProcessLookupError:
                pass  # it had just ended
        if process.poll() not in (None, 0, -signal.SIGKILL):
            sys.exit(f"the sweep ended with status {process.returncode}; run it by hand in {folder}")
        if what == "sweep" or process.poll() is not None:
            process.wait()
            process = start(folder, trials)
        print(f"\r{sum(done.values())} kills, {len(seen)} trials finished", end="", flush=True)
    assert process.wait(timeout=600) == 0, "the sweep did not end well"
    assert seen.items() <= complete(trials_of(folder)).items(), "a finished trial was lost"
    print(f"\n{done['sweep']} kills of the sweep, {done['worker']} of a worker")
    return whole(folder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    found = disturbed(words.kills, words.trials, words.seed)
    quiet = prepared()
    assert start(quiet, words.trials).wait(timeout=600) == 0
    print(f"trials in the study and in MLflow: {found}; of a sweep that nobody disturbed: {whole(quiet)}")
    if found != whole(quiet):
        sys.exit("they differ")


if __name__ == "__main__":
    main()
