"""The flavor ``nnc``: what is stored, what comes back, what is served, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Here, runs
from torch import nn

import tracker.flavor
from tracker.anchors.base import Anchor
from tracker.anchors.checkpoint import Checkpoint
from tracker.anchors.digits import Digits
from tracker.bitstream import decode_bitstream, encode_bitstream
from tracker.codecs.base import Context
from tracker.codecs.chain import build_codec
from tracker.data.digits import Digits as DigitsData
from tracker.errors import TrackerError
from tracker.flavor.architecture import read_architecture
from tracker.flavor.signature import signature
from tracker.frameworks import load_framework

OWN = """
import torch
def small(width=3):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, width))
"""


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, torch.Tensor]]]:
    """An anchor's weights as an int8 bitstream, in a model's folder; and the tensors in the bitstream."""

    def store(anchor: Anchor, name: str = "model", **options) -> tuple[Path, dict[str, torch.Tensor]]:
        framework = load_framework(anchor.framework)
        model = anchor.build()
        weights = dict(anchor.weights())
        framework.fill(model, weights, "the weights")
        codec = build_codec({"int8": {"_target_": "tracker.codecs.integers.Int8"}})
        bitstream = tmp_path / f"{name}-bitstream"
        bitstream.mkdir()
        context = Context(anchor.predict, lambda: iter(()), 0, "cpu", framework=anchor.framework)
        encode_bitstream(codec, framework.state(model, weights.keys()), model, bitstream, context)
        tracker.flavor.save_model(bitstream, tmp_path / name, anchor, **options)
        return tmp_path / name, decode_bitstream(bitstream)

    return store


def test_what_comes_back_is_what_was_decoded(stored: Callable) -> None:
    path, tensors = stored(Digits(name="digits"))
    state = tracker.flavor.load_model(str(path)).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    weights = Digits(name="digits").weights()
    assert any(not torch.equal(state[name], weights[name]) for name in weights)  # int8 has changed them
    assert not [file for file in path.rglob("*") if file.suffix in (".pt", ".pth", ".safetensors", ".h5")]


def test_a_factory_of_ones_own(stored: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_factory.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).state_dict(), tmp_path / "w.pt")
    factory = {"_target_": "own_factory.small", "width": 5}
    path, _ = stored(Checkpoint(name="own", weights_file=tmp_path / "w.pt", factory=factory))
    (tmp_path / "w.pt").unlink()  # the receiver does not have it
    with pytest.raises(TrackerError, match="TRACKER_TRUSTED=own_factory"):
        tracker.flavor.load_model(str(path))
    assert tracker.flavor.load_model(str(path), trusted=["own_factory"])(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    monkeypatch.setenv("TRACKER_TRUSTED", "numpy,own_factory")
    assert isinstance(tracker.flavor.load_model(str(path)), nn.Module)


def test_a_program_travels_without_its_weights(stored: Callable, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 400)).eval()
    example = torch.randn(2, 1, 8, 8)
    torch.export.save(
        torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)), tmp_path / "m.pt2"
    )
    path, tensors = stored(Checkpoint(name="program", weights_file=tmp_path / "m.pt2"))
    program = (path / "architecture" / "program.pt2.zst").stat().st_size
    assert program < 0.1 * (tmp_path / "m.pt2").stat().st_size
    (tmp_path / "m.pt2").unlink()
    model.load_state_dict({**model.state_dict(), **tensors})
    served = tracker.flavor._load_pyfunc(str(path), {"device": "cpu"})
    with torch.inference_mode():
        expected = model(example)
    assert np.allclose(served.predict(example.numpy()), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", ["digits", "file"])
def test_keras(stored: Callable, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("tensorflow")
    from tracker.anchors.keras_digits import KerasDigits
    from tracker.anchors.keras_file import KerasFile

    anchor: Anchor = KerasDigits(name="keras_digits", epochs=1)
    if kind == "file":
        model = anchor.build()
        load_framework("keras").fill(model, anchor.weights(), "the weights")
        model.save(tmp_path / "m.keras")
        anchor = KerasFile(name="file", file=tmp_path / "m.keras")
    path, tensors = stored(anchor)
    (tmp_path / "m.keras").unlink(missing_ok=True)
    loaded = tracker.flavor.load_model(str(path))
    state = load_framework("keras").state(loaded, ())
    assert tensors.keys() <= state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    inputs = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    served = tracker.flavor._load_pyfunc(str(path)).predict(inputs)
    assert np.allclose(served, np.asarray(loaded(inputs, training=False)), atol=1e-6)
    if kind == "file":
        file = path / "architecture" / "model.keras"
        assert file.stat().st_size < 0.5 * sum(tensor.nbytes for tensor in tensors.values())


HOSTILE = {
    "another package": ({"_target_": "wicked.Anchor"}, "no package that is trusted"),
    "a module of the library": ({"_target_": "os.system", "command": "touch touched"}, "no package that is trusted"),
    "through a module of ours": ({"_target_": "tracker.anchors.files.torch.load", "f": "x"}, "no package that is"),
    "ours, no anchor": ({"_target_": "tracker.anchors.files.read_weights", "path": "x"}, "not an anchor"),
    "ours, elsewhere": ({"_target_": "tracker.cache.cache_folder"}, "no package that is trusted"),
    "a factory": (
        {"_target_": "tracker.anchors.checkpoint.Checkpoint", "weights_file": "w", "name": "x"}
        | {"factory": {"_target_": "wicked.Anchor"}},
        "the factory wicked.Anchor",
    ),
    "through a trusted package": (
        {"_target_": "tracker.anchors.checkpoint.Checkpoint", "weights_file": "w", "name": "x"}
        | {"factory": {"_target_": "torchvision.models.resnet.partial", "func": "x"}},
        "the factory torchvision",
    ),
    "a transform": (
        {"_target_": "tracker.anchors.checkpoint.Checkpoint", "weights_file": "w", "name": "x"}
        | {"transform": {"_target_": "wicked.Anchor"}},
        "the transform wicked",
    ),
    "a class": (
        {"_target_": "tracker.anchors.keras_file.KerasFile", "name": "x", "file": "./m.keras"}
        | {"custom": {"Layer": "wicked.Anchor"}},
        "the class Layer wicked",
    ),
    "a path that climbs": (
        {"_target_": "tracker.anchors.checkpoint.Checkpoint", "weights_file": "./../bitstream/model.pt2", "name": "x"},
        "not in its folder",
    ),
    "an unknown key": ({"_target_": "tracker.anchors.digits.Digits", "name": "x", "run": 1}, "architecture.run"),
    "no target": ({"name": "x"}, "names no _target_"),
    "a number": (3, "names no _target_"),
}


@pytest.mark.parametrize("node,words", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_architectures_are_refused_before_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: object, words: str
) -> None:
    (tmp_path / "wicked.py").write_text("import pathlib; pathlib.Path('touched').touch()")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "architecture.json").write_text(json.dumps(node))
    if isinstance(node, dict) and "custom" in node:
        pytest.importorskip("tensorflow")
    with pytest.raises(TrackerError, match=words) as refused:
        read_architecture(tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "touched").exists()
    assert "wicked" not in sys.modules


def test_a_symbolic_link_for_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "architecture").mkdir()
    (tmp_path / "architecture" / "m.pt2").symlink_to("/etc/hostname")
    node = {"_target_": "tracker.anchors.checkpoint.Checkpoint", "weights_file": "./m.pt2", "name": "x"}
    (tmp_path / "architecture.json").write_text(json.dumps(node))
    with pytest.raises(TrackerError, match="not a plain file"):
        read_architecture(tmp_path)


@pytest.mark.parametrize("load", [tracker.flavor.load_model, tracker.flavor._load_pyfunc])
def test_damaged_models_are_refused(stored: Callable, load: Callable) -> None:
    path, _ = stored(Digits(name="digits"))
    coded = next(file for file in (path / "bitstream").iterdir() if file.name not in ("manifest.json", "side.zst"))
    kept = coded.read_bytes()
    coded.write_bytes(bytes([kept[0] ^ 1]) + kept[1:])
    with pytest.raises(TrackerError, match="damaged"):
        load(str(path))
    coded.write_bytes(kept)
    load(str(path))
    # Another bitstream, whole in itself, is not the one that was logged.
    text = (path / "MLmodel").read_text()
    digest = json.loads((path / "bitstream" / "manifest.json").read_text())["sha256"]
    assert digest in text
    (path / "MLmodel").write_text(text.replace(digest, "a" * 64))
    with pytest.raises(TrackerError, match="not aaaa"):
        load(str(path))


def test_signatures() -> None:
    one = [torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)]
    found, example = signature(one, lambda given: given.mean(axis=(2, 3)))
    assert [spec.shape for spec in found.inputs.inputs] == [(-1, 3, 8, 8)]
    assert [spec.shape for spec in found.outputs.inputs] == [(-1, 3)]
    assert example.shape == (1, 3, 8, 8) and example.dtype == np.float32
    sizes = [torch.zeros(1, 90, 70), torch.zeros(1, 90, 80)]
    found, example = signature(sizes, lambda given: given)
    assert [spec.shape for spec in found.inputs.inputs] == [(-1, 1, 90, -1)]
    assert [spec.shape for spec in found.outputs.inputs] == [(-1, -1, -1, -1)]
    assert example.shape == (1, 1, 90, 64)
    texts = [{"ids": torch.zeros(7, dtype=torch.int64), "mask": torch.ones(7, dtype=torch.int64)}]
    found, example = signature(texts, lambda given: given["ids"][..., None].astype(np.float32))
    assert [(spec.name, spec.shape) for spec in found.inputs.inputs] == [("ids", (-1, 7)), ("mask", (-1, 7))]
    assert set(example) == {"ids", "mask"}


def test_inputs_in_all_their_forms(stored: Callable) -> None:
    import mlflow
    import pandas as pd

    images = DigitsData().arrays("report")[0][:4]
    given, example = signature(list(images), lambda batch: np.zeros((1, 10), np.float32))
    path, _ = stored(Digits(name="digits"), signature=given, input_example=example)
    with torch.inference_mode():
        expected = tracker.flavor.load_model(str(path))(images).numpy()
    served = mlflow.pyfunc.load_model(str(path))
    assert np.array_equal(served.predict(images.numpy()), expected)
    plain = tracker.flavor._load_pyfunc(str(path), {"device": "cpu"})
    for form in (images, images.numpy(), images.double().numpy(), images.tolist()):
        assert np.array_equal(plain.predict(form), expected)
    assert np.array_equal(plain.predict(pd.DataFrame({"image": [image.tolist() for image in images]})), expected)
    with pytest.raises(TrackerError, match="not an option"):
        tracker.flavor._load_pyfunc(str(path), {"devise": "cpu"})
    with pytest.raises(TrackerError, match="array of numbers"):
        plain.predict(np.array(["a", "b"]))


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture
def logged(here: Here, ready: Path):
    """A run's logged model."""
    from mlflow import MlflowClient

    done = here("+codec=nnc")
    assert done.returncode == 0, done.stderr
    (run,) = runs(ready, "compression")
    (output,) = run.outputs.model_outputs
    return run, MlflowClient(f"sqlite:///{ready}/mlruns/mlflow.db").get_logged_model(output.model_id)


