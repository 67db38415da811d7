"""Channel pruning through AIMET: the same as by AIMET alone, on models of any operations, rebuilt without AIMET."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Here, runs
from torch import Tensor, nn
from torch.nn import functional as F

from tracker.aimet.winnow import Guard
from tracker.anchors.digits import Digits
from tracker.anchors.resnet_cifar import CifarResNet
from tracker.codecs.base import Context
from tracker.codecs.prune import Prune
from tracker.codecs.records import Transformed
from tracker.component import build
from tracker.data.digits import Digits as DigitsData
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import FRAMEWORK
from tracker.structure import Edit, rebuild
from tracker.structure.prune import Expand, Select

pytest.importorskip("aimet_torch", exc_type=ImportError)
DATA = DigitsData(name="digits")


class Mixed(nn.Module):
    """What AIMET has no table entry for: functional activations, concatenation and products, around residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second, self.norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.third = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise, self.point = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1)
        self.act = nn.PReLU(24)
        self.wide_norm, self.last = nn.BatchNorm2d(24), nn.Conv2d(24, 12, 3, padding=1)
        self.gate, self.head = nn.Conv2d(12, 12, 1), nn.Linear(12 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to (N, 4)."""
        x = F.relu(self.first(x))
        x = self.third(torch.relu(self.norm(self.second(x))).relu_()) + x
        y = self.point(F.silu(self.depthwise(x)).relu())
        x = self.wide_norm(self.act(torch.cat([x, y], dim=1)))
        x = self.last(F.max_pool2d(x, 2))
        x = x * torch.sigmoid(self.gate(x.mean(dim=(2, 3), keepdim=True)))
        return F.log_softmax(self.head(F.adaptive_avg_pool2d(x, 2).flatten(1)), dim=1)


def filled(model: nn.Module) -> nn.Module:
    """With weights that no channel can be left out of unnoticed."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            value = torch.randn(tensor.shape, generator=generator) * 0.3
            tensor.copy_(value.abs() + 0.5 if name.endswith(("var", "norm.weight")) else value)
    return model.eval()


def agreement(output: Tensor, reference: Tensor) -> float:
    return float(1 - (output - reference).square().mean() / reference.var())


def pruned(model: nn.Module, batches: list[Tensor], folder: Path, **options: Any) -> Transformed:
    context = Context(
        lambda m, x: m(x),
        lambda: batches,
        0,
        "cpu",
        agreement=agreement,
        anchor=model,
        folder=folder,
        key=lambda: "key",
    )
    return Prune(**{"ratio": 0.5, **options}).apply(copy.deepcopy(model), context)


def received(architecture: nn.Module, given: Transformed) -> nn.Module:
    """What the receiver makes of the manifest and the tensors."""
    edits = [Edit(edit.kind, json.loads(json.dumps(edit.layers))) for edit in given.edits]
    model = rebuild(architecture, edits)
    FRAMEWORK.fill(model, given.model.state_dict(), "the tensors")
    return model.eval()


def same(first: nn.Module, second: nn.Module, inputs: Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(first(inputs), second(inputs))


@pytest.fixture
def mixed() -> nn.Module:
    return filled(Mixed())


@pytest.fixture
def batches() -> list[Tensor]:
    return list(torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(32))


def test_the_same_as_by_aimet_alone(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tracker import aimet

    monkeypatch.chdir(tmp_path)  # AIMET alone writes into the working folder
    anchor = Digits(name="digits")
    model = anchor.build()
    model.load_state_dict(anchor.weights())
    model.eval()
    samples = DATA.samples("calibration")
    images = list(torch.stack([samples[i][0] for i in range(200)]).split(100))
    (tmp_path / "folder").mkdir()
    given = pruned(model, images, tmp_path / "folder", layers=["7"], ratio=0.4, reconstruction_samples=2000)
    assert not (tmp_path / "data").exists()

    aimet.load()
    from aimet_torch.common.defs import CompressionScheme, CostMetric
    from aimet_torch.compress import ModelCompressor
    from aimet_torch.defs import ChannelPruningParameters, ModuleCompRatioPair

    class Loader(list):
        batch_size = 100

    parameters = ChannelPruningParameters(
        Loader((image, 0) for image in images),
        2000,
        True,
        ChannelPruningParameters.Mode.manual,
        ChannelPruningParameters.ManualModeParams([ModuleCompRatioPair(model[7], 0.4)]),
    )
    np.random.seed(0)
    alone, stats = ModelCompressor.compress_model(
        model, lambda *_, **__: 0.0, 1, (1, 1, 8, 8), CompressionScheme.channel_pruning, CostMetric.mac, parameters
    )
    pictures, _ = DATA.arrays("report")
    with torch.no_grad():
        torch.testing.assert_close(given.model(pictures), alone(pictures), rtol=1e-4, atol=1e-4)
    assert given.mac_ratio == pytest.approx(float(stats.mac_compression_ratio), abs=1e-3)
    assert given.memory_ratio == pytest.approx(float(stats.memory_compression_ratio), abs=1e-3)
    assert "ChannelPruning" in (tmp_path / "folder" / "aimet.log").read_text()


def test_any_operations_and_the_receiver_has_the_same_model(
    mixed: nn.Module, batches: list[Tensor], tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in mixed.state_dict().items()}
    state = np.random.get_state()[1].copy()
    given = pruned(mixed, batches, tmp_path, reconstruction_samples=960)
    assert (np.random.get_state()[1] == state).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in mixed.state_dict().items())
    rows = {row["layer"]: row for row in given.tables["layers"]}
    for name in ("second", "third", "point", "last", "gate"):
        assert rows[name]["input channels kept"] * 2 == rows[name]["input channels"], name
        assert not rows[name]["note"]
    assert "input is the model's" in rows["first"]["note"]
    assert "several groups" in rows["depthwise"]["note"]
    assert 0.3 < given.mac_ratio < 0.6
    model = received(Mixed(), given)
    assert same(model, given.model, batches[0])
    assert any(isinstance(module, Select) for module in model.modules())
    again = pruned(mixed, batches, tmp_path, reconstruction_samples=960)
    assert same(again.model, given.model, batches[0])


def test_fitted_weights_are_better_than_those_left_over(
    mixed: nn.Module, batches: list[Tensor], tmp_path: Path
) -> None:
    given = pruned(mixed, batches, tmp_path, layers=["third"], reconstruction_samples=2000)
    plain = copy.deepcopy(mixed)
    kept = mixed.third.weight.square().sum(dim=(0, 2, 3)).topk(8).indices
    rest = [channel for channel in range(16) if channel not in kept]
    plain.third.weight.data[:, rest] = 0
    with torch.no_grad():
        wanted, fitted, left = mixed(batches[1]), given.model(batches[1]), plain(batches[1])
    assert (fitted - wanted).square().mean() < (left - wanted).square().mean()


def test_resnet_with_padded_shortcuts(tmp_path: Path) -> None:
    model = filled(CifarResNet(1))
    images = [torch.randn(4, 3, 32, 32)]
    given = pruned(model, images, tmp_path, reconstruction_samples=40, ratios={"layer2.0.conv1": 0.25})
    assert given.metrics["prune/layers"] == 6
    layers = given.edits[0].layers
    assert layers["layer2.0.conv1"] | {"select": ""} == {"in": 4, "out": 16, "select": ""}
    assert layers["layer2.0.bn1"] == {"channels": 16}
    assert layers["layer2.0.conv2"] == {"in": 16}
    assert same(received(CifarResNet(1), given), given.model, images[0])


class Ending(nn.Module):
    """A network of two convolutions and what comes after them."""

    def __init__(self, end: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()
        self.second = nn.Conv2d(16, 3, 3, padding=1)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to whatever `end` gives."""
        return self.end(x, self.second(self.relu(self.first(x))))


@pytest.mark.parametrize(
    "end",
    [
        lambda x, y: x + y,
        lambda x, y: y,
        lambda x, y: torch.cat([x, y], dim=1),
        lambda x, y: torch.sigmoid(y),
        lambda x, y: x * y,
        lambda x, y: (x + y).clamp(0, 1),
        lambda x, y: F.pixel_shuffle(torch.cat([y, x[:, :1]], dim=1), 2),
        lambda x, y: y.chunk(3, dim=1)[1],
    ],
    ids=["residual", "convolution", "concatenation", "sigmoid", "product", "clamp", "pixel shuffle", "chunk"],
)
def test_whatever_the_output_comes_from(
    end: Callable[[Tensor, Tensor], Tensor], batches: list[Tensor], tmp_path: Path
) -> None:
    given = pruned(filled(Ending(end)), batches, tmp_path, reconstruction_samples=480)
    assert given.metrics["prune/layers"] == 1
    assert given.edits[0].layers == {"first": {"out": 8}, "second": {"in": 8}}
    assert same(received(Ending(end), given), given.model, batches[0])


def test_greedy_search_reuses_scores(mixed: nn.Module, batches: list[Tensor], tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "mode": "auto",
        "candidates": 3,
        "reconstruction_samples": 960,
        "ignore": ["gate", "last"],
    }
    first = pruned(mixed, batches, tmp_path, target_ratio=0.8, **options)
    second = pruned(mixed, batches, tmp_path, target_ratio=0.6, **options)
    assert first.metrics["prune/scores_computed"] == 6
    assert second.metrics["prune/scores_computed"] == 0
    assert second.metrics["prune/scores_reused"] == 6
    assert second.mac_ratio <= first.mac_ratio < 0.9
    assert {row["layer"] for row in second.tables["scores"]} == {"second", "third", "point"}
    assert not {"gate", "last"} & set(second.edits[0].layers)
    assert same(received(Mixed(), second), second.model, batches[0])
    # What AIMET counted for the search is what the pruned model has.
    rows = second.tables["layers"]
    assert second.mac_ratio == pytest.approx(sum(r["MACs after"] for r in rows) / sum(r["MACs before"] for r in rows))


@pytest.mark.parametrize(
    "layers",
    [
        {"nothing": {"in": 8}},
        {"act": {"in": 8}},
        {"second": 8},
        {"second": {}},
        {"second": {"in": 0}},
        {"second": {"in": 17}},
        {"second": {"in": True}},
        {"second": {"out": "8"}},
        {"second": {"channels": 8}},
        {"second": {"in": 8, "select": "ff0000"}},
        {"second": {"in": 8, "select": "fff"}},
        {"second": {"in": 8, "select": [0, 1]}},
        {"second": {"in": 8, "select": "f" * 1000000}},
        {"second": {"in": 8, "groups": 5}},
        {"depthwise": {"groups": 7, "in": 16}},
        {"norm": {"channels": 17}},
        {"norm": {"channels": 8, "expand": "ff", "of": 99}},
        {"": {"in": 8}},
    ],
)
def test_forged_edits_are_refused(layers: dict[str, Any]) -> None:
    with pytest.raises(TrackerError) as caught:
        rebuild(Mixed(), [Edit("prune", layers)])
    assert len(str(caught.value)) < 400


def test_places_among_zeros() -> None:
    model = rebuild(nn.Sequential(nn.BatchNorm2d(6)), [Edit("prune", {"0": {"channels": 2, "expand": "12", "of": 6}})])
    assert isinstance(model[0][1], Expand)
    model[0][0].weight.data.fill_(1)
    model[0][0].bias.data.zero_()
    model[0][0].running_mean.zero_()
    model[0][0].running_var.fill_(1)
    out = model.eval()(torch.ones(1, 2, 3, 3))
    assert out[0, :, 0, 0].nonzero().flatten().tolist() == [1, 4]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 0}, "codec.prune.ratio"),
        ({"ratio": 1.5}, "codec.prune.ratio"),
        ({"ratios": {"second": 2}}, "codec.prune.ratios.second"),
        ({"rank": 3}, "codec.prune.rank"),
        ({"mode": "auto", "ratios": {"second": 0.5}}, "mode=auto"),
        ({"target_ratio": 0.5}, "mode=auto"),
        ({"ignore": ["second"], "ratios": {"second": 0.5}}, "second"),
        ({"reconstruction_samples": 0}, "reconstruction_samples"),
        ({"on_failure": "panic"}, "on_failure"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TrackerError, match=words):
        build({"_target_": "tracker.codecs.prune.Prune", **options}, "codec.prune", Prune)


def test_models_that_cannot_be_pruned(
    mixed: nn.Module, batches: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrackerError, match="did you mean second"):
        Prune(ratios={"secund": 0.5}).check_model(mixed, "pytorch")
    with pytest.raises(TrackerError, match="has none"):
        Prune().check_model(nn.Linear(2, 2), "pytorch")
    with pytest.raises(TrackerError, match="keras"):
        Prune().check_model(object(), "keras")
    with pytest.raises(TrackerError, match="AIMET cannot prune first"):
        pruned(mixed, batches, tmp_path, layers=["first", "second"], on_failure="refuse")
    with pytest.raises(TrackerError, match=r"no layer of the model \(first"):
        pruned(mixed, batches, tmp_path, layers=["first"])
    with pytest.raises(TrackerError, match="one tensor of images"):
        pruned(nn.Linear(3, 3), [torch.randn(4, 3)], tmp_path)
    monkeypatch.setitem(sys.modules, "aimet_torch", None)
    with pytest.raises(TrackerError, match="aimet-torch, which is not installed"):
        Prune().check_model(mixed, "pytorch")


class Again(nn.Module):
    """A layer that runs three times, two with one weight, a grouped one, and some that can be pruned."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.head, self.block = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c1, self.c2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.tied, self.grouped = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.also, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.also.weight = self.tied.weight

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        assert metadata.get("version") == 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to (N, 4)."""
        x = self.head(x)
        for _ in range(3):
            x = x + F.relu(self.block(x))
        x = self.c2(F.relu(self.c1(x)))
        return self.last(self.grouped(self.also(self.tied(x))).relu()).mean(dim=(2, 3))


def test_layers_that_run_again_or_share_a_weight(
    batches: list[Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = filled(Again())
    given = pruned(model, batches, tmp_path)
    notes = {row["layer"]: row["note"] for row in given.tables["layers"]}
    assert notes["block"] == "it is called more than once"
    assert notes["tied"] == notes["also"] == "its weight is shared with another layer"
    assert notes["c2"] == "" and given.model.c2.in_channels == 4 and given.model.c1.out_channels == 4
    assert given.model.block.in_channels == 8
    assert same(received(Again(), given), given.model, batches[0])
    assert "block (it is called more than once)" in caplog.text
    assert "several groups" not in caplog.text  # pruning is not for those, and nobody has named it
    caplog.clear()
    pruned(model, batches, tmp_path, layers=["head", "grouped", "c2"])
    assert "head (its input is the model's, whose channels stay)" in caplog.text
    assert "grouped (it has several groups)" in caplog.text
    with pytest.raises(TrackerError, match=r"cannot prune grouped \(it has several groups\).*on_failure=skip"):
        pruned(model, batches, tmp_path, layers=["grouped", "c2"], on_failure="refuse")


class Patches(nn.Module):
    """A transformer's beginning, of which AIMET does not see what the first layer is."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.attend = nn.Conv2d(3, 8, 2, 2), nn.MultiheadAttention(8, 2, batch_first=True)
        self.start = nn.Parameter(torch.ones(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to (N, 8)."""
        x = torch.cat([self.start.expand(len(x), -1, -1), self.patch(x).flatten(2).transpose(1, 2)], 1)
        return self.attend(x, x, x)[0][:, 0]


def test_aimets_errors_are_told_in_words(batches: list[Tensor], tmp_path: Path) -> None:
    words = r"no layer of the model \(patch: its input is the model's, whose channels stay\)"
    with pytest.raises(TrackerError, match=words):
        pruned(filled(Patches()), batches, tmp_path)
    guard = Guard(batches[0], False, set(), "", 0)
    guard.fail("other", IndexError("list index out of range"))
    assert guard.failures["other"].startswith("AIMET cannot follow its channels through the model (IndexError")


class Untraceable(Mixed):
    """A model that PyTorch's tracer, and so AIMET, cannot see into."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("this model depends on its input's values")
        return super().forward(x)


def test_a_model_that_cannot_be_traced(batches: list[Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = filled(Untraceable())
    with caplog.at_level(logging.WARNING), pytest.raises(TrackerError, match="depends on its input's values"):
        pruned(model, batches, tmp_path, layers=["second"])
    with pytest.raises(TrackerError, match=r"AIMET cannot prune second \(this model depends.*on_failure=skip"):
        pruned(model, batches, tmp_path, layers=["second"], on_failure="refuse")


def test_command_line_and_a_receiver_without_aimet(tracker: Callable[..., Any], ready: Path) -> None:
    done = tracker("+codec=[prune,zstd]", "task.split=search", "codec.prune.ratio=0.6")
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.strip().splitlines()) <= 1, done.stderr
    assert sorted(path.name for path in ready.iterdir()) == ["mlruns", "outputs"]
    (run,) = runs(ready, "compression")
    assert 0 < run.data.metrics["cost/mac_ratio"] < 0.7
    assert 0 < run.data.metrics["cost/memory_ratio"] < 0.7
    folder = ready / "mlruns" / "artifacts" / run.info.run_id / "artifacts"
    for name in ("stages/prune/layers.json", "stages/prune/aimet.log", "plots/prune-layers.png"):
        assert (folder / name).is_file(), name

    shutil.copytree(folder / "bitstream", ready / "received")
    (ready / "aimet_torch.py").write_text("raise ImportError('not here')")
    (ready / "receive.py").write_text(
        "import pathlib, sys\n"
        "from safetensors.torch import load_file\n"
        "from tracker.anchors.digits import Digits\n"
        "from tracker.bitstream import read_manifest\n"
        "from tracker.structure import rebuild\n"
        "edits = read_manifest(pathlib.Path('received')).structure\n"
        "model = rebuild(Digits(name='digits').build(), edits)\n"
        "model.load_state_dict(load_file('out.safetensors'), strict=False)\n"
        "assert 'aimet_torch' not in sys.modules\n"
        "print(sum(p.numel() for p in model.parameters()))\n"
    )
    done = tracker("received", "out.safetensors", module="tracker.decode")
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "receive.py"], cwd=ready, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    whole = sum(tensor.numel() for tensor in Digits(name="digits").build().parameters())
    assert 0 < int(done.stdout) < 0.7 * whole


def test_unknown_layers_on_the_command_line(here: Here, ready: Path) -> None:
    done = here("+codec=[prune,zstd]", "codec.prune.layers=[nothing]")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "codec.prune.layers names nothing" in done.stderr
    assert not runs(ready, "compression")
