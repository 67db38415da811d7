"""Anchors from zoos, hubs, MLflow and a user's own files: what they give, and how they refuse."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tracker.anchors import exported
from tracker.anchors.checkpoint import Checkpoint
from tracker.anchors.mlflow import MLflow
from tracker.anchors.timm import Timm
from tracker.anchors.torchvision import Torchvision, weights_file
from tracker.anchors.transformers import Transformers
from tracker.codecs.base import Transform
from tracker.errors import TrackerError
from tracker.flavor.architecture import read_architecture, rebuild, write_architecture
from tracker.frameworks.pytorch import FRAMEWORK as PYTORCH

WORDS = ["<unk>", "<end>", "the", "cat", "sat", "on", "a", "mat", "dog", "ran"]
FACTORY = """
from torch import nn


def small(width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, 3),
    )


def halved(image, size=32):
    return image.resize((size, size))


def number():
    return 3


def breaks():
    raise ValueError("not\\ntoday")
"""


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def message(call) -> str:
    """The one line of the TrackerError that a call raises."""
    with pytest.raises(TrackerError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def filled(anchor) -> nn.Module:
    """The anchor's model as the run fills it; NaN wherever the weights leave something out."""
    model = anchor.build()
    PYTORCH.fill(model, anchor.weights(), "the weights")
    assert all(bool(t.isfinite().all()) for t in model.state_dict().values() if t.is_floating_point())
    return model.eval()


def last_line(completed: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in completed.stderr, completed.stderr
    lines = [line for line in completed.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, completed.stderr
    return lines[0]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name resolves and nothing connects, also on a machine that has a network."""

    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield
    os.environ.pop("HF_HUB_OFFLINE", None)  # the anchors have set it


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of six images of 64x64: one grey, one with transparency."""
    folder = tmp_path_factory.mktemp("images")
    values = np.random.default_rng(0)
    for label in range(3):
        (folder / f"class{label}").mkdir()
        for index in range(6):
            image = Image.fromarray(values.integers(0, 255, (64, 64, 3), dtype=np.uint8))
            mode = {4: "L", 5: "RGBA"}.get(index, "RGB")
            image.convert(mode).save(folder / f"class{label}" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a factory's module, and its weights in every format."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_models.py").write_text(FACTORY)
    sys.path.insert(0, str(folder))
    try:
        import own_models
    finally:
        sys.path.remove(str(folder))
    torch.manual_seed(0)
    model = own_models.small().eval()
    torch.save(model.state_dict(), folder / "small.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, folder / "nested.pth")
    save_file(model.state_dict(), folder / "small.safetensors")
    batch = torch.export.Dim("batch")
    for name, size, shapes in (("one", 1, None), ("four", 4, None), ("free", 4, ({0: batch},))):
        program = torch.export.export(model, (torch.randn(size, 3, 64, 64),), dynamic_shapes=shapes)
        torch.export.save(program, folder / f"{name}.pt2")
    torch.export.save(torch.export.export(model.train(), (torch.randn(4, 3, 64, 64),)), folder / "training.pt2")
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with random weights and a tokenizer of ten words; it has no padding token, as GPT-2 has none."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    folder = tmp_path_factory.mktemp("gpt2")
    config = transformers.GPT2Config(
        vocab_size=10, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1
    )
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>"
    ).save_pretrained(folder)
    return folder


def finished(uri: str, experiment: str):
    """The compression run of an experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id], "tags.`tracker.kind` = 'compression'")
    assert run.info.status == "FINISHED"
    return run


# --- torchvision


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def published(model: str, member: str = "DEFAULT") -> Path:
    """Where the file with a torchvision model's weights belongs."""
    from torchvision.models import get_model_weights

    return weights_file(get_model_weights(model)[member].url)


def test_torchvision_random_weights_are_seeded_and_leave_the_generator_alone() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        return dict(Torchvision(name="x", model="squeezenet1_1", weights_enum=None, seed=seed).weights())

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, other = weights(0), weights(0), weights(1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_torchvision_options_reach_the_builder() -> None:
    anchor = Torchvision(name="x", model="squeezenet1_1", weights_enum=None, options={"num_classes": 7})
    assert filled(anchor)(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_torchvision_detector_downloads_no_backbone(hub: Path, no_network: None) -> None:
    assert Torchvision(name="x", model="fasterrcnn_mobilenet_v3_large_fpn", weights_enum=None).weights()
    assert not list(hub.iterdir())


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"model": "resnet19"}, ["anchor.model=resnet19", "resnet18", "list_models"]),
        ({"model": "resnet18", "weights_enum": "IMAGENET"}, ["IMAGENET1K_V1", "null"]),
        ({"model": "quantized_resnet18"}, ["integers", "anchor.model=resnet18"]),
        ({"model": "resnet18", "weights_enum": None, "options": {"colour": 1}}, ["anchor.options", "colour"]),
    ],
)
def test_torchvision_refuses_unknown_names(keys: dict, parts: list[str]) -> None:
    text = message(Torchvision(name="x", **keys).weights)
    assert all(part in text for part in parts), text


def test_torchvision_without_network_says_which_file_from_where_and_where_to(hub: Path, no_network: None) -> None:
    text = message(Torchvision(name="x", model="resnet18").weights)
    assert "resnet18-f37072fd.pth" in text
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in text
    assert str(hub) in text
    assert not list(hub.iterdir())


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "inception_v3"])
def test_torchvision_takes_a_file_put_there_by_hand(name: str, hub: Path, no_network: None) -> None:
    """GoogLeNet's published file has auxiliary heads, which torchvision takes off; Inception keeps its own."""
    from torchvision.models import get_model

    options = {} if name == "resnet18" else {"init_weights": False, "aux_logits": True}
    state = get_model(name, weights=None, **options).state_dict()
    torch.save(state, published(name))
    anchor = Torchvision(name="x", model=name, weights_enum="DEFAULT")
    weights = anchor.weights()
    assert all(torch.equal(weights[key], state[key]) for key in weights)
    assert any(key.startswith("AuxLogits") for key in weights) == (name == "inception_v3")
    assert not any(key.startswith("aux1") for key in weights)
    model = filled(anchor)
    inputs = torch.stack([anchor.preprocess(Image.new(mode, (400, 300))) for mode in ("L", "RGB", "RGBA")])
    with torch.inference_mode():
        assert anchor.predict(model, inputs).shape == (3, 1000)
    assert "resize_size" in anchor.preprocessing()


