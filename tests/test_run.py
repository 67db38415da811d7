"""The main job as a user runs it: what it prints, what it logs, and that the stored bytes are what was evaluated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import Completed, Here, runs
from mlflow import MlflowClient
from safetensors.torch import load_file

from tracker.anchors.digits import Digits
from tracker.data.digits import Digits as DigitsData
from tracker.tracking import store
from tracker.tracking.run import Run

METRICS = {
    *("size/anchor_bytes", "size/bitstream_bytes", "size/rate_percent", "size/bits_per_parameter"),
    *("performance/anchor", "performance/decoded", "performance/drop", "performance/transparent"),
    *("top1/anchor", "top1/decoded", "top5/anchor", "top5/decoded"),
    *("time/encode_s", "time/decode_s", "time/evaluate_s", "time/total_s", "memory/peak_mib"),
}


def command(folder: Path, *words: str, module: str = "tracker") -> Completed:
    return subprocess.run(
        [sys.executable, "-m", module, *words], cwd=folder, capture_output=True, text=True, check=False, env=os.environ
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A tracking folder after one multirun: nnc at a step size that costs accuracy, and zstd."""
    path = tmp_path_factory.mktemp("main")
    done = command(path, "-m", "+codec=nnc,zstd", "task.split=search")
    assert done.returncode == 0, done.stderr
    done = command(path, "+codec=nnc", "codec.nnc.qp=-8", "transparency.confidence=0.9")
    assert done.returncode == 0, done.stderr
    (path / "stdout").write_text(done.stdout)
    return path


def artifacts(folder: Path, run) -> Path:
    return folder / "mlruns" / "artifacts" / run.info.run_id / "artifacts"


def test_help_names_the_choices_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, tracker.__main__ as main; sys.argv = ['tracker', '--help']; main.main();"
        "heavy = {'torch', 'mlflow', 'nncodec', 'numpy', 'pandas', 'sklearn', 'torchvision', 'matplotlib'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
    for word in ("resnet20_cifar10", "torchvision", "super_resolution", "external", "tolerance: 0.005"):
        assert word in done.stdout


def test_every_name_of_the_contract_is_logged(folder: Path) -> None:
    nnc, zstd, coarse = runs(folder, "compression")
    for run in (nnc, zstd, coarse):
        assert run.info.status == "FINISHED"
        assert run.data.metrics.keys() >= METRICS
        assert run.data.tags["tracker.transparent"] in ("true", "false")
        (data,) = [item.dataset for item in run.inputs.dataset_inputs]
        split = run.data.params["task.split"]
        assert data.name == f"digits/{split}"
        assert data.digest == DigitsData().digest(split)[:36]
        for name in ("bitstream/manifest.json", "config/config.yaml", "config/overrides.yaml", "tensors.json"):
            assert (artifacts(folder, run) / name).is_file()
        assert list((artifacts(folder, run) / "plots").glob("*.png"))
    assert [run.data.tags["tracker.codec"] for run in (nnc, zstd, coarse)] == ["nnc", "zstd", "nnc"]
    assert coarse.data.params["codec.nnc.qp"] == "-8"
    assert coarse.info.run_name == "nnc qp=-8"
    config = yaml.safe_load((artifacts(folder, coarse) / "config" / "config.yaml").read_text())
    assert config["codec"]["nnc"]["qp"] == -8
    assert "codec.nnc.qp=-8" in yaml.safe_load((artifacts(folder, coarse) / "config" / "overrides.yaml").read_text())
    assert MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db").get_experiment_by_name("digits") is not None


def test_the_anchor_is_logged_once_for_each_task(folder: Path) -> None:
    search, report = runs(folder, "anchor")
    nnc, zstd, coarse = runs(folder, "compression")
    assert nnc.data.tags["tracker.anchor.run_id"] == zstd.data.tags["tracker.anchor.run_id"] == search.info.run_id
    assert coarse.data.tags["tracker.anchor.run_id"] == report.info.run_id
    assert search.data.tags["tracker.anchor.sha256"] == report.data.tags["tracker.anchor.sha256"]
    stored = load_file(artifacts(folder, search) / "anchor" / "model.safetensors")
    weights = Digits(name="digits").weights()
    assert stored.keys() == weights.keys()
    assert all(torch.equal(stored[name], weights[name]) for name in stored)


