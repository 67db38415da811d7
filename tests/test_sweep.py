"""A sweep from the command line: what it finds, what it leaves in MLflow and in the study, what it refuses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import Here, runs

STUDY = "hydra.sweeper.study_name=s"
INSTANT = """
def run(job):
    scenario = job.settings.scenario
    if scenario["a"] == 13:
        raise ValueError("thirteen")
    size = 1000 - 10 * scenario["a"] + 100 * scenario["b"]
    return {"size/bitstream_bytes": size, "performance/drop": scenario["a"] / 1000, "other": scenario["a"]}
"""


@pytest.fixture
def instant(ready: Path) -> list[str]:
    """Words for a sweep over a scenario of the user's own that takes no time: drop a/1000, smaller with a."""
    (ready / "conf" / "scenario").mkdir(parents=True)
    (ready / "conf" / "scenario" / "instant.yaml").write_text("_target_: instant.run\na: 0\nb: 0.5\nword: x\n")
    (ready / "instant.py").write_text(INSTANT)
    return ["--config-dir", "conf", "-m", "scenario=instant", "hydra/sweeper=tracker", STUDY]


def artifacts_of(folder: Path, run: Any) -> Path:
    return folder / "mlruns" / "artifacts" / run.info.run_id / "artifacts"


def study_in(folder: Path, name: str = "s") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/mlruns/optuna.db")


def test_a_sweep_finds_the_smallest_transparent_bitstream(here: Here, ready: Path) -> None:
    words = ["-m", "+codec=nnc", "+sweep=nnc", STUDY, "hydra.sweeper.n_trials=14"]
    done = here(*words)
    assert done.returncode == 0, done.stderr
    study = study_in(ready)
    assert len(study.trials) == 14
    (parent,) = runs(ready, "sweep")
    assert parent.info.status == "FINISHED"
    children = runs(ready, "trial")
    assert len(children) == 14
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    assert all(child.info.status == "FINISHED" for child in children)

    # The best is the smallest of those that a full evaluation found transparent, by Optuna's own account too.
    sizes = {
        int(child.data.tags["tracker.trial"]): child.data.metrics["size/bitstream_bytes"]
        for child in children
        if child.data.metrics.get("performance/transparent") == 1
    }
    best = min(sizes, key=sizes.__getitem__)
    assert study.best_trial.number == best
    assert parent.data.tags["tracker.best.trial"] == str(best)

    # Measured once more on the report split, from its stored bytes, and kept.
    (final,) = runs(ready, "compression")
    assert final.data.params["task.split"] == "report"
    assert all(child.data.params["task.split"] == "search" for child in children)
    (trial,) = [child for child in children if child.data.tags["tracker.trial"] == str(best)]
    digest = trial.data.tags["tracker.bitstream.sha256"]
    assert final.data.tags["tracker.bitstream.sha256"] == parent.data.tags["tracker.bitstream.sha256"] == digest
    assert final.data.metrics["size/bitstream_bytes"] == sizes[best] == parent.data.metrics["size/bitstream_bytes"]
    assert parent.data.metrics["performance/drop"] == final.data.metrics["performance/drop"]
    assert parent.data.metrics["search/performance/drop"] == trial.data.metrics["performance/drop"]
    advised = "transparency.confidence=0.95" in done.stdout + done.stderr
    assert advised == (final.data.tags["tracker.transparent"] == "false")

    artifacts = ready / "mlruns" / "artifacts" / parent.info.run_id / "artifacts"
    manifest = json.loads((artifacts / "bitstream" / "manifest.json").read_text())
    assert manifest["files"]
    pictures = {path.name for path in (artifacts / "plots").iterdir()}
    assert {"history.png", "pareto_front.png", "rate_over_qp.png", "sweep.html"} <= pictures
    table = json.loads((artifacts / "trials.json").read_text())
    assert len(table["data"]) == 14
    assert "nnc/qp" in table["columns"]
    assert not [name for name in table["columns"] if "." in name]  # which MLflow's view takes for a nested table

    # The file of the best working point runs again to the same bytes.
    again = here("--config-dir", str(artifacts / "working_point"), "--config-name", "working_point")
    assert again.returncode == 0, again.stderr
    assert runs(ready, "compression")[-1].data.tags["tracker.bitstream.sha256"] == digest

    # The same command finds everything done; with more trials it goes on.
    assert here(*words).returncode == 0
    assert len(study_in(ready).trials) == 14
    assert here(*words[:-1], "hydra.sweeper.n_trials=16").returncode == 0
    assert len(study_in(ready).trials) == 16
    assert [run.info.run_id for run in runs(ready, "sweep")] == [parent.info.run_id]


