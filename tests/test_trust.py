"""What a receiver refuses of a model that anyone may have written: files elsewhere, code, pickles, the network."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torchvision import models

import tracker.flavor
from tracker.anchors.checkpoint import Checkpoint
from tracker.anchors.digits import Digits
from tracker.anchors.timm import Timm
from tracker.anchors.torchvision import Torchvision
from tracker.anchors.transformers import Transformers
from tracker.bitstream import decode_bitstream, encode_bitstream
from tracker.bitstream.manifest import _canonical, _digest
from tracker.codecs.base import Context
from tracker.codecs.chain import build_codec
from tracker.decode import main as decode
from tracker.errors import TrackerError
from tracker.flavor.architecture import read_architecture, rebuild, write_architecture
from tracker.receiver import decode_model

OWN = """
import urllib.request
from pathlib import Path
import torch
Path('touched').touch()
def small(width=3):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, width))
def fetching(port):
    urllib.request.urlopen(f'http://127.0.0.1:{port}/').read()
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored model of the digits network."""
    folder = tmp_path_factory.mktemp("digits")
    anchor = Digits(name="digits", width=4, epochs=1)
    bitstream = folder / "bitstream"
    bitstream.mkdir()
    codec = build_codec({"int8": {"_target_": "tracker.codecs.integers.Int8"}})
    model = anchor.build()
    encode_bitstream(codec, model.state_dict(), model, bitstream, Context(anchor.predict, lambda: iter(()), 0, "cpu"))
    tracker.flavor.save_model(bitstream, folder / "model", anchor)
    return folder / "model"


@pytest.fixture
def model(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, the current folder being an empty one, and code of somebody's that can be imported."""
    shutil.copytree(digits, tmp_path / "model")
    (tmp_path / "code").mkdir()
    (tmp_path / "here").mkdir()
    for name in ("wicked", "wicked_other"):
        (tmp_path / "code" / f"{name}.py").write_text(OWN)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "model"


def refused(call: Callable, *arguments: object, **keywords: object) -> str:
    """The line by which a call refuses, having left nothing in the current folder."""
    with pytest.raises(TrackerError) as caught:
        call(*arguments, **keywords)
    assert not list(Path.cwd().iterdir())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def named(model: Path, /, **node: object) -> Path:
    """The model with another architecture."""
    (model / "architecture").mkdir(exist_ok=True)
    (model / "architecture.json").write_text(json.dumps({"name": "x", **node}))
    return model


def forged(model: Path, **change: object) -> Path:
    """The model with another manifest whose digest is right."""
    folder = model / "bitstream"
    content = {**json.loads((folder / "manifest.json").read_text()), **change}
    content.pop("sha256")
    digest = _digest(folder, content)
    (folder / "manifest.json").write_bytes(_canonical({**content, "sha256": digest}))
    described(model, lambda flavors: flavors["nnc"].update(sha256=digest))
    return model


def described(model: Path, change: Callable) -> None:
    """Change the flavors of MLmodel."""
    content = yaml.safe_load((model / "MLmodel").read_text())
    change(content["flavors"])
    (model / "MLmodel").write_text(yaml.safe_dump(content))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("touched",)


@pytest.mark.parametrize("load", [tracker.flavor.load_model, tracker.flavor._load_pyfunc])
@pytest.mark.parametrize("where", ["./logged", "/{}/architecture/logged", "models:/digits/1", "http://127.0.0.1:9/x"])
@pytest.mark.parametrize("allowed", [True, False])
def test_no_store_is_asked_and_nothing_unpickled(model: Path, load: Callable, where: str, allowed: bool) -> None:
    data = model / "architecture" / "logged" / "data"
    data.mkdir(parents=True)
    torch.save(nn.Linear(1, 1), data / "model.pth", pickle_module=pickle)
    (data / "model.pth").write_bytes(pickle.dumps(Evil()))
    (data / "pickle_module_info.txt").write_text("mlflow.pytorch.pickle_module")
    (data.parent / "MLmodel").write_text("flavors: {pytorch: {model_data: data, pytorch_version: '2'}}")
    uri = where.format(model)
    named(model, _target_="tracker.anchors.mlflow.MLflow", uri=uri, allow_pickle=allowed)
    assert "neither fetches nor unpickles" in refused(load, str(model))


def test_keras_models_of_mlflow_are_not_unpickled_either(model: Path) -> None:
    pytest.importorskip("tensorflow")
    target = "tracker.anchors.keras_mlflow.KerasMLflow"
    named(model, _target_=target, uri="./logged", allow_pickle=True)
    assert "neither fetches nor unpickles" in refused(tracker.flavor.load_model, str(model))


