"""Chains whose transforms change the architecture or make integers of weights, with transforms of a user's own."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from conftest import Here, runs
from torch import nn

from tracker.bitstream import bitstream_bytes, decode_bitstream, encode_bitstream, read_manifest
from tracker.bitstream.manifest import write_manifest
from tracker.codecs import Context, Edit, Integers
from tracker.codecs.chain import build_codec
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import FRAMEWORK
from tracker.receiver import decode_model
from tracker.structure import rebuild

CONTEXT = Context(lambda model, inputs: model(inputs), list, 0, "cpu")
STAGES = '''
import torch
from torch import nn
from tracker.codecs import Edit, Integers, Transform, Transformed

def rebuild(model, layers):
    """The structure's kind: what the receiver repeats."""
    for name, channels in layers.items():
        model.add_module(name, nn.Linear(10, channels))
    return model

class Append(Transform):
    """One more linear layer, the identity."""
    channels: int = 10
    def apply(self, model, context):
        model = rebuild(model, {"extra": self.channels})
        with torch.no_grad():
            model.extra.weight.copy_(torch.eye(10))
            model.extra.bias.zero_()
        (context.folder / "note.txt").write_text("made by hand")
        rows = [{"layer": "extra", "rank": 10}]
        return Transformed(model, [Edit("mystages", {"extra": self.channels})], mac_ratio=1.5, memory_ratio=1.25,
                           metrics={"append/layers": 1.0}, tables={"layers": rows})

class Narrow(Transform):
    """Weights as integers of 8 bits with a scale for each output channel."""
    final = True
    def apply(self, model, context):
        made = {}
        for name, tensor in model.state_dict().items():
            if tensor.ndim > 1:
                scale = tensor.abs().amax(dim=tuple(range(1, tensor.ndim)), keepdim=True) / 127
                made[name] = Integers((tensor / scale).round().int(), scale, 8)
                tensor.copy_(made[name].value())
        return Transformed(model, integers=made, simulate=lambda decoded: decoded)

class Broken(Transform):
    """Raises after it has left a file."""
    def apply(self, model, context):
        (context.folder / "note.txt").write_text("not finished")
        raise ValueError("on purpose")