def test_a_sweep_killed_at_its_very_end_gets_its_results_back(here: Here, ready: Path) -> None:
    """The watchdog takes back what a killed command has logged, after the study knows the result already."""
    from mlflow import MlflowClient

    from tracker.tracking.watchdog import mark_failed

    words = ["-m", "+codec=nnc", "hydra/sweeper=tracker", STUDY, "codec.nnc.qp=range(-33,-32)"]
    assert here(*words).returncode == 0
    (parent,) = runs(ready, "sweep")
    uri, folder = f"sqlite:///{ready}/mlruns/mlflow.db", artifacts_of(ready, parent)
    before = {path.name for path in folder.iterdir()}
    MlflowClient(uri).update_run(parent.info.run_id, status="RUNNING")
    mark_failed(uri, parent.info.run_id)
    assert not (folder / "trials.json").exists() and not (folder / "bitstream").exists()
    assert here(*words).returncode == 0
    assert {path.name for path in folder.iterdir()} == before >= {"trials.json", "bitstream", "plots", "working_point"}
    assert runs(ready, "sweep")[0].info.status == "FINISHED"
    assert len(runs(ready, "compression")) == 1  # it was measured on the report split already


def test_best_so_far_is_a_stepped_metric(here: Here, ready: Path, instant: list[str]) -> None:
    from mlflow import MlflowClient

    done = here(*instant, "scenario.a=range(0,5)", "hydra.sweeper.sampler=grid")
    assert done.returncode == 0, done.stderr
    (parent,) = runs(ready, "sweep")
    client = MlflowClient(f"sqlite:///{ready}/mlruns/mlflow.db")
    steps = client.get_metric_history(parent.info.run_id, "sweep/best_bytes")
    study = study_in(ready)
    values = [trial.params["scenario.a"] for trial in study.trials]
    assert sorted(values) == [0, 1, 2, 3, 4, 5]  # the grid, its upper end included
    wanted, best = {}, float("inf")
    for count, value in enumerate(values, 1):
        best = min(best, 1050 - 10 * value)
        wanted[count] = best
    assert {metric.step: metric.value for metric in steps} == wanted


def test_failed_trials_are_recorded_and_do_not_stop_the_sweep(here: Here, ready: Path, instant: list[str]) -> None:
    words = [*instant, "scenario.a=range(11,14)", "hydra.sweeper.sampler=grid", "hydra.sweeper.transparent=false"]
    done = here(*words)
    assert done.returncode == 0, done.stderr
    failed = [trial for trial in study_in(ready).trials if trial.state.name == "FAIL"]
    assert [trial.params["scenario.a"] for trial in failed] == [13]
    assert "thirteen" in failed[0].user_attrs["error"]
    (run,) = [run for run in runs(ready, "trial") if run.info.status == "FAILED"]
    assert "thirteen" in run.data.tags["tracker.error"]
    assert study_in(ready).best_trial.params["scenario.a"] == 14


