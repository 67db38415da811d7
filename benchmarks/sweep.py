"""The sweep against an exhaustive scan, against the loop that one would write, and what it costs itself.

    python benchmarks/sweep.py search --data-root FOLDER [--anchor vdsr_set5] [--seeds 3] [--trials 60]
    python benchmarks/sweep.py loop --data-root FOLDER [--anchor resnet20_cifar10] [--seeds 3] [--trials 60]
    python benchmarks/sweep.py overhead [--trials 1000]
    python benchmarks/sweep.py start [--anchor digits]

search: every qp from -40 to -8 with all else at its default, encoded, decoded and evaluated on the whole search split;
then ``+sweep=nnc`` with several seeds. Must hold: never above the scan's best, and in the median 5 % below it.

loop: Optuna's TPE with the drop as a constraint, around the same coder and a full evaluation of each trial; then the
sweep, with the same space, seed and number of trials, both cold. Must hold: it has found the loop's best size in half
the time that the loop took to.

overhead: trials of a scenario that takes no time, with SQLite and MLflow logging on. Must hold: under 150 ms a trial,
and the last hundred no slower than 1.5 times the first.

start: a second command that joins a running study. Must hold: its first trial begins within 10 s. Beside it, how long
this machine takes to import the libraries alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIBRARIES = "torch, nncodec.nnc, mlflow, torchmetrics"
SPACE = {
    "qp": lambda trial: trial.suggest_float("qp", -40, -8, step=0.25),
    "qp_early": lambda trial: trial.suggest_int("qp_early", -3, 3),
    "qp_late": lambda trial: trial.suggest_int("qp_late", -3, 3),
    "nonweight_qp": lambda trial: trial.suggest_int("nonweight_qp", -75, -20, step=5),
    "bnf": lambda trial: trial.suggest_categorical("bnf", [False, True]),
}  # as conf/sweep/nnc.yaml


def measuring(anchor: str, data_root: Path) -> tuple[Callable[..., tuple[int, float]], float]:
    """A function from NNC's options to size and drop on the whole search split; and the tolerance."""
    from composed import job_of

    from tracker.bitstream import bitstream_bytes, decode_bitstream, encode_bitstream
    from tracker.codecs.chain import Codec
    from tracker.codecs.nnc import Nnc
    from tracker.scenarios.bench import Bench

    words = [f"anchor={anchor}", f"data.root={data_root}", "+codec=nnc", "task.split=search"]
    scratch = Path(tempfile.mkdtemp())
    bench = Bench(job_of(words, scratch))
    task, before = bench.job.task, bench.evaluated(bench.model, "anchor").metrics

    def measure(**options: Any) -> tuple[int, float]:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        codec = Codec({}, "nnc", Nnc(**options))
        encode_bitstream(codec, bench.tensors, bench.model, folder, bench.context)
        model = bench.filled(decode_bitstream(folder), "decoded")
        after = bench.evaluated(model, "decoded").metrics
        return bitstream_bytes(folder), task.drop(before[task.primary], after[task.primary])

    return measure, task.tolerance


def sweep(anchor: str, data_root: Path, seed: int, trials: int, *words: str) -> tuple[list[tuple[float, float]], float]:
    """(seconds since the command began, smallest size so far) after each trial of a sweep in a folder of its own."""
    import optuna

    folder = tempfile.mkdtemp()
    command = [sys.executable, "-m", "tracker", "-m", f"anchor={anchor}", f"data.root={data_root}", "+codec=nnc"]
    command += ["+sweep=nnc", f"hydra.sweeper.seed={seed}", f"hydra.sweeper.n_trials={trials}"]
    command += ["hydra.sweeper.study_name=s", *words]
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    began = time.time()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    whole = time.time() - began
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/mlruns/optuna.db")
    best, found = float("inf"), []
    for trial in study.trials:
        if trial.state.name == "COMPLETE" and all(value <= 0 for value in trial.constraints.values()):
            best = min(best, trial.value)
        found.append((trial.datetime_complete.timestamp() - began, best))
    return found, whole


def search(anchor: str, data_root: Path, seeds: int, trials: int) -> None:
    """The sweep's best size against that of an exhaustive scan over the global qp."""
    measure, tolerance = measuring(anchor, data_root)
    scan = {qp: measure(qp=qp) for qp in range(-40, -7)}
    good = {qp: size for qp, (size, drop) in scan.items() if drop <= tolerance + 1e-12}
    best = min(good.values())
    print(f"{anchor}: scan: {best:,} bytes at qp {min(good, key=good.__getitem__)}", flush=True)
    ratios = []
    for seed in range(seeds):
        found, seconds = sweep(anchor, data_root, seed, trials, "hydra.sweeper.report=false")
        ratios.append(found[-1][1] / best)
        print(f"seed {seed}: {found[-1][1]:,.0f} bytes, {ratios[-1]:.3f} of the scan's, {seconds:.0f} s", flush=True)
    print(f"median {statistics.median(ratios):.3f}, largest {max(ratios):.3f} (must hold: <= 0.95 and <= 1)")