def test_sizes_are_those_of_the_files(folder: Path) -> None:
    for run in runs(folder, "compression"):
        size = sum(path.stat().st_size for path in (artifacts(folder, run) / "bitstream").iterdir())
        floats = [t for t in Digits(name="digits").weights().values() if t.is_floating_point()]
        anchor = 4 * sum(t.numel() for t in floats)
        metrics = run.data.metrics
        assert metrics["size/bitstream_bytes"] == size
        assert metrics["size/anchor_bytes"] == anchor
        assert metrics["size/rate_percent"] == pytest.approx(100 * size / anchor)
        assert metrics["size/bits_per_parameter"] == pytest.approx(32 * size / anchor)


def test_lossless_is_transparent_and_coarse_is_not(folder: Path) -> None:
    _, zstd, coarse = runs(folder, "compression")
    assert zstd.data.metrics["performance/drop"] == 0
    assert zstd.data.tags["tracker.transparent"] == "true"
    assert coarse.data.metrics["performance/drop"] > 0.005
    assert coarse.data.metrics["performance/drop_high"] > coarse.data.metrics["performance/drop"]
    assert coarse.data.tags["tracker.transparent"] == "false"
    assert "NOT transparent" in (folder / "stdout").read_text()


def test_the_bitstream_alone_decodes_to_what_was_evaluated(folder: Path, tmp_path: Path) -> None:
    *_, coarse = runs(folder, "compression")
    shutil.copytree(artifacts(folder, coarse) / "bitstream", tmp_path / "received")
    done = command(tmp_path, "received", "out.safetensors", module="tracker.decode")
    assert done.returncode == 0, done.stderr
    tensors = load_file(tmp_path / "out.safetensors")
    model = Digits(name="digits").build()
    model.load_state_dict(tensors)
    images, classes = DigitsData().arrays("report")
    with torch.inference_mode():
        top1 = float((model.eval()(images).argmax(1) == classes).double().mean())
    assert top1 == pytest.approx(coarse.data.metrics["top1/decoded"], abs=1e-6)
    other = command(tmp_path, "received", "out2.safetensors", "--sha256", "0" * 64, module="tracker.decode")
    assert other.returncode == 1
    assert not (tmp_path / "out2.safetensors").exists()


def test_the_table_of_tensors_adds_up(folder: Path) -> None:
    nnc, *_ = runs(folder, "compression")
    content = json.loads((artifacts(folder, nnc) / "tensors.json").read_text())
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [*rows[0]] == ["tensor", "shape", "stage", "step size", "bytes", "mean squared error"]
    weights = Digits(name="digits").weights()
    assert {row["tensor"] for row in rows} == set(weights)
    (first,) = [row for row in rows if row["tensor"] == "0.weight"]
    assert first["shape"] == "32x1x3x3"
    assert first["step size"] == 2**-8  # qp -32, density 2
    assert 0 < first["mean squared error"] < first["step size"] ** 2
    coded = (artifacts(folder, nnc) / "bitstream" / "model.nnc").stat().st_size
    assert coded - 60 < sum(row["bytes"] or 0 for row in rows) < coded