'''


@pytest.fixture
def with_stages(ready: Path, here: Here) -> Callable:
    """The command line in a folder with the user's stages."""
    (ready / "mystages.py").write_text(STAGES)
    folder = ready / "mine" / "codec"
    folder.mkdir(parents=True)
    for name in ("Append", "Narrow", "Broken"):
        text = f"# @package codec.{name.lower()}\n_target_: mystages.{name}\n"
        (folder / f"{name.lower()}.yaml").write_text(text)
    return lambda *words: here("--config-dir", "mine", *words)


def stored(run, name: str) -> Path:
    return Path(urlsplit(run.info.artifact_uri).path) / name


def table(run, name: str) -> list[dict]:
    content = json.loads(stored(run, name).read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def test_a_changed_architecture_is_rebuilt_from_the_manifest(with_stages: Callable, ready: Path) -> None:
    done = with_stages("+codec=[append,narrow,nnc]")
    assert done.returncode == 0, done.stderr
    (run,) = runs(ready, "compression")
    metrics = run.data.metrics
    assert run.data.tags["tracker.codec"] == "append>narrow>nnc"
    # The identity changes nothing, and 8 bits nearly nothing: the three figures agree, though measured on three models.
    assert metrics["performance/after_append"] == metrics["performance/anchor"]
    assert metrics["performance/after_narrow"] == pytest.approx(metrics["performance/decoded"], abs=0.0051)
    assert metrics["performance/simulated"] == metrics["performance/decoded"]
    assert metrics["performance/simulated_drop"] == metrics["performance/drop"]
    assert (metrics["cost/mac_ratio"], metrics["cost/memory_ratio"], metrics["append/layers"]) == (1.5, 1.25, 1.0)
    # 110 more values; then one byte for each weight and four for each scale and for each of the other values.
    assert metrics["size/after_append_bytes"] == metrics["size/anchor_bytes"] + 4 * 110
    weights = 32 * 9 + 64 * 32 * 9 + 64 * 64 * 9 + 640 + 100
    others = metrics["size/after_append_bytes"] / 4 - weights
    assert metrics["size/after_narrow_bytes"] == weights + 4 * (others + 32 + 64 + 64 + 10 + 10)
    assert metrics["size/after_nnc_bytes"] == metrics["size/bitstream_bytes"]
    rows = table(run, "stages.json")
    assert [row["stage"] for row in rows] == ["append", "narrow", "nnc"]
    assert [row["bytes"] for row in rows] == [
        metrics[f"size/after_{name}_bytes"] for name in ("append", "narrow", "nnc")
    ]
    assert table(run, "stages/append/layers.json") == [{"layer": "extra", "rank": 10}]
    assert stored(run, "stages/append/note.txt").read_text() == "made by hand"
    assert stored(run, "plots/stages.png").stat().st_size > 5000
    folder = stored(run, "bitstream")
    assert read_manifest(folder).structure == [Edit("mystages", {"extra": 10})]

    refused = with_stages("scenario=receive", f"scenario.bitstream={folder}")
    assert refused.returncode == 1 and "name mystages in trusted (scenario.trust of scenario=receive)" in refused.stderr
    received = with_stages("scenario=receive", f"scenario.bitstream={folder}", "scenario.trust=[mystages]")
    assert f"top1 {metrics['performance/decoded']:.4f}" in received.stdout, received.stderr


def test_stages_need_not_be_evaluated(with_stages: Callable, ready: Path) -> None:
    done = with_stages("+codec=[append,fp16]", "tracking.evaluate_stages=false")
    assert done.returncode == 0, done.stderr
    (run,) = runs(ready, "compression")
    assert "performance/after_append" not in run.data.metrics
    assert table(run, "stages.json")[0]["performance"] is None


def test_a_stage_that_fails_leaves_nothing_that_looks_finished(with_stages: Callable, ready: Path) -> None:
    done = with_stages("+codec=[append,broken,fp16]")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    (run,) = runs(ready, "compression")
    assert run.info.status == "FAILED" and "on purpose" in run.data.tags["tracker.error"]
    assert not stored(run, "stages").exists() and not stored(run, "plots").exists()


def test_no_transform_may_follow_one_that_makes_integers(with_stages: Callable, ready: Path) -> None:
    done = with_stages("+codec=[narrow,append,nnc]")
    assert done.returncode == 1 and "make narrow the last transform" in done.stderr
    assert not runs(ready)


# ---------------------------------------------------------------------------------------------------- the bitstream


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("coder", ["nnc.Nnc", "floats.Zstd", "integers.Int8", "floats.Fp16"])
def test_integers_are_stored_without_loss_by_every_coder(coder: str, bits: int, tmp_path: Path) -> None:
    model = network()
    codec = build_codec({"coder": {"_target_": f"tracker.codecs.{coder}"}})
    assert codec is not None
    largest = 2 ** (bits - 1) - 1
    integers = {
        "0.weight": Integers(
            torch.randint(-largest - 1, largest + 1, (8, 1, 3, 3)).int(), torch.rand(8, 1, 1, 1), bits
        ),
        "3.weight": Integers(torch.randint(-largest, largest, (10, 288)).int(), torch.tensor(0.013), bits),
    }
    tensors = dict(model.state_dict())
    tensors |= {name: quantised.value() for name, quantised in integers.items()}
    encode_bitstream(codec, tensors, model, tmp_path, CONTEXT, integers=integers)
    decoded = decode_bitstream(tmp_path)
    for name, quantised in integers.items():
        assert torch.equal(decoded[name], quantised.integers.float() * quantised.scale), name
        assert decoded[name].dtype == torch.float32
    assert decoded.keys() == tensors.keys()
    assert bitstream_bytes(tmp_path) < sum(4 * tensor.numel() for tensor in tensors.values())


def test_the_options_of_nnc_leave_integers_alone(tmp_path: Path) -> None:
    model = network()
    integers = {"3.weight": Integers(torch.randint(-127, 128, (10, 288)).int(), torch.tensor(0.5), 8)}
    tensors = {**model.state_dict(), "3.weight": integers["3.weight"].value()}
    for number, more in enumerate(({"sparsity": 0.5}, {"opt_qp": True}, {"bnf": True}, {"bitdepth": 4})):
        codec = build_codec({"nnc": {"_target_": "tracker.codecs.nnc.Nnc", **more}})
        assert codec is not None
        folder = tmp_path / str(number)
        folder.mkdir()
        encode_bitstream(codec, tensors, model, folder, CONTEXT, integers=integers)
        assert torch.equal(decode_bitstream(folder)["3.weight"], tensors["3.weight"]), more
    codec = build_codec({"nnc": {"_target_": "tracker.codecs.nnc.Nnc", "qp_per_tensor": {"3.weight": -20}}})
    assert codec is not None
    with pytest.raises(TrackerError, match=r"'3.weight', which is integers already"):
        encode_bitstream(codec, tensors, model, tmp_path, CONTEXT, integers=integers)


FORGED = {
    "unknown kind": ([["magic", {"0": 1}]], "not a part of this version"),
    "a path": ([["../../etc", {"0": 1}]], "not a part of this version"),
    "a private module": ([["base", {"0": 1}]], "not a part of this version"),
    "foreign code": ([["os.path", {"0": 1}]], "not a part of this version"),
    "ours by its full path": ([["tracker.decode", {"0": 1}]], "not a part of this version"),
}


@pytest.mark.parametrize("case", list(FORGED))
def test_a_forged_structure_is_refused(case: str, tmp_path: Path) -> None:
    structure, reason = FORGED[case]
    model = network()
    codec = build_codec({"zstd": {"_target_": "tracker.codecs.floats.Zstd"}})
    assert codec is not None
    encode_bitstream(codec, model.state_dict(), model, tmp_path, CONTEXT)
    (tmp_path / "manifest.json").unlink()
    edits = [Edit(kind, layers) for kind, layers in structure]
    write_manifest(tmp_path, "tracker.codecs.floats.Zstd", ["zstd"], edits)
    with pytest.raises(TrackerError, match=reason):
        decode_model(tmp_path, network())


def test_the_digest_covers_the_structure(tmp_path: Path) -> None:
    (tmp_path / "model.zst").write_bytes(b"x")
    write_manifest(tmp_path, "tracker.codecs.floats.Zstd", ["svd", "zstd"], [Edit("spatial_svd", {"0": 4})])
    path = tmp_path / "manifest.json"
    content = path.read_text()
    assert read_manifest(tmp_path).structure == [Edit("spatial_svd", {"0": 4})]
    path.write_text(content.replace('{"0":4}', '{"0":5}'))
    with pytest.raises(TrackerError, match="SHA-256"):
        read_manifest(tmp_path)
    for wrong in ('[["spatial_svd"]]', '[["spatial_svd",[4]]]', '{"0":4}', "[[1,{}]]", "null"):
        path.write_text(content.replace('[["spatial_svd",{"0":4}]]', wrong))
        with pytest.raises(TrackerError, match="damaged"):
            read_manifest(tmp_path)


def test_no_structure_leaves_the_architecture_as_it_is(tmp_path: Path) -> None:
    model = network()
    assert rebuild(model, []) is model


def test_a_decoded_model_from_python(tmp_path: Path) -> None:
    model = network()
    codec = build_codec({"zstd": {"_target_": "tracker.codecs.floats.Zstd"}})
    assert codec is not None
    encode_bitstream(codec, model.state_dict(), model, tmp_path, CONTEXT)
    inputs = torch.randn(2, 1, 8, 8)
    decoded = decode_model(str(tmp_path), network().train())
    assert not decoded.training and torch.equal(decoded(inputs), model(inputs))
    with pytest.raises(TrackerError, match="not " + "0" * 64):
        decode_model(tmp_path, network(), sha256="0" * 64)


def round_trip(model: nn.Module, architecture: nn.Module, folder: Path) -> nn.Module:
    """What the receiver makes of a model, without loss."""
    codec = build_codec({"zstd": {"_target_": "tracker.codecs.floats.Zstd"}})
    assert codec is not None
    encode_bitstream(codec, FRAMEWORK.state(model, model.state_dict()), model, folder, CONTEXT)
    return decode_model(folder, architecture)


class Versioned(nn.Linear):
    """As torchvision's MNASNet: what is loaded must say by which version of the class it was saved."""

    _version = 2

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        if local_metadata.get("version") != 2:
            raise ValueError(f"version should be 2\nnot {local_metadata.get('version')}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class Other(Versioned):
    _version = 1


def test_modules_whose_state_dicts_have_versions(tmp_path: Path) -> None:
    inputs = torch.randn(2, 3)
    model, new = (nn.Sequential(nn.ReLU(), Versioned(3, 4)).eval() for _ in range(2))
    decoded = round_trip(model, new, tmp_path)
    assert torch.equal(decoded(inputs), model(inputs))
    with pytest.raises(TrackerError, match=r"its load_state_dict raised ValueError \(version should be 2 not 1\)"):
        decode_model(tmp_path, nn.Sequential(nn.ReLU(), Other(3, 4)))


def test_a_network_of_torchvision_whose_state_dict_has_a_version() -> None:
    torchvision = pytest.importorskip("torchvision")
    first, second = (torchvision.models.mnasnet0_5(weights=None) for _ in range(2))
    FRAMEWORK.fill(second, FRAMEWORK.state(first, ()), "the tensors")
    inputs = torch.randn(1, 3, 32, 32)
    assert torch.equal(FRAMEWORK.ready(first, "cpu")(inputs), FRAMEWORK.ready(second, "cpu")(inputs))


class Noted(nn.Linear):
    """An extra state, which is a part of what it computes."""

    def __init__(self, extra: Any) -> None:
        super().__init__(3, 4)
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError("the architecture keeps its own")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + (self.extra["mean"] if isinstance(self.extra, dict) else self.extra)


@pytest.mark.parametrize("extra", [{"mean": 0.5}, torch.tensor([0.25, 1.0, 2.0, 3.0])], ids=["dict", "tensor"])
def test_extra_states_stay_those_of_the_architecture(extra: Any, tmp_path: Path) -> None:
    inputs = torch.randn(2, 3)
    model = nn.Sequential(Noted(copy.deepcopy(extra)), nn.Tanh()).eval()
    assert "0._extra_state" in model.state_dict()
    assert set(FRAMEWORK.state(model, model.state_dict())) == {"0.weight", "0.bias"}
    decoded = round_trip(model, nn.Sequential(Noted(copy.deepcopy(extra)), nn.Tanh()), tmp_path)
    assert torch.equal(decoded(inputs), model(inputs)) and bool(decoded(inputs).isfinite().all())
    # From a state dict that has them, as an anchor's weights may be: they are not what is loaded.
    other = nn.Sequential(Noted(copy.deepcopy(extra)), nn.Tanh())
    FRAMEWORK.fill(other, model.state_dict(), "the weights")
    assert torch.equal(other(inputs), model(inputs))
    # Models that differ in nothing else are not the same anchor.
    different = nn.Sequential(Noted({"mean": 0.75}), nn.Tanh())
    assert FRAMEWORK.describe(different) != FRAMEWORK.describe(model) == FRAMEWORK.describe(other)


def test_complex_values_of_the_architecture_do_not_remain() -> None:
    model = nn.Module()
    model.kernel = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    filled = FRAMEWORK.copy(model)
    filled.load_state_dict = lambda *_, **__: None
    FRAMEWORK.fill(filled, model.state_dict(), "the tensors")
    assert bool(filled.kernel.isnan().all())


def test_a_program_as_torch_loads_it_is_decoded(tmp_path: Path) -> None:
    model, inputs = network().eval(), torch.randn(2, 1, 8, 8)
    other = network().eval()
    nn.init.zeros_(other[-1].weight)
    torch.export.save(torch.export.export(other, (inputs,)), tmp_path / "network.pt2")
    (tmp_path / "bitstream").mkdir()
    decoded = round_trip(model, torch.export.load(tmp_path / "network.pt2").module(), tmp_path / "bitstream")
    torch.testing.assert_close(decoded(inputs), model(inputs))
    assert not torch.allclose(other(inputs), model(inputs))


def test_the_receiver_imports_nothing_of_the_sender(tmp_path: Path) -> None:
    model = network()
    codec = build_codec({"zstd": {"_target_": "tracker.codecs.floats.Zstd"}})
    assert codec is not None
    encode_bitstream(codec, model.state_dict(), model, tmp_path, CONTEXT)
    script = (
        "import sys; from tracker.decode import main; code = main(sys.argv[1:]);"
        "loaded = {'mlflow', 'hydra', 'aimet_torch', 'tensorflow'} & set(sys.modules);"
        "assert not loaded, loaded; sys.exit(code)"
    )
    words = [sys.executable, "-c", script, str(tmp_path), str(tmp_path.parent / "out.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