def loop(anchor: str, data_root: Path, seeds: int, trials: int) -> None:
    """Time to the same best size, against a loop around nncodec and a full evaluation."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ratios = []
    for seed in range(seeds):
        began = time.time()
        measure, tolerance = measuring(anchor, data_root)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        reached: list[tuple[float, float]] = []

        def objective(trial: Any) -> float:
            size, drop = measure(**{name: suggest(trial) for name, suggest in SPACE.items()})  # noqa: B023
            trial.set_constraint("drop", drop - tolerance)  # noqa: B023
            if drop <= tolerance and (not reached or size < reached[-1][1]):  # noqa: B023
                reached.append((time.time() - began, size))  # noqa: B023
            return size

        study.optimize(objective, n_trials=trials)
        if not reached:
            print(f"seed {seed}: the loop found nothing that is transparent")
            continue
        seconds, size = reached[-1]
        found, whole = sweep(anchor, data_root, seed, trials, "hydra.sweeper.report=false")
        ours = next((after for after, best in found if best <= size), float("inf"))
        ratios.append(ours / seconds)
        print(
            f"seed {seed}: loop {size:,} bytes after {seconds:.0f} s of {time.time() - began - whole:.0f}; sweep as "
            f"small after {ours:.0f} s ({ratios[-1]:.2f}), {found[-1][1]:,.0f} bytes after {whole:.0f} s",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f} (must hold: <= 0.5)")


def overhead(trials: int) -> None:
    """Milliseconds that a trial takes which takes no time."""
    import optuna

    folder = Path(tempfile.mkdtemp())
    (folder / "conf" / "scenario").mkdir(parents=True)
    (folder / "conf" / "scenario" / "instant.yaml").write_text("_target_: instant.run\na: 0\nb: 0.5\nc: 1\nd: x\n")
    (folder / "instant.py").write_text(
        "def run(job):\n"
        "    s = job.settings.scenario\n"
        "    size = 1000 + 10 * abs(s['a'] - 3) + 100 * s['b'] ** 2 + s['c'] + 50 * (s['d'] != 'x')\n"
        "    return {'size/bitstream_bytes': size, 'performance/drop': s['a'] / 1000}\n"
    )
    command = [sys.executable, "-m", "tracker", "--config-dir", "conf", "-m", "scenario=instant"]
    command += ["hydra/sweeper=tracker", "scenario.a=range(0,20)", "scenario.b=interval(0,1)"]
    command += ["scenario.c=range(0,50)", "scenario.d=x,y", f"hydra.sweeper.n_trials={trials}"]
    began = time.time()
    subprocess.run([*command, "hydra.sweeper.study_name=s"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    whole = time.time() - began
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/mlruns/optuna.db")
    times = [trial.datetime_start.timestamp() for trial in study.trials]
    some = min(100, trials // 2)
    first, last = (times[some] - times[0]) / some, (times[-1] - times[-1 - some]) / some
    print(f"{1000 * (times[-1] - times[0]) / (trials - 1):.0f} ms a trial (must hold: < 150)")
    print(f"first hundred {1000 * first:.0f} ms, last hundred {1000 * last:.0f} ms: {last / first:.2f} (<= 1.5)")
    print(f"{whole:.0f} s in all, start, plots and tables included")


def start(anchor: str, data_root: Path) -> None:
    """Seconds from the start of a command until the first trial that it begins, of a study that another works on."""
    import optuna

    folder, others = tempfile.mkdtemp(), 100_000
    command = [sys.executable, "-m", "tracker", "-m", f"anchor={anchor}", "+codec=nnc", "+sweep=nnc"]
    command += [] if anchor == "digits" else [f"data.root={data_root}"]
    command += [f"hydra.sweeper.n_trials={others}", "hydra.sweeper.study_name=s"]
    command += ["hydra.sweeper.sampler=random", "hydra.sweeper.threads=1"]
    url = f"sqlite:///{folder}/mlruns/optuna.db"

    def begun(pid: int) -> float | None:
        try:
            trials = optuna.load_study(study_name="s", storage=url).trials
        except KeyError:  # no study yet
            return None
        mine = [one for one in trials if one.system_attrs.get("tracker:owner", {}).get("pid") == pid]
        return mine[0].datetime_start.timestamp() if mine else None

    began = time.time()
    subprocess.run([sys.executable, "-c", f"import {LIBRARIES}"], check=True)
    print(f"import {LIBRARIES}: {time.time() - began:.1f} s")
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for what in ("first", "second", "third"):
            began = time.time()
            processes.append(subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL))
            while not Path(f"{folder}/mlruns/optuna.db").exists() or begun(processes[-1].pid) is None:
                if processes[-1].poll() is not None:
                    sys.exit("the command ended")
                time.sleep(1)
            seconds = (begun(processes[-1].pid) or 0) - began
            print(f"{what} command: its first trial begins after {seconds:.1f} s (must hold: <= 10 where it joins)")
    finally:
        for process in processes:
            process.kill()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["search", "loop", "overhead", "start"])
    parser.add_argument("--data-root", type=Path, default=os.environ.get("TRACKER_DATA", "."))
    parser.add_argument("--anchor", default="resnet20_cifar10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int)
    words = parser.parse_args()
    if words.what == "overhead":
        overhead(words.trials or 1000)
    elif words.what == "start":
        start(words.anchor, Path(words.data_root).absolute())
    else:
        run = search if words.what == "search" else loop
        run(words.anchor, Path(words.data_root).absolute(), words.seeds, words.trials or 60)


if __name__ == "__main__":
    main()