def test_a_run_logs_its_model_with_its_metrics(ready: Path, logged: tuple) -> None:
    run, model = logged
    assert model.status == "READY" and model.source_run_id == run.info.run_id and model.model_type == "nnc"
    assert {metric.key: metric.value for metric in model.metrics} == run.data.metrics
    (dataset,) = run.inputs.dataset_inputs
    assert {(metric.dataset_name, metric.dataset_digest) for metric in model.metrics} == {
        (dataset.dataset.name, dataset.dataset.digest)
    }
    for tag in ("tracker.codec", "tracker.bitstream.sha256", "tracker.transparent"):
        assert model.tags[tag] == run.data.tags[tag]
    folder = ready / "mlruns" / "artifacts" / "models" / model.model_id / "artifacts"
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {"MLmodel", "architecture.json", "bitstream/manifest.json", "bitstream/model.nnc"} <= names
    assert {"requirements.txt", "input_example.json", "serving_input_example.json"} <= names
    requirements = (folder / "requirements.txt").read_text()
    assert "nncodec==" in requirements and "aimet" not in requirements and "optuna" not in requirements


def test_served_over_http_it_gives_what_the_decoded_model_gives(ready: Path, logged: tuple) -> None:
    _, model = logged
    port = free_port()
    images = DigitsData().arrays("report")[0][:200]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{ready}/mlruns/mlflow.db"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    words = ["models", "serve", "-m", f"models:/{model.model_id}", "--env-manager", "local", "-p", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words, "-h", "127.0.0.1"],
        cwd=ready,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    body = json.dumps({"inputs": images.numpy().tolist()}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
    try:
        until = time.time() + 180
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    given = json.load(answer)["predictions"]
                break
            except urllib.error.URLError as error:
                assert not isinstance(error, urllib.error.HTTPError), error.read()
                assert process.poll() is None and time.time() < until
                time.sleep(0.5)
    finally:
        os.killpg(process.pid, 15)
        process.wait()
    folder = ready / "mlruns" / "artifacts" / "models" / model.model_id / "artifacts"
    with torch.inference_mode():
        expected = tracker.flavor.load_model(str(folder))(images).numpy()
    assert np.array_equal(np.array(given, np.float32), expected)


def test_a_receiver_needs_neither_aimet_nor_optuna(ready: Path, here: Here) -> None:
    pytest.importorskip("aimet_torch")
    assert here("+codec=[svd,nnc]", "codec.svd.ratio=0.7").returncode == 0
    (run,) = runs(ready, "compression")
    folder = ready / "mlruns" / "artifacts" / "models" / run.outputs.model_outputs[0].model_id / "artifacts"
    shutil.copytree(folder, ready / "elsewhere")
    code = (
        "import sys\n"
        "for name in ('aimet_torch', 'optuna', 'hydra'): sys.modules[name] = None\n"
        "import numpy, mlflow\n"
        "model = mlflow.pyfunc.load_model('elsewhere')\n"
        "print(model.predict(numpy.zeros((2, 1, 8, 8), 'float32')).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ready, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "(2, 10)", done.stderr


def test_log_model_of_an_active_run(ready: Path, logged: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    run, _ = logged
    monkeypatch.chdir(ready)
    mlflow.set_tracking_uri(f"sqlite:///{ready}/mlruns/mlflow.db")
    bitstream = ready / "mlruns" / "artifacts" / run.info.run_id / "artifacts" / "bitstream"
    with mlflow.start_run(experiment_id=run.info.experiment_id):
        info = tracker.flavor.log_model(bitstream, {"_target_": "tracker.anchors.digits.Digits", "name": "d"}, name="d")
    assert info.flavors["nnc"]["codec"] == ["nnc"]
    assert isinstance(tracker.flavor.load_model(info.model_uri), nn.Module)


def test_a_run_that_fails_leaves_no_model_that_looks_finished(
    here: Here, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def fails(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", fails)
    done = here("+codec=int8")
    assert done.returncode != 0 and "no space left" in done.stderr
    (run,) = runs(ready, "compression")
    assert run.info.status == "FAILED"
    client = MlflowClient(f"sqlite:///{ready}/mlruns/mlflow.db")
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert model.status == "FAILED"


def test_the_model_of_a_run_that_fails_is_no_result(here: Here, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    from tracker.tracking.run import Run

    before = Run.set_tags

    def failing(self: Run, tags: dict[str, str]) -> None:
        if "tracker.bitstream.sha256" in tags:
            raise OSError("the store is gone")
        before(self, tags)

    monkeypatch.setattr(Run, "set_tags", failing)
    assert here("+codec=int8").returncode == 1
    (run,) = runs(ready, "compression")
    assert run.info.status == "FAILED"
    client = MlflowClient(f"sqlite:///{ready}/mlruns/mlflow.db")
    (output,) = run.outputs.model_outputs
    assert client.get_logged_model(output.model_id).status == "FAILED"


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        (None, None),  # not tracker==1.2: the index has a package of that name that is not this one
        ({"url": "file:///home/me/tracker", "dir_info": {"editable": True}}, None),
        ({"url": "https://example.org/t.tar.gz", "archive_info": {}}, "tracker @ https://example.org/t.tar.gz"),
        (
            {"url": "https://example.org/t.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "tracker @ git+https://example.org/t.git@abc",
        ),
    ],
)
def test_where_a_receiver_gets_tracker(
    origin: dict | None, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEP 610's direct_url.json, as pip writes it."""
    import importlib.metadata as metadata

    class Installed:
        version = "1.2"

        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    real = metadata.distribution
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed() if name == "tracker" else real(name))
    named = [line for line in tracker.flavor.get_default_pip_requirements() if line.startswith("tracker")]
    assert named == ([wanted] if wanted else [])
    monkeypatch.setenv("TRACKER_REQUIREMENT", "tracker @ https://example.org/other.tar.gz")
    assert tracker.flavor.get_default_pip_requirements()[0] == "tracker @ https://example.org/other.tar.gz"


def test_a_checkout_is_the_commit_of_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the password of its address; and of no use where that is not one of the network."""
    from tracker.flavor import model

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(tmp_path), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert model._of_checkout(str(tmp_path)) is None
    git("init", "-q")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "first")
    git("remote", "add", "origin", "https://me:secret@example.org/t.git")
    assert model._of_checkout(str(tmp_path)) == f"tracker @ git+https://example.org/t.git@{git('rev-parse', 'HEAD')}"
    git("remote", "set-url", "origin", "/home/me/t.git")
    assert model._of_checkout(str(tmp_path)) is None