def test_torchvision_refuses_damaged_foreign_and_pickled_files(hub: Path, tmp_path: Path, no_network: None) -> None:
    from torchvision.models import get_model

    file, anchor = published("squeezenet1_1"), Torchvision(name="x", model="squeezenet1_1")
    file.write_bytes(b"not weights at all")
    assert str(file) in message(anchor.weights)
    torch.save(get_model("squeezenet1_0", weights=None).state_dict(), file)
    assert "squeezenet1_1" in message(anchor.weights)
    torch.save({"weight": Malicious(tmp_path / "run")}, file)
    assert "more than tensors" in message(anchor.weights)
    assert not (tmp_path / "run").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.slow
def test_torchvision_whole_run(here, logged: tuple[str, str], images: Path, hub: Path) -> None:
    from torchvision.models import get_model

    torch.save(get_model("squeezenet1_1", weights=None).state_dict(), published("squeezenet1_1"))
    done = here(
        "anchor=torchvision", "anchor.model=squeezenet1_1", "anchor.weights_enum=IMAGENET1K_V1", "+codec=int8",
        f"data.root={images}", MLFLOW_TRACKING_URI=logged[0],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = finished(logged[0], "torchvision-squeezenet1_1")
    assert 5 < run.data.metrics["size/rate_percent"] < 26


# --- timm


def test_timm_pretrained_file_and_preprocessing(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    random_weights = Timm(name="x", model="test_resnet", pretrained=False, seed=3)
    state = dict(random_weights.weights())
    save_file(state, tmp_path / "weights.safetensors")
    anchor = Timm(name="x", model="test_resnet", checkpoint=tmp_path / "weights.safetensors")
    assert all(torch.equal(anchor.weights()[name], state[name]) for name in state)
    model = filled(anchor)
    sample = anchor.preprocess(Image.new("L", (200, 100)))
    assert sample.shape == (3, 160, 160)
    assert model(sample.unsqueeze(0)).shape == (1, 1000)
    assert "Normalize" in anchor.preprocessing()


def test_timm_models_built_for_another_size_get_such_images() -> None:
    pytest.importorskip("timm")
    for size, shape in ((64, (3, 64, 64)), ([32, 64], (3, 32, 64))):
        anchor = Timm(name="x", model="test_vit", pretrained=False, options={"img_size": size})
        sample = anchor.preprocess(Image.new("RGB", (200, 100)))
        assert sample.shape == shape
        assert anchor.build().eval()(sample.unsqueeze(0)).shape == (1, 1000)


def test_timm_renames_a_publishers_original_file(tmp_path: Path) -> None:
    """DeiT's own file holds its state dict under `model`; old ViT files name their head otherwise."""
    timm = pytest.importorskip("timm")
    state = timm.create_model("test_vit", pretrained=False).state_dict()
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "original.pth")
    anchor = Timm(name="x", model="test_vit", checkpoint=tmp_path / "original.pth")
    weights = anchor.weights()
    assert all(torch.equal(weights[name], state[name]) for name in state)


def test_timm_refusals(tmp_path: Path, no_network: None) -> None:
    pytest.importorskip("timm")
    assert "did you mean" in message(Timm(name="x", model="resnet19").build)
    assert "nothing" in message(Timm(name="x", model="resnet18.nothing").build)
    assert "does not exist" in message(Timm(name="x", model="test_resnet", checkpoint=tmp_path / "no.pth").weights)
    text = message(Timm(name="x", model="resnet18.a1_in1k").weights)
    assert "https://huggingface.co/timm/resnet18.a1_in1k" in text
    assert "anchor.checkpoint=FILE" in text
    assert "num_classes" in message(Timm(name="x", model="resnet18", options={"num_classes": 7}).weights)
    save_file({"foreign": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    anchor = Timm(name="x", model="test_resnet", checkpoint=tmp_path / "foreign.safetensors")
    assert "do not fit the architecture" in message(lambda: filled(anchor))


@pytest.mark.slow
def test_timm_whole_run(here, logged: tuple[str, str], images: Path) -> None:
    pytest.importorskip("timm")
    done = here(
        "anchor=timm", "anchor.model=test_resnet", "anchor.pretrained=false", "+anchor.options.num_classes=3",
        "+codec=int8", f"data.root={images}", MLFLOW_TRACKING_URI=logged[0],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    finished(logged[0], "timm-test_resnet")


# --- transformers


def test_transformers_tied_weights_and_texts(gpt2: Path) -> None:
    anchor = Transformers(name="x", model=str(gpt2))
    weights = anchor.weights()
    assert weights["lm_head.weight"].data_ptr() == weights["transformer.wte.weight"].data_ptr()
    model = filled(anchor)
    samples = [anchor.preprocess(text) for text in ("the cat sat", " ".join(WORDS[2:] * 20))]
    assert [int(s["attention_mask"].sum()) for s in samples] == [3, 64]
    assert samples[0]["input_ids"][:3].tolist() == [2, 3, 4]
    batch = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
    assert anchor.predict(model, batch).shape == (2, 64, 10)
    # Without the tied name the model is complete all the same.
    PYTORCH.fill(model, {k: v for k, v in weights.items() if k != "lm_head.weight"}, "the weights")
    assert model.lm_head.weight.isfinite().all()


def test_transformers_options(gpt2: Path) -> None:
    assert Transformers(name="x", model=str(gpt2), dtype="bfloat16").weights()["lm_head.weight"].dtype == torch.bfloat16
    first, second = (Transformers(name="x", model=str(gpt2), pretrained=False, seed=seed) for seed in (0, 1))
    assert not torch.equal(first.weights()["lm_head.weight"], second.weights()["lm_head.weight"])
    assert torch.equal(first.weights()["lm_head.weight"], first.weights()["lm_head.weight"])
    short = Transformers(name="x", model=str(gpt2), max_length=5)
    assert short.preprocess("the cat")["input_ids"].shape == (5,)
    assert short.preprocessing() != first.preprocessing()


def test_transformers_refusals(gpt2: Path, tmp_path: Path, no_network: None) -> None:
    text = message(Transformers(name="x", model="openai-community/gpt2").weights)
    assert "https://huggingface.co/openai-community/gpt2" in text
    assert "anchor.model=FOLDER" in text
    assert "no such folder" in message(Transformers(name="x", model=str(tmp_path / "none")).weights)
    assert "at most 64" in message(lambda: Transformers(name="x", model=str(gpt2), max_length=65).preprocess("the"))
    assert "takes texts" in message(lambda: Transformers(name="x", model=str(gpt2)).preprocess(torch.zeros(3)))
    text = message(Transformers(name="x", model=str(gpt2), auto_class="AutoModelForCausal").build)
    assert "AutoModelForCausalLM" in text
    headless = Transformers(name="x", model=str(gpt2), auto_class="AutoModelForSequenceClassification")
    assert "score.weight" in message(headless.weights)


def test_transformers_refuses_pickles_damage_and_remote_code(gpt2: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(gpt2, tmp_path / "copy")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "cannot be loaded" in message(Transformers(name="x", model=str(folder)).weights)
    file.unlink()
    torch.save({"weight": Malicious(tmp_path / "run")}, folder / "pytorch_model.bin")
    assert "safetensors" in message(Transformers(name="x", model=str(folder)).weights)
    config = json.loads((folder / "config.json").read_text())
    code = f"import os; os.mkdir({str(tmp_path / 'run')!r})"
    (folder / "code.py").write_text(code)
    auto = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto}))
    assert "does not run" in message(Transformers(name="x", model=str(folder)).build)
    assert not (tmp_path / "run").exists()


def test_transformers_images(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=size).save_pretrained(tmp_path)
    anchor = Transformers(name="x", model=str(tmp_path), auto_class="AutoModelForImageClassification")
    sample = anchor.preprocess(Image.new("L", (50, 40)))
    assert sample["pixel_values"].shape == (3, 32, 32)
    assert anchor.predict(filled(anchor), {"pixel_values": sample["pixel_values"][None]}).shape == (1, 3)
    assert "32" in anchor.preprocessing()


@pytest.mark.slow
def test_transformers_whole_run_codes_tied_weights_once(
    tracker, logged: tuple[str, str], tmp_path: Path, gpt2: Path
) -> None:
    (tmp_path / "text").mkdir()
    words = random.Random(0).choices(WORDS[2:], k=3000)
    (tmp_path / "text" / "a.txt").write_text(" ".join(words))
    done = tracker(
        "anchor=transformers", f"anchor.model={gpt2}", "data.root=text", "data.characters=200", "+codec=nnc",
        MLFLOW_TRACKING_URI=logged[0],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = finished(logged[0], str(gpt2))
    assert run.data.metrics["perplexity/anchor"] == pytest.approx(10, rel=0.1)
    anchor = Transformers(name="x", model=str(gpt2))
    assert run.data.metrics["size/anchor_bytes"] == 4 * sum(p.numel() for p in anchor.build().parameters())


# --- extras that are not installed


@pytest.mark.parametrize(("package", "anchor"), [("timm", Timm), ("transformers", Transformers)])
def test_missing_extra_is_one_line(package: str, anchor: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert f"pip install 'tracker[{package}]'" in message(anchor(name="x", model="anything").weights)


# --- checkpoint


def checkpoint(own: Path, file: str, factory: str | None = "small", **keys) -> Checkpoint:
    made = {"_target_": f"own_models.{factory}"} if factory else {"_target_": None}
    return Checkpoint(name="x", weights_file=own / file, factory=made, **keys)


@pytest.mark.parametrize("file", ["small.pt", "nested.pth", "small.safetensors", "one.pt2", "four.pt2", "free.pt2"])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_checkpoint_formats_give_the_same_outputs(own: Path, file: str, count: int) -> None:
    """Programs exported for one or four samples run on batches of any size."""
    anchor = checkpoint(own, file, None if file.endswith(".pt2") else "small")
    model = filled(anchor)
    torch.manual_seed(1)
    inputs = torch.randn(count, 3, 64, 64)
    with torch.inference_mode():
        expected = filled(checkpoint(own, "small.safetensors"))(inputs)
        torch.testing.assert_close(anchor.predict(model, inputs), expected)


def test_checkpoint_preprocessing(own: Path) -> None:
    image = Image.new("RGB", (64, 64), (255, 0, 51))
    plain = checkpoint(own, "small.pt")
    assert plain.preprocess(image)[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    tensor = torch.arange(4.0)
    assert plain.preprocess(tensor) is tensor
    assert plain.preprocess("a text") == "a text"
    function = {"_target_": "own_models.halved", "size": 16}
    halved = checkpoint(own, "small.pt", transform=function, mean=[0.5], deviation=[0.5])
    assert halved.preprocess(image).shape == (3, 16, 16)
    assert halved.preprocess(image)[:, 0, 0].tolist() == pytest.approx([1.0, -1.0, -0.6])
    made = checkpoint(own, "small.pt", transform={"_target_": "torchvision.transforms.v2.Resize", "size": 20})
    assert made.preprocess(image).shape == (3, 20, 20)
    assert len({anchor.preprocessing() for anchor in (plain, halved, made)}) == 3


def test_checkpoint_preprocessing_refusals(own: Path) -> None:
    image = Image.new("RGB", (8, 8))
    assert "belong together" in message(lambda: checkpoint(own, "small.pt", mean=[0.5]).preprocess(image))
    two = checkpoint(own, "small.pt", mean=[0.5, 0.5], deviation=[1, 1])
    assert "do not suit" in message(lambda: two.preprocess(image))
    wrong = checkpoint(own, "small.pt", transform={"_target_": "own_models.halved", "colour": 1})
    assert "colour" in message(lambda: wrong.preprocess(image))
    nowhere = checkpoint(own, "small.pt", transform={"_target_": "own_models.nothing"})
    assert "anchor.transform._target_" in message(lambda: nowhere.preprocess(image))


def test_checkpoint_refusals(own: Path, tmp_path: Path) -> None:
    assert "anchor.factory._target_ is not set" in message(checkpoint(own, "small.pt", None).build)
    assert "not a torch.nn.Module" in message(checkpoint(own, "small.pt", "number").build)
    assert "ValueError: not today" in message(checkpoint(own, "small.pt", "breaks").build)
    assert "own_models.nothing" in message(checkpoint(own, "small.pt", "nothing").build)
    wide = Checkpoint(name="x", weights_file=own / "small.pt", factory={"_target_": "own_models.small", "width": 9})
    assert "do not fit the architecture" in message(lambda: filled(wide))
    for name in ("none.pt", "none.safetensors", "none.pt2"):
        assert "does not exist" in message(checkpoint(tmp_path, name).weights)
    for source in ("small.pt", "small.safetensors", "one.pt2"):
        damaged = tmp_path / source
        damaged.write_bytes((own / source).read_bytes()[:-300])
        assert "anchor.weights_file" in message(checkpoint(tmp_path, source).weights)
    for protocol in (0, 2, 4):
        (tmp_path / "evil.pt").write_bytes(pickle.dumps({"a": Malicious(tmp_path / "run")}, protocol))
        message(checkpoint(tmp_path, "evil.pt").weights)
    torch.save({"a": Malicious(tmp_path / "run")}, tmp_path / "evil.pt")
    assert "could run code" in message(checkpoint(tmp_path, "evil.pt").weights)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file", ["extra.pt", "nested.pth", "extra.safetensors"])
def test_checkpoint_with_extra_states(file: str, own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = torch.load(own / "small.pt", weights_only=True)
    extra = torch.zeros(3, dtype=torch.uint8) if file.endswith(".safetensors") else {"mean": 0.5}
    given = {**state, "0._extra_state": extra}
    if file.endswith(".safetensors"):
        save_file(given, tmp_path / file)
    else:
        nested = {"state_dict": {f"module.{name}": value for name, value in given.items()}}
        torch.save(nested if "nested" in file else given, tmp_path / file)
    weights = checkpoint(tmp_path, file).weights()
    assert weights.keys() == state.keys()
    assert "_extra_state), which are not read: the architecture keeps its own" in caplog.text
    assert all(torch.equal(weights[name], state[name]) for name in state)
    filled(checkpoint(tmp_path, file))


@pytest.mark.parametrize("stage", ["svd", "weight_svd", "prune", "finetune"])
def test_stages_that_change_layers_refuse_a_program(stage: str, own: Path) -> None:
    from tracker.component import build

    name = {"svd": "Svd", "weight_svd": "WeightSvd"}.get(stage, stage.capitalize())
    transform = build({"_target_": f"tracker.codecs.{stage}.{name}"}, f"codec.{stage}", Transform)
    program = checkpoint(own, "four.pt2", None).build()
    text = message(lambda: transform.check_model(program, "pytorch"))
    assert stage in text and "torch.export program" in text
    assert "serialization_format='pickle'" in text and "anchor.allow_pickle=true" in text and "anchor.factory" in text


def rewritten(source: Path, target: Path, change) -> Path:
    """A copy of a zip archive with every record passed through `change(name, content)`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def test_program_that_would_run_code_is_refused(own: Path, tmp_path: Path) -> None:
    import io

    run = tmp_path / "run"
    assert not exported.is_arithmetic(f"__import__('os').mkdir({str(run)!r})")
    assert not exported.is_arithmetic("exec(s0)")
    assert exported.is_arithmetic("Mul(Integer(3), Pow(Symbol('s16', positive=True, integer=True), Integer(2)))")
    assert exported.is_arithmetic("s0 // 2 + 1")

    def pickled(name: str, content: bytes) -> bytes:
        if "sample_inputs" not in name:
            return content
        buffer = io.BytesIO()
        torch.save(Malicious(run), buffer)
        return buffer.getvalue()

    def operator(name: str, content: bytes) -> bytes:
        return content.replace(b"torch.ops.aten.relu.default", b"torch.serialization.os.abort")

    def expression(name: str, content: bytes) -> bytes:
        return content.replace(b"Symbol('s", b"__import__('os').mkdir('").replace(b"positive=True, integer=True", b"")

    def constant(name: str, content: bytes) -> bytes:
        return content.replace(b'"path_name": "weight_0"', b'"path_name": "opaque_obj_0"')

    for change in (pickled, operator, expression, constant):
        file = rewritten(own / "free.pt2", tmp_path / "free.pt2", change)
        assert "could run code" in message(lambda file=file: exported.read_program(file, "anchor.weights_file"))
    assert not run.exists()


def test_program_refusals(own: Path) -> None:
    assert "training mode" in message(checkpoint(own, "training.pt2", None).build)
    anchor = checkpoint(own, "free.pt2", None)
    model = anchor.build().eval()
    assert "(3, 64, 64)" in message(lambda: anchor.predict(model, torch.zeros(2, 3, 32, 32)))
    assert "takes 1 inputs" in message(lambda: anchor.predict(model, (torch.zeros(2, 3, 64, 64), torch.zeros(2))))
    assert "cannot be trained" in message(model.train)
    assert model.train(False) is model


def test_program_with_tied_weights_and_named_inputs(gpt2: Path, tmp_path: Path) -> None:
    anchor = Transformers(name="x", model=str(gpt2))
    model = filled(anchor)
    inputs = {"input_ids": torch.randint(0, 10, (2, 16)), "attention_mask": torch.ones(2, 16, dtype=torch.long)}
    torch.export.save(torch.export.export(model, (), inputs), tmp_path / "gpt2.pt2")
    program = checkpoint(tmp_path, "gpt2.pt2", None)
    weights = program.weights()
    assert weights["lm_head.weight"].data_ptr() == weights["transformer.wte.weight"].data_ptr()
    batch = {"input_ids": torch.randint(0, 10, (5, 16)), "attention_mask": torch.ones(5, 16, dtype=torch.long)}
    expected = anchor.predict(model, batch)
    torch.testing.assert_close(program.predict(filled(program), batch), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_checkpoint_whole_run_from_a_config_of_the_users(
    tracker, logged: tuple[str, str], tmp_path: Path, own: Path, images: Path
) -> None:
    (tmp_path / "mine" / "anchor").mkdir(parents=True)
    (tmp_path / "mine" / "anchor" / "my_net.yaml").write_text(
        "defaults:\n  - checkpoint\n\nname: my_net\nweights_file: ${oc.env:OWN}/small.safetensors\n"
        "factory:\n  _target_: own_models.small\n  width: 8\ntransform:\n  _target_: own_models.halved\n"
    )
    done = tracker(
        "--config-dir", "mine", "anchor=my_net", f"data.root={images}", "+codec=nnc", OWN=str(own), PYTHONPATH=str(own),
        MLFLOW_TRACKING_URI=logged[0],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    finished(logged[0], "my_net")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("anchor", "key"), [("torchvision", "model"), ("mlflow", "uri"), ("checkpoint", "weights_file")]
)
def test_config_composes_and_names_what_is_missing(tracker, anchor: str, key: str) -> None:
    shown = tracker(f"anchor={anchor}", "--cfg", "job")
    assert shown.returncode == 0
    assert f"{key}: ???" in shown.stdout
    refused = tracker(f"anchor={anchor}")
    assert refused.returncode != 0
    assert f"anchor.{key}" in last_line(refused)


# --- mlflow


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, own: Path) -> tuple[str, str]:
    """A store with the user's small model as MLflow logs it by itself (registered too) and as a pickle; run id."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    script = (
        "import mlflow, torch, own_models, sys\n"
        "mlflow.create_experiment('e', artifact_location=sys.argv[1]); mlflow.set_experiment('e')\n"
        "model = own_models.small(); model.load_state_dict(torch.load(sys.argv[2])); model.eval()\n"
        "example = torch.randn(1, 3, 64, 64).numpy()\n"
        "with mlflow.start_run() as run:\n"
        "    mlflow.pytorch.log_model(model, name='model', input_example=example, pip_requirements=[],\n"
        "        registered_model_name='small')\n"
        "    mlflow.pytorch.log_model(model, name='pickled', serialization_format='pickle', pip_requirements=[])\n"
        "    mlflow.pyfunc.log_model(name='other', python_model=lambda model_input: model_input, pip_requirements=[])\n"
        "print('run:' + run.info.run_id)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "artifacts"), str(own / "small.pt")],
        env={**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(own)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return uri, done.stdout.rpartition("run:")[2].strip()


@pytest.fixture
def store(logged: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The run's id, with its store as the default one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", logged[0])
    return logged[1]


def test_mlflow_formats(store: str, own: Path) -> None:
    inputs = torch.randn(3, 3, 64, 64)
    expected = filled(checkpoint(own, "small.pt"))(inputs)
    for keys in (
        {"uri": f"runs:/{store}/model"},
        {"uri": "models:/small/1"},
        {"uri": f"runs:/{store}/pickled", "allow_pickle": True},
    ):
        anchor = MLflow(name="x", **keys)
        torch.testing.assert_close(anchor.predict(filled(anchor), inputs), expected)
    assert "MLFLOW_ALLOW_PICKLE_DESERIALIZATION" not in os.environ


def test_mlflow_models_travel_as_programs(store: str, own: Path, tmp_path: Path, monkeypatch) -> None:
    """What a receiver gets names no store, and what would have to be unpickled does not travel."""
    anchor = MLflow(name="x", uri=f"runs:/{store}/model", allow_pickle=True)
    (tmp_path / "model").mkdir()
    write_architecture(anchor, tmp_path / "model")
    assert "uri" not in (text := (tmp_path / "model" / "architecture.json").read_text()) and "pickle" not in text
    (tmp_path / "other").mkdir()
    pickled = MLflow(name="x", uri=f"runs:/{store}/pickled", allow_pickle=True)
    assert "a receiver unpickles nothing" in message(lambda: write_architecture(pickled, tmp_path / "other"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    received = read_architecture(tmp_path / "model")
    model = rebuild(received)
    model.load_state_dict(filled(checkpoint(own, "small.pt")).state_dict())
    inputs = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(received.predict(model, inputs), filled(checkpoint(own, "small.pt"))(inputs))
    assert not (tmp_path / "none.db").exists()


def test_mlflow_refusals(store: str, tmp_path: Path) -> None:
    for uri in ("runs:/0123/model", f"runs:/{store}/none", "models:/none/1", "models:/small/9", "nonsense:/x"):
        text = message(MLflow(name="x", uri=uri).weights)
        assert f"anchor.uri={uri}" in text
        assert "MLFLOW_TRACKING_URI" in text
    assert "no PyTorch model" in message(MLflow(name="x", uri=f"runs:/{store}/other").weights)
    assert "anchor.allow_pickle=true" in message(MLflow(name="x", uri=f"runs:/{store}/pickled").weights)


def test_mlflow_pickle_is_not_run_unless_allowed(store: str, tmp_path: Path) -> None:
    import mlflow.artifacts

    folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{store}/pickled", dst_path=str(tmp_path / "copy")))
    (file,) = folder.rglob("model.pth")
    torch.save(Malicious(tmp_path / "run"), file)
    assert "unpickling runs code" in message(MLflow(name="x", uri=str(folder)).weights)
    assert not (tmp_path / "run").exists()
    assert "cannot be unpickled" in message(MLflow(name="x", uri=str(folder), allow_pickle=True).weights)
    assert (tmp_path / "run").exists()


@pytest.mark.slow
def test_mlflow_whole_run(here, logged: tuple[str, str], images: Path) -> None:
    uri, run_id = logged
    done = here(
        "anchor=mlflow", f"anchor.uri=runs:/{run_id}/model", f"data.root={images}", "+codec=nnc",
        MLFLOW_TRACKING_URI=uri,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    finished(uri, "mlflow")