def test_tables_keep_precision_and_type(ready: Path) -> None:
    uri = f"sqlite:///{ready}/mlruns/mlflow.db"
    client = store.connect(uri)
    experiment = store.experiment_id(client, uri, "tables")
    rows = [
        {"layer": "a", "error": 1.5e-13, "rank": 38, "bytes": np.int64(2**53 + 1), "scores": [1, 2]},
        {"layer": "b", "error": np.float32(0.1), "rank": None, "bytes": 3, "scores": None, "late": True},
        {"layer": "c", "error": float("nan"), "rank": 7, "bytes": torch.tensor(4), "scores": []},
    ]
    with Run(client, uri, experiment, "name", "test", {}) as run:
        run.log_table(rows, "tensors.json")
        run.log_table(rows[:1], "stages/svd/layers.json")
        run.log_table([], "nothing.json")
    folder = ready / "mlruns" / "artifacts" / run.id / "artifacts"
    content = json.loads((folder / "tensors.json").read_text())
    assert content["columns"] == ["layer", "error", "rank", "bytes", "scores", "late"]
    assert content["data"] == [
        ["a", 1.5e-13, 38, 2**53 + 1, [1, 2], None],
        ["b", float(np.float32(0.1)), None, 3, None, True],
        ["c", None, 7, 4, [], None],
    ]
    assert [type(value) for value in content["data"][0][1:4]] == [float, int, int]
    assert not (folder / "nothing.json").exists()
    # As MLflow reads what its own log_table writes, which finds the tables by a tag.
    client.log_table(run.id, {"layer": ["a"]}, "theirs.json")
    tag = json.loads(client.get_run(run.id).data.tags["mlflow.loggedArtifacts"])
    assert tag == [{"path": p, "type": "table"} for p in ("tensors.json", "stages/svd/layers.json", "theirs.json")]
    for name, count in (("tensors.json", 3), ("stages/svd/layers.json", 1)):
        table = client.load_table(experiment, name, [run.id])
        assert len(table) == count and table["error"][0] == pytest.approx(1.5e-13) and table["rank"][0] == 38


def test_words_may_stand_before_and_behind_flags(here: Here, ready: Path) -> None:
    done = here("anchor=digits", "-m", "+codec=fp16,bf16", "--config-dir", "x=y", "seed=1")
    assert done.returncode == 1 and "x=y" in done.stderr  # the folder of --config-dir, which is not there
    done = here("anchor=digits", "-m", "+codec=fp16,bf16", "--multirun", "seed=1")
    assert done.returncode == 0, done.stderr
    assert {run.data.params["seed"] for run in runs(ready, "compression")} == {"1"}


def test_a_second_run_from_the_logged_configuration_gives_the_same_bytes(folder: Path) -> None:
    *_, coarse = runs(folder, "compression")
    words = yaml.safe_load((artifacts(folder, coarse) / "config" / "overrides.yaml").read_text())
    done = command(folder, *words, "tracking.experiment=again")
    assert done.returncode == 0, done.stderr
    *_, again = runs(folder, "compression")
    assert again.data.tags["tracker.bitstream.sha256"] == coarse.data.tags["tracker.bitstream.sha256"]
    assert again.data.metrics["performance/decoded"] == coarse.data.metrics["performance/decoded"]
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    client.delete_run(again.info.run_id)  # the other tests count runs
    for run in runs(folder, "anchor"):
        if client.get_experiment(run.info.experiment_id).name == "again":
            client.delete_run(run.info.run_id)


ZERO = """
import torch
from tracker.codecs import Transform

class Zero(Transform):
    layer: str
    def apply(self, model, context):
        inputs = next(iter(context.calibration()))
        assert inputs.shape[1:] == (1, 8, 8)
        with torch.no_grad():
            model.get_parameter(self.layer).zero_()
        return model
"""


def test_a_chain_with_a_transform_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(ZERO)
    (tmp_path / "conf" / "codec").mkdir(parents=True)
    (tmp_path / "conf" / "codec" / "zero.yaml").write_text(
        "# @package codec.zero\n_target_: mine.Zero\nlayer: 0.weight\n"
    )
    done = command(tmp_path, "--config-dir", "conf", "+codec=[zero,zstd]")
    assert done.returncode == 0, done.stderr
    (run,) = runs(tmp_path, "compression")
    assert run.data.tags["tracker.codec"] == "zero>zstd"
    content = json.loads((artifacts(tmp_path, run) / "tensors.json").read_text())
    errors = {row[0]: row[-1] for row in content["data"]}
    # The transform works in place, but errors and performance are against the anchor as it was.
    weight = Digits(name="digits").weights()["0.weight"]
    assert errors["0.weight"] == pytest.approx(float(weight.double().square().mean()))
    assert errors["3.weight"] == 0
    assert run.data.metrics["performance/drop"] > 0.1
