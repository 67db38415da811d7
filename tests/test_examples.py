"""The examples run as their READMEs say, from copies of their folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Completed, Here, runs

EXAMPLES = Path(__file__).parents[1] / "examples"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
UNTUNED = BENCHMARKS / "untuned" / "conf"


def test_own_anchor_and_task_by_config_dir(tmp_path: Path, tracker: Callable[..., Completed]) -> None:
    folder = tmp_path / "own"
    shutil.copytree(EXAMPLES / "own_anchor", folder)
    done = tracker("--config-dir", "conf", "anchor=wine", "+codec=nnc", "transparency.confidence=0.9", cwd=folder)
    assert done.returncode == 0, done.stderr
    (run,) = runs(folder, "compression")
    metrics = run.data.metrics
    assert metrics["balanced_accuracy/anchor"] > 0.9
    assert metrics["performance/drop"] == metrics["balanced_accuracy/anchor"] - metrics["balanced_accuracy/decoded"]
    assert metrics["performance/drop_low"] <= metrics["performance/drop"] <= metrics["performance/drop_high"]
    assert run.data.params["task.function._target_"] == "wine.balanced_accuracy"

    # Its own module travels with it, to whoever trusts it, in another folder.
    (output,) = run.outputs.model_outputs
    model = next((folder / "mlruns").rglob(f"{output.model_id}/artifacts/MLmodel")).parent
    code = (
        "import sys, numpy, mlflow.pyfunc, tracker.flavor\n"
        "net = tracker.flavor.load_model(sys.argv[1])\n"
        "print(type(net).__name__, mlflow.pyfunc.load_model(sys.argv[1]).predict(numpy.zeros((2, 13), 'f4')).shape)\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for trusted, status in (("wine", 0), ("", 1)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(model)],
            cwd=elsewhere,
            env={**os.environ, "TRACKER_TRUSTED": trusted},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert "(2, 3)" in done.stdout if trusted else "no package that is trusted" in done.stderr


@pytest.mark.slow
def test_checkpoints_of_the_example_are_sent(here: Here, ready: Path, tracker: Callable[..., Completed]) -> None:
    script = [
        sys.executable,
        str(EXAMPLES / "updates" / "finetune.py"),
        "checkpoints",
        "--epochs",
        "2",
        "anchor=digits",
    ]
    subprocess.run(script, cwd=ready, check=True)
    assert len(list((ready / "checkpoints").iterdir())) == 3
    words = ("-m", "scenario=update", "scenario.checkpoints=checkpoints", "scenario.mode=whole,difference")
    done = here(*words, "+codec=nnc", "codec.nnc.qp=-28")
    assert done.returncode == 0, done.stderr
    whole, difference = runs(ready, "update")
    assert difference.data.metrics["update/mean_bytes"] < 0.5 * whole.data.metrics["update/mean_bytes"]
    assert difference.data.tags["tracker.transparent"] == "true"
    for run in (whole, difference):  # series of one chart
        plots = ready / "mlruns" / "artifacts" / run.info.run_id / "artifacts" / "plots"
        page = (plots / "modes.html").read_text()
        assert "whole nnc qp=-28" in page and "difference nnc qp=-28" in page and (plots / "modes.png").is_file()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("xz") is None, reason="xz is not installed")
def test_external_example(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(EXAMPLES / "external_xz.sh")], cwd=tmp_path, env={**os.environ, "PATH": path}, check=False
    )
    assert done.returncode == 0
    (run,) = runs(tmp_path, "compression")
    assert run.data.metrics["performance/drop"] == 0
    assert run.data.metrics["size/rate_percent"] < 100


@pytest.mark.parametrize("name", sorted(path.stem for path in (UNTUNED / "anchor").glob("*.yaml")))
def test_anchors_that_nobody_tuned_for_are_complete(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import hydra
    from omegaconf import OmegaConf

    from tracker.anchors import Anchor
    from tracker.component import build
    from tracker.data import Data
    from tracker.tasks import Task

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    with hydra.initialize_config_dir(str(BENCHMARKS.parent / "conf"), version_base=None):
        composed = hydra.compose("config", [f"anchor={name}", f"hydra.searchpath=[{UNTUNED}]"])
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    assert build(plain["anchor"], "anchor", Anchor).name == name
    assert build(plain["task"], "task", Task).tolerance > 0
    assert build(plain["data"], "data", Data).name == plain["data"]["name"]


def test_anchor_that_nobody_tuned_for_trains_and_is_coded(ready: Path, here: Here) -> None:
    words = [
        "--config-dir",
        str(UNTUNED),
        "anchor=denoiser_photographs",
        "anchor.width=4",
        "anchor.steps=80",
        "anchor.rate=0.01",
    ]
    done = here(*words, "+codec=nnc", "codec.nnc.qp=-24", PYTHONPATH=str(BENCHMARKS))
    assert done.returncode == 0, done.stderr
    (run,) = runs(ready, "compression")
    assert run.data.metrics["psnr/anchor"] > 21  # the noise alone is 20 dB below white
    assert 0 < run.data.metrics["size/rate_percent"] < 50
