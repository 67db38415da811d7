"""The registry: versions, the alias of the smallest transparent one, and what is refused; and what identifies a run."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Here, runs
from mlflow import MlflowClient

from tracker import register as command
from tracker.errors import TrackerError
from tracker.tracking import registry
from tracker.tracking.context import TrackerContext


@pytest.fixture
def client(ready: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{ready}/mlruns/mlflow.db")


def alias(client: MlflowClient, name: str = "digits") -> str:
    return str(client.get_model_version_by_alias(name, "transparent").version)


def test_the_alias_is_that_of_the_smallest_transparent_one(here: Here, ready: Path, client: MlflowClient) -> None:
    def compressed(*words: str) -> str:
        done = here("+codec=nnc", *words, "tracking.registered_model=true")
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    told = compressed("codec.nnc.qp=-30")
    assert "models:/digits/1" in told
    assert alias(client) == "1"
    compressed("codec.nnc.qp=-34")  # larger
    assert alias(client) == "1"
    told = compressed("codec.nnc.qp=-8")  # smaller, and no longer transparent
    assert alias(client) == "1" and "is not moved to it: its drop is" in told
    compressed("codec.nnc.qp=-26")  # smaller
    compressed("codec.nnc.qp=-12", "task.split=search", "task.tolerance=1")  # not the split for figures
    versions = {str(one.version): one for one in client.search_model_versions("name = 'digits'")}
    measured = runs(ready, "compression")
    sizes = [run.data.metrics["size/bitstream_bytes"] for run in measured]
    assert [float(versions[str(number)].tags["tracker.bitstream.bytes"]) for number in range(1, 6)] == sizes
    good = [
        number
        for number, run in enumerate(measured, 1)
        if run.data.tags["tracker.transparent"] == "true" and run.data.params["task.split"] == "report"
    ]
    assert alias(client) == str(min(good, key=lambda number: sizes[number - 1]))

    version, run = versions["1"], measured[0]
    assert version.tags["tracker.drop"] == f"{run.data.metrics['performance/drop']:.6g}"
    assert version.tags["tracker.tolerance"] == "0.005" and version.tags["tracker.codec"] == "nnc"
    assert run.info.run_id in version.description and run.data.tags["tracker.anchor.run_id"] in version.description
    for refused in ("3", "5"):
        assert versions[refused].tags["tracker.transparent"] == "false"
        with pytest.raises(TrackerError, match="cannot be promoted"):
            registry.promote(client, "digits", refused)
    registry.promote(client, "digits", "2")
    assert alias(client) == "2"
    told = compressed("codec.nnc.qp=-12", "task.tolerance=0.9")  # a run's own tolerance is not the name's
    assert "the tolerance of the name 0.005" in told and alias(client) == "2"

    # Whoever takes the alias gets the bitstream of that run.
    import mlflow

    import tracker.flavor

    mlflow.set_tracking_uri(f"sqlite:///{ready}/mlruns/mlflow.db")
    state = tracker.flavor.load_model("models:/digits@transparent").state_dict()
    folder = ready / "mlruns" / "artifacts" / measured[1].info.run_id / "artifacts" / "bitstream"
    from tracker.bitstream import decode_bitstream

    assert all(torch.equal(state[name], tensor) for name, tensor in decode_bitstream(folder).items())


def test_any_runs_result_by_the_command(
    here: Here, ready: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert here("+codec=int8").returncode == 0
    assert not client.search_registered_models()  # nobody has asked
    (run,) = runs(ready, "compression")
    (anchor,) = runs(ready, "anchor")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{ready}/mlruns/mlflow.db")
    for _ in range(2):  # the second time changes nothing
        assert command.main([run.info.run_id, "small"]) == 0
        (version,) = client.search_model_versions("name = 'small'")
        assert version.run_id == run.info.run_id and str(version.version) == "1"
    for words, reason in (
        (["0" * 32], "there is no run"),
        ([anchor.info.run_id], "has no model"),
        ([run.info.run_id, "a/b"], "can be named"),
        ([run.info.run_id, "both ' and \""], "can be named"),
    ):
        capfd.readouterr()
        assert command.main(words) == 1
        told = capfd.readouterr().err
        assert reason in told and told.count("\n") == 1

    for _ in range(2):
        assert command.main([run.info.run_id, "it's"]) == 0
    (version,) = client.search_model_versions('name = "it\'s"')
    assert str(version.version) == "1"

    # Models of another anchor would not compare, which is told before any work is done.
    done = here("+codec=int8", "anchor.width=16", "tracking.registered_model=small")
    assert done.returncode == 1 and "another anchor" in done.stderr and done.stderr.count("\n") == 1
    assert len(runs(ready, "compression")) == 1


def test_the_command_makes_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert command.main(["0" * 32]) == 1
    told = capfd.readouterr().err
    assert "there is no tracking store" in told and told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_sweep_registers_its_best(here: Here, ready: Path, client: MlflowClient) -> None:
    words = ["-m", "+codec=int8", "+sweep=int8", "hydra.sweeper.n_trials=3", "hydra.sweeper.study_name=s"]
    done = here(*words)
    assert done.returncode == 0, done.stderr
    (version,) = client.search_model_versions("name = 'digits'")
    (final,) = runs(ready, "compression")
    (parent,) = runs(ready, "sweep")
    assert version.run_id == final.info.run_id and parent.info.run_id in version.description
    assert not [run for run in runs(ready, "trial") if run.outputs and run.outputs.model_outputs]
    assert here(*words, "tracking.registered_model=false", "hydra.sweeper.study_name=t").returncode == 0
    assert len(client.search_model_versions("name = 'digits'")) == 1


def test_runs_say_what_made_them(here: Here, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert here("+codec=int8").returncode == 0
    for run in runs(ready):
        assert run.data.tags["tracker.version.torch"] == importlib.metadata.version("torch")
        assert run.data.tags["tracker.slurm.job"] == "4711"
        assert Path(run.data.tags["tracker.hydra.output"]).name
    assert TrackerContext().in_context()


def test_other_runs_are_left_alone(tmp_path: Path) -> None:
    code = "import mlflow; print(mlflow.start_run().data.tags)"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/m.db"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0 and "tracker." not in done.stdout, done.stderr