def test_cmaes_does_not_warn_of_constraints_at_every_trial(
    here: Here, ready: Path, instant: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    done = here(*instant, "scenario.a=range(0,90)", "hydra/sweeper/sampler=cmaes", "hydra.sweeper.n_trials=4")
    assert done.returncode == 0, done.stderr
    assert not [warning for warning in recwarn if "Constraints have been set" in str(warning.message)]


def test_too_many_failures_stop_it(here: Here, ready: Path, instant: list[str]) -> None:
    words = [*instant, "scenario.a=choice(13)", "scenario.b=interval(0,1)", "hydra.sweeper.n_trials=20"]
    done = here(*words)
    assert done.returncode != 0
    assert "max_failure_rate" in done.stderr.splitlines()[-1]
    assert "thirteen" in done.stderr.splitlines()[-1]
    assert len(study_in(ready).trials) == 3
    (parent,) = runs(ready, "sweep")
    assert parent.info.status == "FAILED"


def test_too_many_failures_are_told_once_even_if_they_were_the_last_trials(
    here: Here, ready: Path, instant: list[str]
) -> None:
    words = [*instant, "scenario.a=choice(13)", "scenario.b=interval(0,1)", "hydra.sweeper.n_trials=3"]
    for done in (here(*words), here(*words)):
        assert done.returncode == 1
        assert done.stderr.count("max_failure_rate") == 1 and done.stderr.splitlines()[-1].startswith("error: 3 of 3")
        assert "Error executing" not in done.stdout + done.stderr and "a worker ended" not in done.stdout + done.stderr
    (parent,) = runs(ready, "sweep")
    assert parent.info.status == "FAILED"


def test_what_was_broken_is_told_where_no_trial_kept_the_constraints(
    here: Here, ready: Path, instant: list[str]
) -> None:
    words = [*instant, "scenario.a=range(4,7)", "hydra.sweeper.sampler=grid", 'hydra.sweeper.constraints=["other<=3"]']
    done = here(*words)
    assert done.returncode == 0, done.stderr
    assert (
        "(broken: other<=3 in 4, transparency in 2 trials); search what changes that metric"
        in done.stderr + done.stdout
    )
    done = here(*instant[:-1], "hydra.sweeper.study_name=u", "scenario.a=range(6,7)", "hydra.sweeper.sampler=grid")
    assert "(broken: transparency in 2 trials); widen the space towards finer steps" in done.stderr + done.stdout


def test_another_seed_or_sampler_is_another_study_unless_it_is_named(
    here: Here, ready: Path, instant: list[str]
) -> None:
    words = [*instant[:-1], "scenario.a=range(0,2)"]
    told = []
    for more in ([], [], ["hydra.sweeper.seed=1"], ["hydra/sweeper/sampler=random"]):
        done = here(*words, *more)
        assert done.returncode == 0, done.stderr
        told.append("nothing to do" in done.stdout + done.stderr)
    assert told == [False, True, False, False]
    assert len({run.data.tags["tracker.study"] for run in runs(ready, "sweep")}) == 3
    assert here(*words, STUDY).returncode == 0
    done = here(*words, STUDY, "hydra.sweeper.seed=1")
    assert "nothing to do: the study has its 3 trials" in done.stdout + done.stderr


def test_the_command_that_is_told_can_be_pasted(here: Here, ready: Path, instant: list[str]) -> None:
    (ready / "conf" / "sweep").mkdir()
    (ready / "conf" / "sweep" / "tensors.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /hydra/sweeper: tracker\nhydra:\n  sweeper:\n    params:\n"
        "      codec.nnc.qp_per_tensor.*: range(-33,-32)\n"
    )
    words = ["--config-dir", "conf", "-m", "+codec=nnc", "+sweep=tensors", STUDY, "hydra.sweeper.n_trials=2"]
    done = here(*words, "hydra.sweeper.report=false")
    assert done.returncode == 0, done.stderr
    told = next(line for line in (done.stdout + done.stderr).splitlines() if "best: trial" in line)
    command = shlex.split(told[told.index("python -m tracker") :])
    best = runs(ready, "sweep")[0].data.tags["tracker.best.trial"]
    assert here(*command[3:]).returncode == 0
    (trial,) = [run for run in runs(ready, "trial") if run.data.tags["tracker.trial"] == best]
    (run,) = runs(ready, "compression")
    assert run.data.tags["tracker.bitstream.sha256"] == trial.data.tags["tracker.bitstream.sha256"]


def test_constraints_of_the_user(here: Here, ready: Path, instant: list[str]) -> None:
    words = [*instant, "scenario.a=range(0,10)", "hydra.sweeper.sampler=grid", 'hydra.sweeper.constraints=["other<=3"]']
    assert here(*words).returncode == 0
    assert study_in(ready).best_trial.params["scenario.a"] == 3
    trial = study_in(ready).trials[0]
    a = trial.params["scenario.a"]
    assert trial.constraints == pytest.approx({"performance/drop": a / 1000 - 0.005, "other<=3": a - 3})


def test_several_objectives_keep_their_front(here: Here, ready: Path, instant: list[str]) -> None:
    objectives = "hydra.sweeper.objectives=[size/bitstream_bytes,performance/drop]"
    words = [*instant, "scenario.a=range(0,4)", "scenario.b=choice(0,1)", objectives, "hydra.sweeper.sampler=grid"]
    done = here(*words, "hydra.sweeper.transparent=false")
    assert done.returncode == 0, done.stderr
    front = study_in(ready).best_trials
    assert sorted((trial.params["scenario.a"], trial.params["scenario.b"]) for trial in front) == [
        (a, 0) for a in range(5)
    ]
    (parent,) = runs(ready, "sweep")
    table = json.loads((artifacts_of(ready, parent) / "trials.json").read_text())
    place = {name: index for index, name in enumerate(table["columns"])}
    marked = {row[place["trial"]] for row in table["data"] if row[place["on the front"]]}
    assert marked == {trial.number for trial in front}
    assert "one of 5 working points on the front" in done.stdout + done.stderr


def test_the_front_of_other_objectives_is_drawn(here: Here, ready: Path, instant: list[str]) -> None:
    objectives = "hydra.sweeper.objectives=[size/bitstream_bytes,maximize other]"
    done = here(*instant, "scenario.a=range(0,3)", objectives, "hydra.sweeper.sampler=grid")
    assert done.returncode == 0, done.stderr
    (parent,) = runs(ready, "sweep")
    assert (artifacts_of(ready, parent) / "plots" / "pareto_front.png").is_file()


@pytest.mark.parametrize("limit", ["hydra.sweeper.timeout=0.001", "hydra.sweeper.patience=4"])
def test_limits_end_it_early(limit: str, here: Here, ready: Path, instant: list[str]) -> None:
    done = here(*instant, "scenario.a=choice(1)", "scenario.b=interval(0,1)", "hydra.sweeper.n_trials=50", limit)
    assert done.returncode == 0, done.stderr
    ended = len(study_in(ready).trials)
    assert ended < 50
    assert limit.split("=")[0] in runs(ready, "sweep")[0].data.tags["tracker.ended"]


def test_the_same_configuration_is_not_measured_twice(here: Here, ready: Path, instant: list[str]) -> None:
    words = ["scenario.a=range(0,3)", "scenario.b=choice(0,1,2,3)", "hydra.sweeper.n_trials=15"]
    done = here(*instant, *words, "hydra.sweeper.sampler=random")
    assert done.returncode == 0, done.stderr
    study = study_in(ready)
    assert len({tuple(trial.params.items()) for trial in study.trials}) == 15  # of 16: none is proposed again
    study.enqueue_trial(study.trials[3].params)  # as one may by optuna-dashboard
    done = here(*instant, *words, "hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=16")
    assert done.returncode == 0, done.stderr
    *trials, again = study_in(ready).trials
    assert again.user_attrs["outcome"]["stopped"] == "the same as trial 3"
    assert not any(trial.user_attrs["outcome"]["stopped"] for trial in trials)
    for trial in (*trials, again):
        assert trial.value == 1000 - 10 * trial.params["scenario.a"] + 100 * trial.params["scenario.b"]


def test_a_space_with_fewer_points_than_trials_is_tried_out(here: Here, ready: Path, instant: list[str]) -> None:
    done = here(*instant, "scenario.a=range(0,2)", "hydra.sweeper.n_trials=12")
    assert done.returncode == 0, done.stderr
    assert sorted(trial.params["scenario.a"] for trial in study_in(ready).trials) == [0, 1, 2]
    assert "3 trials (all 3 points of the space were tried)" in done.stdout + done.stderr


def test_a_grid_that_n_trials_cuts_off_is_told(here: Here, ready: Path, instant: list[str]) -> None:
    words = ["scenario.a=range(0,4)", "hydra.sweeper.sampler=grid", "hydra.sweeper.n_trials=3"]
    done = here(*instant, *words)
    assert done.returncode == 0, done.stderr
    assert "3 of the space's 5 points are tried" in done.stdout + done.stderr
    assert len(study_in(ready).trials) == 3


def test_the_same_tensors_are_evaluated_once(here: Here, ready: Path) -> None:
    """The entropy coder's options change the bytes and not what they decode to."""
    done = here(
        "-m", "+codec=nnc", "hydra/sweeper=tracker", STUDY, "codec.nnc.cabac_unary_length_minus1=range(9,11)",
        "hydra.sweeper.report=false",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcomes = [trial.user_attrs["outcome"] for trial in study_in(ready).trials]
    measured = [outcome for outcome in outcomes if outcome["content"]]
    assert len({outcome["content"] for outcome in measured}) == 1
    assert sum("time/evaluate_s" in outcome["metrics"] for outcome in outcomes) == 1
    assert len({outcome["metrics"].get("performance/drop") for outcome in measured}) == 1


REFUSED = [
    (["codec.nnc.kp=range(-40,-8)"], "codec.nnc.kp is not an option"),
    (["codec.svd.ratio=range(0.1,1,0.1)"], "add +codec=svd"),
    (["codec.nnc.lambda_scale=tag(lgo,interval(1,10))"], "no tag lgo"),
    (["codec.nnc.qp=range(-40,-8)", "+hydra.sweeper.known_points.mine={codec.nnc.foo: 1}"], "codec.nnc.foo is not"),
    (["codec.nnc.qp=range(-40,-8)", 'hydra.sweeper.constraints=["performance/simulated<=1"]'], "no trial logs"),
    (["codec.nnc.qp=range(-40,-8)", "hydra.sweeper.constraints=time/decode_s<=1"], '["cost/mac_ratio<=0.6"]'),
    (["codec.nnc.qp=range(-40,-8)", "tracking.registered_model=a/b"], "a name without / and :"),
    (["codec.nnc.bnf=interval(0,1)"], "codec.nnc.bnf=true,false"),
    (["codec.nnc.qp=range(-8,-40)"], "it is empty"),
    (["codec.nnc.qp=range(-400,-8)"], "out of range"),
    (['hydra.sweeper.constraints=["speed<=1"]', "codec.nnc.qp=range(-40,-8)"], "no trial logs the metric speed"),
    (['hydra.sweeper.constraints=["cost/mac_ratio"]', "codec.nnc.qp=range(-40,-8)"], "is no bound"),
    (["hydra.sweeper.objectives=[speed]", "codec.nnc.qp=range(-40,-8)"], "no trial logs the metric speed"),
    (["hydra.sweeper.storage=postgresql://nobody@127.0.0.1:1/none", "codec.nnc.qp=range(-40,-8)"], "cannot be reached"),
    (["hydra.sweeper.storage=redis://x", "codec.nnc.qp=range(-40,-8)"], "is no storage"),
    (["hydra.sweeper.sampler=best", "codec.nnc.qp=range(-40,-8)"], "there are the samplers tpe"),
    (["hydra.sweeper.n_trials=0", "codec.nnc.qp=range(-40,-8)"], "hydra.sweeper.n_trials"),
    (["hydra.sweeper.n_jobs=2", "codec.nnc.qp=range(-40,-8)"], "+cluster=local"),
    (["anchor=digits,resnet20_cifar10"], "anchor cannot be varied"),
    (["hydra.sweeper.sampler=brute_force", "codec.nnc.sparsity=interval(0,0.5)"], "continuous"),
    (["codec.nnc.qp=interval(-32.5,-20.5)"], "write range(-32.5,-20.5,STEP)"),
    (["codec.nnc.qp=range(-40,-8)", "hydra.sweeper.rate_falls_with=codec.nnc.foo"], "codec.nnc.foo is not an option"),
    (["codec.nnc.qp=range(-40,-8)", "hydra.sweeper.sampler.n_startup_trials=-2"], "sampler.n_startup_trials=-2"),
    (["codec.nnc.qp=range(-40,-8)", "+hydra.sweeper.sampler.foo=2"], "hydra.sweeper.sampler.foo"),
    (["codec.nnc.qp=range(-40,-8)", "hydra.sweeper.n_job=3"], "--cfg hydra"),
    (["codec.nnc.qp_per_tensor.*=range(-33,-32)"], "a key with a star cannot be given on the command line"),
    ([], "nothing to search"),
]


@pytest.mark.parametrize(("words", "told"), REFUSED, ids=lambda value: value if isinstance(value, str) else None)
def test_bad_input_is_one_line(words: list[str], told: str, here: Here, ready: Path) -> None:
    done = here("-m", "+codec=nnc", "hydra/sweeper=tracker", STUDY, *words)
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert runs(ready, "trial") == []


def test_a_sweep_without_m_is_refused(here: Here, ready: Path, instant: list[str]) -> None:
    words = [word for word in instant if word != "-m"]
    done = here(*words)
    assert done.returncode == 1
    assert "a sweep needs -m" in done.stderr and done.stderr.count("\n") == 1


def test_a_choice_of_codecs_that_the_space_does_not_fit_is_refused(here: Here, ready: Path) -> None:
    words = ["-m", "hydra/sweeper=tracker", STUDY, "+codec=nnc,int8"]
    done = here(*words, "codec.nnc.qp=range(-33,-32)")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "codec=int8 does not work with this space (codec.nnc.qp cannot be searched without its stage" in done.stderr
    assert "condition" in done.stderr
    assert runs(ready, "trial") == []


def test_a_study_of_another_kind_is_refused(here: Here, ready: Path, instant: list[str]) -> None:
    assert here(*instant, "scenario.a=range(0,1)").returncode == 0
    for words in (["scenario.a=range(0,2)"], ["scenario.b=range(0,2)"], ["scenario.a=range(0,1)", "scenario.b=0.1"]):
        done = here(*instant, *words)
        assert done.returncode != 0
        assert re.match(r"error: the study s exists with other (parameters|configuration) \(scenario", done.stderr)
    words = ["-m", "+codec=nnc", "hydra/sweeper=tracker", "hydra.sweeper.study_name=t", "codec.nnc.qp=range(-33,-32)"]
    assert here(*words, "hydra.sweeper.report=false").returncode == 0
    done = here(*words, "anchor.seed=1")
    assert "the study t exists with another anchor" in done.stderr