CHECKPOINT = "tracker.anchors.checkpoint.Checkpoint"


@pytest.mark.parametrize("file", ["/{}/outside.pt2", "../outside.pt2", "./../outside.pt2", "/dev/zero.pt2", "a\0.pt2"])
def test_files_elsewhere_are_refused(model: Path, file: str) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), model.parent / "outside.pt2")
    named(model, _target_=CHECKPOINT, weights_file=file.format(model.parent))
    assert "not in its folder" in refused(tracker.flavor.load_model, str(model))


def test_a_file_of_the_current_folder_is_not_that_of_the_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, model.parent / "program.pt2")
    monkeypatch.chdir(model.parent)
    named(model, _target_=CHECKPOINT, weights_file="program.pt2")
    with pytest.raises(TrackerError, match=r"architecture/program\.pt2 does not exist"):
        tracker.flavor.load_model(str(model))


@pytest.mark.parametrize("what", ["architecture", "architecture.json", "bitstream", "architecture/program.pt2"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_and_pipes_are_refused_without_opening_them(model: Path, what: str, kind: str) -> None:
    named(model, _target_=CHECKPOINT, weights_file="./program.pt2")
    path = model / what
    if path.exists():
        path.rename(model.parent / "moved")
    path.symlink_to(model.parent / "moved") if kind == "link" else os.mkfifo(path)
    assert "not a plain" in refused(tracker.flavor.load_model, str(model))


def test_a_pipe_for_mlmodel_is_refused(model: Path) -> None:
    (model / "MLmodel").unlink()
    os.mkfifo(model / "MLmodel")
    assert "not a plain file" in refused(tracker.flavor.load_model, str(model))


@pytest.mark.parametrize("trusted", [(), ["wicked.models", "wick", ""], "wicked.models"])
def test_coders_and_kinds_of_others_are_not_imported(model: Path, trusted: object) -> None:
    """Nor those of the package of which a module is trusted."""

    def decoded(path: str, trusted: object) -> None:
        decode_model(Path(path) / "bitstream", Digits(name="digits", width=4).build(), trusted=trusted)

    forged(model, coder="wicked.Coder")
    for call in (tracker.flavor.load_model, decoded):
        assert "coder wicked.Coder" in refused(call, str(model), trusted=trusted)
    forged(model, coder="tracker.codecs.integers.Int8", structure=[["wicked", {"0": 1}]])
    for call in (tracker.flavor.load_model, decoded):
        assert "'wicked'" in refused(call, str(model), trusted=trusted)
    assert "wicked" not in sys.modules


@pytest.mark.parametrize("package", ["torchvision", "keras"])
def test_a_zoo_is_trusted_for_factories_only(model: Path, package: str) -> None:
    zoo = {"torchvision": "torchvision.models", "keras": "keras.applications"}[package]
    for path in (f"{zoo}.Coder", f"{package}.datasets.Coder"):
        assert "of no package that is trusted" in refused(tracker.flavor.load_model, str(forged(model, coder=path)))
    forged(model, coder="tracker.codecs.integers.Int8", structure=[[zoo, {"0": 1}]])
    assert "structure asks for" in refused(tracker.flavor.load_model, str(model))
    forged(model, structure=[])
    named(model, _target_=f"{zoo}.ResNet50")
    assert "of no package that is trusted" in refused(tracker.flavor.load_model, str(model))


def test_decode_refuses_what_a_receiver_would(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(model / "bitstream"), str(model / "out.safetensors")]
    forged(model, structure=[["wicked", {"0": 1}]])
    assert decode(words) == 1
    forged(model, structure=[], coder="x" * 200_000)
    assert decode(words) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") and len(line) < 400 for line in lines)


LOUD = """
import os
from tracker.codecs.integers import Int8
class Loud(Int8):
    def decode(self, folder):
        os.write(2, b'a word of the decoder\\n')
        raise ValueError('no stream')
"""


def test_decode_says_one_line_whatever_a_decoder_says(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (model.parent / "code" / "wicked_loud.py").write_text(LOUD)
    forged(model, coder="wicked_loud.Loud")
    assert decode([str(model / "bitstream"), str(model / "out.safetensors"), "--trust", "wicked_loud"]) == 1
    told = capfd.readouterr().err
    assert told.startswith("error: ") and "no stream" in told and told.count("\n") == 1


def test_an_architecture_that_is_nested_too_deep_is_refused(model: Path) -> None:
    deep = json.dumps({"_target_": CHECKPOINT, "name": "x", "weights_file": "w", "factory": {"a": 1}})
    (model / "architecture.json").write_text(deep.replace("1", "[" * 900 + "]" * 900))
    assert "damaged" in refused(tracker.flavor.load_model, str(model))


def test_a_file_named_twice_or_without_tensors_is_refused(model: Path) -> None:
    files = json.loads((model / "bitstream" / "manifest.json").read_text())["files"]
    assert "twice" in refused(decode_bitstream, forged(model, files=[*files, files[0]]) / "bitstream")

    class Empty(type(build_codec({"int8": {"_target_": "tracker.codecs.integers.Int8"}}).coder)):
        def decode(self, folder: Path) -> dict:
            return {}

    forged(model, files=files)
    assert "there is no tensor in" in refused(decode_bitstream, model / "bitstream", Empty())


ZOO = [
    ({"_target_": "tracker.anchors.timm.Timm", "model": "hf_hub:evil/x"}, "asks timm for hf_hub:evil/x"),
    ({"_target_": "tracker.anchors.timm.Timm", "model": "local-dir:/tmp"}, "asks timm for local-dir:/tmp"),
    (
        {"_target_": "tracker.anchors.timm.Timm", "model": "resnet18", "options": {"checkpoint_path": "/x"}},
        "asks timm for option checkpoint_path",
    ),
    (
        {"_target_": "tracker.anchors.timm.Timm", "model": "resnet18", "options": {"pretrained_cfg": {"file": "/x"}}},
        "asks timm for option pretrained_cfg",
    ),
    ({"_target_": "tracker.anchors.transformers.Transformers", "model": "gpt2"}, "'gpt2', which did not come with it"),
    ({"_target_": "tracker.anchors.transformers.Transformers", "model": "/etc"}, "'/etc', which did not come with it"),
    (
        {"_target_": CHECKPOINT, "weights_file": "none.safetensors"}
        | {"factory": {"_target_": "torchvision.models.get_model", "name": "resnet18", "weights": "DEFAULT"}},
        "asks for trained weights",
    ),
    (
        {"_target_": CHECKPOINT, "weights_file": "none.safetensors"}
        | {"factory": {"_target_": "torchvision.models.resnet18", "num_classes": 10**11}},
        "",
    ),
    (
        {"_target_": "tracker.anchors.torchvision.Torchvision", "model": "resnet18", "weights_enum": None}
        | {"options": {"num_classes": 10**11}},
        "cannot be built here (RuntimeError",
    ),
]


@pytest.mark.parametrize(("node", "words"), ZOO)
def test_zoos_give_architectures_only(model: Path, node: dict, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(node["_target_"].split(".")[2].replace("checkpoint", "torch"))

    def refuse(*_: object) -> None:
        raise AssertionError("the network is tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert words in refused(tracker.flavor.load_model, str(named(model, **node)))


def test_the_network_is_out_of_reach_while_an_architecture_is_built(model: Path, tmp_path: Path) -> None:
    """Also for a factory that is trusted; a connection that this process makes itself shows that it would work."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        named(model, _target_=CHECKPOINT, weights_file="none.safetensors")
        node = json.loads((model / "architecture.json").read_text())
        node["factory"] = {"_target_": "wicked.fetching", "port": port}
        (model / "architecture.json").write_text(json.dumps(node))
        with pytest.raises(TrackerError, match="something of the network"):
            tracker.flavor.load_model(str(model), trusted="wicked")
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
        socket.create_connection(("127.0.0.1", port)).close()
    assert not os.environ.get("HF_HUB_OFFLINE")


def received(anchor, path: Path):
    """The anchor as a receiver has it."""
    path.mkdir()
    write_architecture(anchor, path)
    return read_architecture(path)


def same(one: nn.Module, other: nn.Module) -> bool:
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (one, other)]
    return shapes[0] == shapes[1] and str(one) == str(other)


@pytest.mark.parametrize(
    ("name", "member", "builder"),
    [
        ("resnet18", "IMAGENET1K_V1", {"num_classes": 1000}),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", {"image_size": 384}),
        ("ssdlite320_mobilenet_v3_large", "COCO_V1", {"weights_backbone": None}),
    ],
)
def test_torchvision_is_built_as_for_its_weights_without_them(
    name: str, member: str, builder: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    anchor = received(Torchvision(name="x", model=name, weights_enum=member), tmp_path / "model")
    assert same(rebuild(anchor), models.get_model(name, weights=None, **builder))
    assert not (tmp_path / "hub").exists()


def test_torchvision_keeps_what_a_builder_changes_beside_the_weights(tmp_path: Path) -> None:
    anchor = Torchvision(name="x", model="fasterrcnn_mobilenet_v3_large_320_fpn", weights_enum="COCO_V1")
    built = rebuild(received(anchor, tmp_path / "model"))
    kinds = {type(module).__name__ for module in built.modules()}
    assert "BatchNorm2d" not in kinds and "FrozenBatchNorm2d" in kinds


def test_transformers_travel_as_their_configuration(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=40, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    anchor = received(Transformers(name="x", model=str(tmp_path / "gpt2")), tmp_path / "model")
    shutil.rmtree(tmp_path / "gpt2")
    assert same(rebuild(anchor), transformers.GPT2LMHeadModel(config))


def test_a_timm_model_of_a_folder_travels_as_one_of_timms(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    settings = {"architecture": "resnet18", "num_classes": 7, "model_args": {"in_chans": 1}}
    content = {**settings, "pretrained_cfg": {"num_classes": 7, "input_size": [3, 64, 64]}}
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "config.json").write_text(json.dumps(content))
    anchor = received(Timm(name="x", model=f"local-dir:{tmp_path / 'local'}"), tmp_path / "model")
    shutil.rmtree(tmp_path / "local")
    assert same(rebuild(anchor), timm.create_model("resnet18", num_classes=7, in_chans=1))


def test_what_no_receiver_would_take_is_told_to_the_sender(tmp_path: Path) -> None:
    factory = {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"}
    (tmp_path / "model").mkdir()
    with pytest.raises(TrackerError, match="asks for trained weights"):
        write_architecture(Checkpoint(name="x", weights_file=tmp_path / "w.pt", factory=factory), tmp_path / "model")


@pytest.mark.parametrize("load", [tracker.flavor.load_model, tracker.flavor._load_pyfunc])
@pytest.mark.parametrize(
    "change", [lambda all_: all_.pop("nnc"), lambda all_: all_.update(nnc="x"), lambda all_: all_["nnc"].pop("sha256")]
)
def test_a_model_without_the_digest_is_refused(model: Path, load: Callable, change: Callable) -> None:
    described(model, change)
    assert "no flavor nnc with its bitstream's digest" in refused(load, str(model))


def test_a_caller_of_pyfunc_chooses_the_device_and_no_model_chooses_what_is_trusted(model: Path) -> None:
    import mlflow

    inputs = np.zeros((2, 1, 8, 8), np.float32)
    served = mlflow.pyfunc.load_model(str(model), model_config={"device": "cpu"})
    assert served._model_impl.device == "cpu" and served.predict(inputs).shape == (2, 10)
    with pytest.raises(TrackerError, match="device=moon"):
        mlflow.pyfunc.load_model(str(model), model_config={"device": "moon"})
    named(model, _target_=CHECKPOINT, weights_file="none.safetensors", factory={"_target_": "wicked.small"})
    described(model, lambda flavors: flavors["python_function"]["config"].update(trusted=["wicked"]))
    for config in ({}, {"trusted": ["wicked"]}):
        assert "model_config.trusted is not an option" in refused(
            mlflow.pyfunc.load_model, str(model), model_config=config
        )
    assert "wicked" not in sys.modules


def test_code_that_travels_is_found_by_the_names_that_are_trusted_alone(model: Path, tmp_path: Path) -> None:
    (model / "code").mkdir()
    for name in ("carried_one", "carried_two"):
        (model / "code" / f"{name}.py").write_text(OWN.replace("Path('touched').touch()", ""))
    described(model, lambda flavors: flavors["nnc"].update(code="code"))
    node = {"_target_": CHECKPOINT, "weights_file": "none.safetensors", "factory": {"_target_": "carried_two.small"}}
    named(model, **node)
    kept = list(sys.meta_path)
    try:
        with pytest.raises(TrackerError, match="of no package that is trusted"):
            tracker.flavor.load_model(str(model), trusted="carried_one")
        with pytest.raises(ModuleNotFoundError):
            __import__("carried_two")
        with pytest.raises(TrackerError, match="do not fit the architecture"):
            tracker.flavor.load_model(str(model), trusted=["carried_two"])
        assert sys.modules["carried_two"].__file__ == str(model / "code" / "carried_two.py")
        described(model, lambda flavors: flavors["nnc"].update(code="../code"))
        with pytest.raises(TrackerError, match="not in its folder"):
            tracker.flavor.load_model(str(model), trusted=["carried_two"])
    finally:
        sys.meta_path[:] = kept
        sys.modules.pop("carried_two", None)
