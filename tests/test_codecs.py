"""Coders against NNCodec itself, against formulas written here, and against real command-line compressors."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from conftest import Here, one_line, runs
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nncodec import nn as nncodec_nn
from nncodec import nnc as nncodec
from nncodec.nnc_core.common import get_stepsize_from_qp
from omegaconf import OmegaConf
from pydantic import ValidationError
from safetensors.torch import load, load_file
from torch import nn

from tracker import decode as receiver
from tracker.bitstream import bitstream_bytes, decode_bitstream, encode_bitstream
from tracker.bitstream.state import coded_part
from tracker.codecs.base import Coder, Context
from tracker.codecs.chain import Codec, build_codec
from tracker.codecs.external import External
from tracker.codecs.floats import Bf16, Fp16, Zstd
from tracker.codecs.integers import Int4, Int8
from tracker.codecs.nnc import Nnc
from tracker.codecs.nnc_arguments import escape, keywords, unescape
from tracker.codecs.nnc_steps import step_size
from tracker.codecs.nnc_units import NDU, split
from tracker.codecs.sparsify import Sparsify
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import FRAMEWORK as PYTORCH
from tracker.frameworks.pytorch import state_tensors
from tracker.rate_distortion.norms import plain_norms

CONTEXT = Context(predict=lambda model, inputs: model(inputs), calibration=list, seed=0, device="cpu")
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def normal(*shape: int, seed: int = 0, scale: float = 0.1) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def empty_folder(base: Path) -> Path:
    folder = base / f"b{len(list(base.iterdir()))}"
    folder.mkdir()
    return folder


def there_and_back(coder: Coder, tensors: dict[str, torch.Tensor], base: Path) -> dict[str, torch.Tensor]:
    """The coder alone: encode, then decode with a receiver that lacks the sender's configuration."""
    folder = empty_folder(base)
    coder.encode(tensors, folder, nn.Module(), CONTEXT)
    return dict(coder.receiver().decode(folder))


def through_bitstream(
    coder: Coder, tensors: dict[str, torch.Tensor], base: Path, model: nn.Module | None = None
) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = empty_folder(base)
    encode_bitstream(Codec({}, "x", coder), tensors, model or nn.Module(), folder, CONTEXT)
    return folder, decode_bitstream(folder, coder.receiver())


# --- nnc ---

WEIGHTS = {
    "conv1.weight": normal(8, 3, 3, 3, seed=1),
    "bn1.weight": normal(8, seed=2) + 1,
    "conv2.weight": normal(70, 8, 3, 3, seed=3),
    "fc.weight": normal(10, 70, seed=4),
    "fc.bias": normal(10, seed=5),
}
WEIGHTS["fc.weight"][3] = 0  # a row to skip
WEIGHTS["binary.weight"] = normal(16, 9, seed=6).sign() * 0.1  # where a codebook pays

OPTIONS = [
    {},
    {"qp": -20},
    *({"qp": qp, "qp_density": d, "nonweight_qp": -12} for d, qp in enumerate((-5, -11, -22, -45, -90))),
    {"nonweight_qp": None},
    {"nonweight_qp": -40, "qp": -28},
    {"qp_per_tensor": {"conv2.weight": -12, "fc.bias": -30}},
    {"use_dq": False},
    {"lambda_scale": 4.0},
    {"lambda_scale": 16.0, "use_dq": False},
    {"opt_qp": True},
    {"bitdepth": 4},
    {"bitdepth": 8, "use_dq": False},
    {"bitdepth": 24},
    {"approx_method": "codebook"},
    {"approx_method": "codebook", "use_dq": False, "qp": -8},
    {"param_opt": False},
    {"cabac_unary_length_minus1": 0},
    {"cabac_unary_length_minus1": 15},
    *({"scan_order": order} for order in range(1, 5)),
    {"row_skipping": False},
]


DEFAULT = {"qp": -32, "nonweight_qp": -75, "row_skipping": True}


def direct_call(options: dict) -> bytes:
    """What NNCodec gives by itself for our option names."""
    own = {
        "qp": -32,
        "qp_density": 2,
        "nonweight_qp": -75,
        "qp_per_tensor": None,
        "use_dq": True,
        "lambda_scale": 0,
        "opt_qp": False,
        "param_opt": True,
        "cabac_unary_length_minus1": 10,
        "scan_order": 0,
        "row_skipping": True,
        **options,
    }
    if "bitdepth" in own:
        own["int_quant_bw"] = own.pop("bitdepth")
    if own.pop("approx_method", "uniform") == "codebook":
        own["codebook_mode"] = 2
    arrays = {name: tensor.numpy().copy() for name, tensor in WEIGHTS.items()}
    return bytes(nncodec.compress(arrays, bitstream_path=None, return_bitstream=True, **own))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nnc_gives_the_bytes_and_values_of_nncodec_itself(options: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = direct_call(options)
    values = nncodec.decompress(bytearray(expected))
    before = copy.deepcopy(WEIGHTS)
    folder = tmp_path / "bitstream"
    folder.mkdir()
    coder = Nnc(**options)
    coder.encode(WEIGHTS, folder, nn.Module(), CONTEXT)
    assert [path.name for path in folder.iterdir()] == ["model.nnc"]
    assert (folder / "model.nnc").read_bytes() == expected
    decoded = Nnc().decode(folder)
    assert list(decoded) == list(values)
    for name, value in values.items():
        assert decoded[name].dtype == torch.float32
        assert decoded[name].shape == WEIGHTS[name].shape
        assert np.array_equal(decoded[name].numpy(), value.astype(np.float32))
        assert torch.equal(WEIGHTS[name], before[name])  # the sender's weights are not touched
    assert [path.name for path in tmp_path.iterdir()] == ["bitstream"]  # nncodec left nothing in the current folder


def test_the_options_make_a_difference() -> None:
    """The comparison above would not notice an option that reaches neither side."""
    coded = [direct_call(options) for options in OPTIONS]
    assert len(set(coded)) == len(coded)


@pytest.mark.parametrize("factor", [0.0, 0.9])
def test_nnc_sparsity_is_that_of_nncodec(factor: float, tmp_path: Path) -> None:
    arrays = {name: tensor.numpy().copy() for name, tensor in WEIGHTS.items()}
    args = {"qp": -32, "sparsity": 0.6, "struct_spars_factor": factor, "results": str(tmp_path), "verbose": False}
    expected = bytes(nncodec_nn.encode(arrays, args, epoch=1))
    folder = empty_folder(tmp_path)
    Nnc(sparsity=0.6, struct_spars_factor=factor).encode(WEIGHTS, folder, nn.Module(), CONTEXT)
    assert (folder / "model.nnc").read_bytes() == expected
    zeros = [bool((t == 0).all()) for t in Nnc().decode(folder)["conv2.weight"]]
    assert any(zeros) == (factor > 0)


@given(density=st.integers(0, 4), data=st.data())
@QUICK
def test_step_size_is_the_formula_and_nncodecs_own(density: int, data) -> None:
    limit = 2 ** (5 + density)
    qp = data.draw(st.integers(-limit, limit - 1))
    k = 2**density
    formula = (k + qp % k) * 2.0 ** (qp // k - density)
    assert step_size(qp, density) == formula == float(get_stepsize_from_qp(np.int32(qp), np.int32(density)))


@pytest.mark.parametrize("density", range(5))
def test_nnc_without_dq_rounds_to_half_a_step(density: int, tmp_path: Path) -> None:
    qp = -4 * 2**density - 1
    coder = Nnc(qp=qp, nonweight_qp=qp - 3, qp_density=density, use_dq=False)
    folder = empty_folder(tmp_path)
    records = {record.name: record for record in coder.encode(WEIGHTS, folder, nn.Module(), CONTEXT)}
    decoded = coder.decode(folder)
    for name, tensor in WEIGHTS.items():
        step = records[name].step_size
        assert step == get_stepsize_from_qp(qp if tensor.ndim > 1 else qp - 3, density)
        multiples = decoded[name].double() / step
        assert torch.equal(multiples, multiples.round())
        assert float((decoded[name] - tensor).abs().max()) <= step / 2 * 1.0001


def test_unit_sizes_add_up_and_are_those_of_tensors_alone(tmp_path: Path) -> None:
    folder = empty_folder(tmp_path)
    records = Nnc().encode(WEIGHTS, folder, nn.Module(), CONTEXT)
    whole = (folder / "model.nnc").read_bytes()
    sizes = [len(unit) for kind, unit in split(whole) if kind == NDU]
    assert [record.bytes for record in records] == sizes
    head = len(whole) - sum(sizes)
    units = [unit for kind, unit in split(whole) if kind == NDU]
    assert b"".join(units) == whole[head:]
    for unit, (name, tensor) in zip(units, WEIGHTS.items(), strict=True):
        alone = bytes(nncodec.compress({name: tensor.numpy()}, bitstream_path=None, return_bitstream=True, **DEFAULT))
        assert len(alone) == head + len(unit)
        # They differ in nothing but the tensor's number, whose bits lie in two bytes behind its name.
        number = unit.index(name.encode()) + len(name) + 1
        different = {at for at, (a, b) in enumerate(zip(unit, alone[head:], strict=True)) if a != b}
        assert different <= {number, number + 1}


@given(st.text())
@example("%5FG")
@example("a%255F_G_H%25")
@QUICK
def test_escape_is_undone_and_hides_the_halves(name: str) -> None:
    assert unescape(escape(name)) == name
    assert "_G" not in escape(name)
    assert "_H" not in escape(name)


def test_nnc_takes_awkward_names(tmp_path: Path) -> None:
    names = ["a_G", "a_H", "x_Gb.y_H", "%5FG", "100%", "größe", "日本 語", "", "w" * 400, "w.weight_scaling", "file"]
    tensors = {name: normal(3, 4, seed=i) for i, name in enumerate(names)}
    coder = Nnc(qp=-100, qp_per_tensor={"a_G": -90})
    decoded = there_and_back(coder, tensors, tmp_path)
    assert list(decoded) == names
    for name in names:
        torch.testing.assert_close(decoded[name], tensors[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("density", range(5))
def test_nnc_at_the_ends_of_the_qp_range(density: int, tmp_path: Path) -> None:
    limit = 2 ** (5 + density)
    tensors = {"w": normal(6, 5), "b": normal(5, seed=1)}
    low = there_and_back(Nnc(qp=-limit, nonweight_qp=-limit, qp_density=density), tensors, tmp_path)
    high = there_and_back(Nnc(qp=limit - 1, nonweight_qp=limit - 1, qp_density=density), tensors, tmp_path)
    for name, tensor in tensors.items():
        torch.testing.assert_close(low[name], tensor, atol=2e-9, rtol=0)
        assert not high[name].any()


@pytest.mark.parametrize(
    "options",
    [
        {"qp": -129},
        {"qp": 128},
        {"qp": 32, "qp_density": 0},
        {"nonweight_qp": -129},
        {"nonweight_qp": 0},
        {"qp": -121, "nonweight_qp": None},  # 2^(d+1) lower it leaves the range, and nncodec would wrap it around
        {"qp": -125, "approx_method": "codebook"},  # 2^d lower in codebook mode
        {"qp_per_tensor": {"w": 500}},
        {"bitdepth": 1},
        {"bitdepth": 8, "opt_qp": True},
        {"struct_spars_factor": 0.5},
        {"bnf": True, "bitdepth": 8},
        {"bnf": True, "approx_method": "codebook"},
        {"scan_order": 5},
        {"cabac_unary_length_minus1": 16},
        {"lambda_scale": -1},
        {"sparsity": 1.0},
        {"qp_density": 5},
        {"lsa": True},
        {"ioq": True},
        {"fine_tune": True},
        {"tca": True},
        {"nonsense": 1},
    ],
    ids=str,
)
def test_nnc_refuses(options: dict) -> None:
    with pytest.raises(ValidationError):
        Nnc(**options)
    with pytest.raises(TrackerError, match=r"codec\.nnc") as refused:
        build_codec({"nnc": {"_target_": "tracker.codecs.nnc.Nnc", **options}})
    assert "\n" not in str(refused.value)


def test_qp_per_tensor_can_be_given_as_hydra_gives_it() -> None:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base=None):
        plain = compose("config", ["+codec=nnc"])
        given = compose("config", ["+codec=nnc", "codec.nnc.qp_per_tensor={0.weight: -20, 9.bias: -7}"])
    found = [build_codec(OmegaConf.to_container(config.codec)).coder.qp_per_tensor for config in (plain, given)]
    assert found == [{}, {"0.weight": -20, "9.bias": -7}]


def test_nnc_at_the_last_qps_that_are_taken(tmp_path: Path) -> None:
    """One less is refused above; these must decode to what was coded."""
    two_values = normal(1, 1).sign().repeat(64, 32) * 0.1
    tensors = {"w": two_values, "b": normal(9)}
    for options in ({"qp": -120, "nonweight_qp": None}, {"qp": -124, "approx_method": "codebook"}):
        decoded = there_and_back(Nnc(**options), tensors, tmp_path)
        for name, tensor in tensors.items():
            torch.testing.assert_close(decoded[name], tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, 6),
        torch.zeros(7),
        torch.tensor([0.25]),
        torch.tensor([[-0.25]]),
        normal(2, 3, 2, 3, 2),
        normal(6, 9).t(),
        normal(10, 10)[::2, 1::3],
        torch.tensor([1e-40, 1e-44, 0.0]),
        torch.tensor([[3e18, -1.0], [0.0, 1.0]]),
    ],
    ids=["zeros", "zero vector", "1", "1x1", "5-d", "transposed", "strided", "denormal", "huge"],
)
def test_nnc_extreme_tensors(tensor: torch.Tensor, tmp_path: Path) -> None:
    for options in ({"use_dq": False}, {}, {"approx_method": "codebook"}):
        found = there_and_back(Nnc(qp=-60, nonweight_qp=-60, **options), {"x": tensor}, tmp_path)["x"]
        assert found.shape == tensor.shape
        bound = 2 * step_size(-60, 2) + float(tensor.abs().max()) * 2**-24
        assert float((found - tensor).abs().max()) <= bound


def test_nnc_refuses_what_it_would_code_as_garbage(tmp_path: Path) -> None:
    with pytest.raises(TrackerError, match="the tensor x has values beyond"):
        there_and_back(Nnc(), {"x": torch.tensor([[1e30, 1.0]])}, tmp_path)
    with pytest.raises(TrackerError, match=r"scan_order=1 .* row\.weight"):
        there_and_back(Nnc(scan_order=1), {"row.weight": normal(1, 9)}, tmp_path)
    with pytest.raises(TrackerError, match=r"nothing\.weight"):
        there_and_back(Nnc(qp_per_tensor={"nothing.weight": -3}), {"x": normal(2, 2)}, tmp_path)


# --- nnc: BatchNorm folding ---


class Net(nn.Module):
    """A convolution, a normalisation, and one of several things done with them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.n = nn.BatchNorm2d(3)
        self.b = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.m = nn.BatchNorm2d(3)
        if kind == "tied weight":
            self.b.weight = self.a.weight
        if kind == "tied norm":
            self.m.weight = self.n.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        if self.kind == "used twice":
            return self.n(y) + y
        if self.kind == "called twice":
            return self.n(self.a(self.n(y)))
        z = torch.relu(self.n(y))
        if self.kind == "functional":
            return nn.functional.conv2d(z, self.a.weight)
        return self.m(z) if self.kind == "tied norm" else self.b(z)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.sum() > 0 else x


class OnAnotherDimension(nn.Module):
    """The normalisation works on the sequence, the linear layer on the features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x))


def images() -> torch.Tensor:
    return normal(4, 3, 8, 8, seed=9, scale=1.0)


FOLDED = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)), images),
    "conv with bias": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)), images),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), images),
    "large eps": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, eps=2.0)), images),
    "small eps": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=1e-9)), images),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)), lambda: normal(6, 5, scale=1.0)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(5, 7, 3), nn.BatchNorm1d(7)), lambda: normal(6, 5, 9, scale=1.0)),
    "some": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1)),
            *(nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)),
        ),
        images,
    ),
    "float64": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)).double(),
        lambda: normal(6, 5, scale=1.0).double(),
    ),
}
LEFT_ALONE = {
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 3, 3), nn.BatchNorm2d(3)), images),
    "not affine": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)), images),
    "no statistics": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
        images,
    ),
    "nothing to fold": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), images),
    "another dimension": (OnAnotherDimension, lambda: normal(2, 4, 5, scale=1.0)),
    **{
        kind: (lambda kind=kind: Net(kind), images)
        for kind in ("used twice", "called twice", "tied weight", "tied norm", "functional")
    },
}


def trained(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", [*FOLDED, *LEFT_ALONE])
def test_folding_keeps_the_outputs(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, inputs = {**FOLDED, **LEFT_ALONE}[name]
    model, fresh = trained(build()), build().eval()
    coder = Nnc(qp=-90, nonweight_qp=-110, bnf=True)
    folder, decoded = through_bitstream(coder, model.state_dict(), tmp_path, model)
    assert (folder / "fold.zst").is_file() == (name in FOLDED)
    PYTORCH.fill(fresh, decoded, "the decoded tensors")
    with torch.no_grad():
        expected, found = model(inputs()), fresh(inputs())
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # Errors are against what is decoded where nothing is lost, of every tensor that was coded.
    restated = coder.restated(model.state_dict(), model, CONTEXT)
    for tensor, values in restated.items():
        torch.testing.assert_close(decoded[tensor].float(), values.float(), atol=1e-4, rtol=1e-4)
    assert list(restated) == [tensor for tensor in model.state_dict() if tensor in restated]
    weights = {tensor for tensor, values in model.state_dict().items() if values.ndim > 1}
    assert weights <= restated.keys() and (len(restated) < len(model.state_dict())) == (name in FOLDED)


def test_folding_makes_the_bitstream_smaller(tmp_path: Path) -> None:
    model = trained(FOLDED["some"][0]())
    plain, _ = through_bitstream(Nnc(), model.state_dict(), tmp_path, model)
    folded, _ = through_bitstream(Nnc(bnf=True), model.state_dict(), tmp_path, model)
    assert (folded / "model.nnc").stat().st_size < (plain / "model.nnc").stat().st_size


def folding() -> nn.Module:
    """A convolution without and one with a bias before a normalisation, and a layer alone."""
    torch.manual_seed(0)
    first = (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return trained(nn.Sequential(*first, nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 5)))


@pytest.mark.parametrize("options", [{}, {"use_dq": False, "qp": -20}, {"nonweight_qp": -30, "opt_qp": True}])
def test_folding_gives_the_bytes_of_nncodecs_own(options: dict[str, Any], tmp_path: Path) -> None:
    model, coder = folding(), Nnc(bnf=True, **options)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim}
    coder.encode(tensors, tmp_path, model, CONTEXT)
    kinds = {"running_mean": "bn.mean", "running_var": "bn.var"}
    arrays, types, blocks = {}, {}, dict[str, str | None]()
    for name, tensor in tensors.items():
        layer, part = name.split(".")
        arrays[escape(name)] = tensor.numpy()
        norm = {"weight": "bn.gamma", "bias": "bn.beta", **kinds}[part]
        alone = "weight" if part == "weight" else "unspecified"
        types[escape(name)] = norm if layer in "14" else part if layer in "03" else alone
        blocks[escape(name)] = None if layer == "6" else f"block{int(layer) // 3}"
    words = keywords(arrays, set(arrays), coder, CONTEXT)
    tables = {"block_identifier": blocks, "parameter_type": types}
    coded = nncodec.compress(
        arrays, bitstream_path=None, return_bitstream=True, bnf=True, block_id_and_param_type=tables, **words
    )
    assert (tmp_path / "model.nnc").read_bytes() == bytes(coded)


def test_scales_and_shifts_have_the_step_sizes_that_were_chosen_for_the_norm(tmp_path: Path) -> None:
    model = folding()
    plain_norms(model)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim}
    qps = {"0.weight": -18, "1.weight": -21, "1.bias": -13, "3.bias": -20, "4.weight": -16, "4.bias": -24}
    chosen = {name: step_size(qp, 2) for name, qp in qps.items()}
    exact = ["0.weight", "1.weight", "1.bias"]
    for name in exact:
        tensors[name].copy_((tensors[name] / chosen[name]).round() * chosen[name])
    own = dataclasses.replace(CONTEXT, steps=chosen, exact=exact)
    sizes = []
    for context in (CONTEXT, own):
        Nnc(bnf=True, use_dq=False).encode(tensors, tmp_path, model, context)
        sizes.append((tmp_path / "model.nnc").stat().st_size)
    assert sizes[1] < sizes[0] - 30
    coded = bytearray((tmp_path / "model.nnc").read_bytes())
    found = nncodec.decompress(coded, verbose=False, reconstruct_lsa=False)
    scales = {"0.weight_scaling": "1.weight", "3.weight_scaling": "4.weight"}
    for name, of in {**scales, "0.weight.bias": "1.bias", "3.bias": "4.bias"}.items():
        multiples = found[name] / chosen[of]
        assert np.allclose(multiples, multiples.round(), atol=1e-3), name
        shift = 0 if name != "3.bias" else tensors["3.bias"] * tensors["4.weight"]
        assert float(np.abs(found[name] - (tensors[of] + shift).numpy()).max()) <= 0.51 * chosen[of]
    assert torch.equal(torch.from_numpy(found["0.weight.bias"]), tensors["1.bias"])


def test_folding_needs_a_model_that_can_be_traced(tmp_path: Path) -> None:
    model = Untraceable()
    with pytest.raises(TrackerError, match=r"torch\.fx"):
        through_bitstream(Nnc(bnf=True), model.state_dict(), tmp_path, model)


# --- int8, int4 ---


def packed(folder: Path) -> dict[str, torch.Tensor]:
    return load(zstandard.ZstdDecompressor().decompress((folder / "model.zst").read_bytes()))


@st.composite
def matrices(draw) -> torch.Tensor:
    shape = draw(st.lists(st.integers(1, 7), min_size=2, max_size=4))
    tensor = normal(*shape, seed=draw(st.integers(0, 99)), scale=10.0 ** draw(st.integers(-30, 30)))
    for row in range(len(tensor)):  # rows of very different sizes, some of them zero
        tensor[row] *= draw(st.sampled_from([0.0, 1e-4, 1.0, 1.0, 1e4]))
    return tensor


def grouped(tensor: torch.Tensor, size: int) -> list[np.ndarray]:
    """The values that share a scale."""
    rows = tensor.double().numpy().reshape(len(tensor), -1)
    return [row[i : i + size] for row in rows for i in range(0, len(row), size)]


def check_integers(tensor: torch.Tensor, found: torch.Tensor, size: int, largest: int) -> None:
    assert found.shape == tensor.shape
    assert found.dtype == torch.float32
    for values, decoded in zip(grouped(tensor, size), grouped(found, size), strict=True):
        scale = np.abs(values).max() / largest
        # int4's float16 scale may itself be off, by up to half a step for the largest value.
        slack = scale / 28 if largest == 7 else scale * 1e-4
        assert np.abs(decoded - values).max() <= scale / 2 + slack + 1e-43
        assert len(np.unique(decoded)) <= 2 * largest + 1
        if scale > (1e-4 if largest == 7 else 1e-35):
            multiples = decoded / scale
            assert np.abs(multiples - np.rint(multiples)).max() < 0.01
            assert np.abs(np.rint(multiples)).max() == largest  # the range is used to its end
        if scale == 0:
            assert not decoded.any()


@given(matrices())
@example(torch.zeros(3, 4))
@example(torch.tensor([[1e-44, 3e-45], [1.0, 2.0]]))
@example(torch.tensor([[3e38, -3.4e38], [1e-38, 0.0]]))
@QUICK
def test_int8_against_the_formula(tmp_path: Path, tensor: torch.Tensor) -> None:
    found = there_and_back(Int8(level=1), {"w": tensor}, tmp_path)["w"]
    check_integers(tensor, found, tensor[0].numel(), 127)


@given(matrices(), st.sampled_from([2, 3, 5, 64, 65536]))
@example(torch.zeros(3, 4), 3)
@example(torch.full((2, 5), 6.3e-7), 4)  # scales that float16 has only as subnormal numbers
@example(torch.tensor([[3e38, -3.4e38], [1e-38, 0.0]]), 2)
@QUICK
def test_int4_against_the_formula(tmp_path: Path, tensor: torch.Tensor, size: int) -> None:
    found = there_and_back(Int4(level=1, group_size=size), {"w": tensor}, tmp_path)["w"]
    check_integers(tensor, found, size, 7)


def test_int8_exact_values(tmp_path: Path) -> None:
    tensor = torch.tensor([[-127.0, 64.0, 0.4, 0.6], [0.0, 0.0, 0.0, 0.0], [2.54, 1.27, -0.0127, 0.0]])
    expected = torch.tensor([[-127.0, 64.0, 0.0, 1.0], [0, 0, 0, 0], [2.54, 1.28, -0.02, 0.0]])
    found = there_and_back(Int8(), {"w": tensor}, tmp_path)["w"]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_stored_integers_and_scales_are_all_counted(tmp_path: Path) -> None:
    tensors = {"w": normal(5, 7, 3), "b": normal(5)}
    eight, four, half = (empty_folder(tmp_path) for _ in range(3))
    Int8().encode(tensors, eight, nn.Module(), CONTEXT)
    Int4(group_size=4).encode(tensors, four, nn.Module(), CONTEXT)
    Int8(nonweight="float16").encode(tensors, half, nn.Module(), CONTEXT)

    def sizes(folder: Path) -> dict[str, int]:
        return {name: tensor.numel() * tensor.element_size() for name, tensor in packed(folder).items()}

    assert sizes(eight) == {"q:w": 105, "s:w": 5 * 4, "f:b": 5 * 4}
    assert sizes(half)["f:b"] == 5 * 2
    found = sizes(four)
    assert found["q:w"] == -(-105 // 2)
    assert found["s:w"] == 5 * 6 * 2  # 21 values a channel in groups of 4, float16
    folder, _ = through_bitstream(Int8(), tensors, tmp_path)
    assert bitstream_bytes(folder) == sum(path.stat().st_size for path in folder.iterdir())
    assert {path.name for path in folder.iterdir()} == {"model.zst", "manifest.json"}


def test_integer_coders_keep_vectors(tmp_path: Path) -> None:
    tensors = {"b": torch.tensor([1e-40, 3e38, -0.1])}
    for coder in (Int8(), Int4()):
        assert torch.equal(there_and_back(coder, tensors, tmp_path)["b"], tensors["b"])
    with pytest.raises(TrackerError, match="float16"):
        there_and_back(Int8(nonweight="float16"), tensors, tmp_path)


# --- fp16, bf16, zstd ---


@given(matrices())
@QUICK
def test_half_precision_rounds_to_nearest_even(tmp_path: Path, tensor: torch.Tensor) -> None:
    array = tensor.numpy()
    if np.abs(array).max() < 65504:
        found = there_and_back(Fp16(level=1), {"w": tensor}, tmp_path)["w"]
        assert np.array_equal(found.float().numpy(), array.astype(np.float16).astype(np.float32))
    bits = array.view(np.uint32).astype(np.uint64)
    upper = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
    found = there_and_back(Bf16(level=1), {"w": tensor}, tmp_path)["w"]
    assert np.array_equal(found.float().numpy(), upper.astype(np.uint32).view(np.float32))


def test_values_beyond_a_format_are_refused_by_name(tmp_path: Path) -> None:
    assert float(there_and_back(Fp16(), {"w": torch.tensor([65504.0])}, tmp_path)["w"]) == 65504
    with pytest.raises(TrackerError, match=r"the tensor w has values up to 6.55e\+04, beyond the range of float16"):
        there_and_back(Fp16(), {"w": torch.tensor([-65520.0])}, tmp_path)
    with pytest.raises(TrackerError, match=r"the tensor w .* beyond the range of bfloat16"):
        there_and_back(Bf16(), {"w": torch.tensor([3.4e38])}, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_zstd_is_bit_exact(dtype: torch.dtype, tmp_path: Path) -> None:
    width = {torch.float16: np.uint16, torch.bfloat16: np.uint16, torch.float32: np.uint32}.get(dtype, np.uint64)
    bits = np.random.default_rng(0).integers(0, np.iinfo(width).max, 4096, dtype=width)
    signed = {np.uint16: np.int16, np.uint32: np.int32, np.uint64: np.int64}[width]
    raw = torch.from_numpy(bits.view(signed)).view(dtype)  # every kind of number: denormal, negative zero, ...
    tensor = torch.where(raw.isfinite(), raw, torch.zeros((), dtype=dtype)).reshape(64, 64)
    tensor[0, 0] = -0.0
    found = there_and_back(Zstd(level=1), {"w": tensor}, tmp_path)["w"]
    assert found.dtype == dtype
    assert (
        found.numpy(force=True).tobytes() == tensor.numpy().tobytes()
        if dtype != torch.bfloat16
        else (torch.equal(found.view(torch.int16), tensor.view(torch.int16)))
    )


def test_zstd_makes_redundant_weights_small(tmp_path: Path) -> None:
    folder, _ = through_bitstream(Zstd(), {"w": torch.ones(1000, 100)}, tmp_path)
    assert bitstream_bytes(folder) < 1000


# --- external ---

COMMANDS = {
    "xz": ("xz --keep --stdout {input}", "xz --decompress --stdout {input}"),
    "gzip": ("gzip --stdout {input}", "gzip --decompress --stdout {input}"),
    "bzip2": ("bzip2 --stdout {input}", "bzip2 --decompress --stdout {input}"),
    "zstd": ("zstd -q {input} -o {output}", "zstd -q -d {input} -o {output}"),
    "cp": ("cp {input} {output}", "cp {input} {output}"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("exchange", ["safetensors", "pt", "npz"])
def test_external_is_lossless_with_lossless_commands(command: str, exchange: str, tmp_path: Path) -> None:
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed")
    encode, decode = COMMANDS[command]
    coder = External(encode_command=encode, decode_command=decode, exchange=exchange)
    coder.check()
    base = torch.zeros(1000)
    tensors = {
        **{"file": normal(3, 4), "a/b": normal(5, seed=1), "../up": normal(6, 2, seed=2).t(), "z.npy": normal(1)},
        **{"arr_0": normal(2, seed=3), "größe x": normal(4, seed=4), "view": base[3:9]},
    }
    folder, decoded = through_bitstream(coder, tensors, tmp_path)
    assert decoded.keys() == tensors.keys()
    assert all(torch.equal(decoded[name], tensor) for name, tensor in tensors.items())
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.ext"]


@pytest.mark.parametrize("exchange", ["safetensors", "pt", "npz"])
def test_external_keeps_prefixes_of_names(exchange: str, tmp_path: Path) -> None:
    coder = External(encode_command="cat {input}", decode_command="cat {input}", exchange=exchange)
    tensors = {"module.a": normal(3), "module.b": normal(2, 2)}
    assert there_and_back(coder, tensors, tmp_path).keys() == tensors.keys()


@pytest.mark.parametrize(
    ("encode", "decode", "message"),
    [
        ("sh -c 'echo all is lost >&2; exit 3' {input}", "cat {input}", "status 3: all is lost"),
        ("true {input}", "cat {input}", "wrote nothing"),
        ("cat {input}", "head -c 50 {input}", "cannot be read as exchange=safetensors"),
        ("cat {input}", "true {input}", "wrote nothing"),
        ("sh -c 'sleep 9' {input}", "cat {input}", "more than 0.5 s"),
        ("cat {input} {0} {nothing}", "cat {input}", "ended with status 1"),
    ],
)
def test_external_commands_that_fail(encode: str, decode: str, message: str, tmp_path: Path) -> None:
    coder = External(encode_command=encode, decode_command=decode, timeout_s=0.5)
    with pytest.raises(TrackerError, match=message):
        through_bitstream(coder, {"w": normal(3, 4)}, tmp_path)


def test_external_commands_may_have_braces(tmp_path: Path) -> None:
    coder = External(
        encode_command="awk 'BEGIN {while ((getline line < ARGV[1]) > 0) {print line} exit}' {input}",
        decode_command="cat {input}",
    )
    folder = empty_folder(tmp_path)
    coder.encode({"w": normal(3)}, folder, nn.Module(), CONTEXT)
    assert (folder / "model.ext").stat().st_size > 12


def test_external_refuses_before_any_work() -> None:
    for commands, message in (
        ({}, "encode_command is not set"),
        ({"encode_command": "nosuchprogram {input}"}, "nosuchprogram is not installed"),
        ({"encode_command": "cat {input}"}, "decode_command is not set"),
    ):
        with pytest.raises(TrackerError, match=message):
            External(**commands).check()
    for command in ("cat", "cat '{input}"):
        with pytest.raises(ValidationError):
            External(encode_command=command)


# --- every coder: all that a state dict can hold ---


def nasty() -> dict[str, torch.Tensor]:
    base, shared = normal(12, seed=8), normal(4, 4, seed=9)
    return {
        "half.w": normal(6, 5, seed=1).half(),
        "brain.w": normal(6, 5, seed=2).bfloat16(),
        "single.w": normal(6, 5, seed=3),
        "double.w": normal(6, 5, seed=4).double(),
        "half.b": normal(5, seed=5).half(),
        "scale": torch.tensor(0.1),
        "scale64": torch.tensor(-0.1, dtype=torch.float64),
        "count": torch.tensor(2**53 + 1),
        "flag": torch.tensor(True),
        "int8": torch.arange(-128, 128).to(torch.int8),
        "int32": torch.tensor([[-(2**31), 2**31 - 1]], dtype=torch.int32),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "uint8": torch.arange(256).to(torch.uint8).reshape(16, 16),
        "bool": torch.tensor([True, False, True]),
        "empty": torch.zeros(0),
        "empty.half": torch.zeros(3, 0, 2, dtype=torch.float16),
        "empty.int": torch.zeros(0, 4, dtype=torch.int64),
        "tied.a": shared,
        "tied.b": shared,
        "tied.int": torch.arange(3),
        "tied.t": shared.t(),
        "strided": normal(8, 9, seed=6)[::2, 1::3],
        "view.a": base[:8],
        "view.b": base[4:],
        "view.c": base[:8].view(2, 4),
        "deep.er.name.with_G.and_H": normal(3, 3, seed=7),
    }


CODERS = {
    "nnc": Nnc(qp=-60, nonweight_qp=-80),
    "nnc codebook": Nnc(approx_method="codebook", qp=-60),
    "int8": Int8(),
    "int4": Int4(group_size=3),
    "fp16": Fp16(),
    "bf16": Bf16(),
    "zstd": Zstd(),
    "external": External(encode_command="cat {input}", decode_command="cat {input}"),
    "external pt": External(encode_command="cat {input}", decode_command="cat {input}", exchange="pt"),
    "external npz": External(encode_command="cat {input}", decode_command="cat {input}", exchange="npz"),
}
TOLERANCE = {"int8": 0.002, "int4": 0.025, "nnc": 1e-4, "nnc codebook": 1e-4, "fp16": 3e-4, "bf16": 2e-3}


@pytest.mark.parametrize("name", CODERS)
def test_every_state_dict_survives(name: str, tmp_path: Path) -> None:
    coder, tensors = CODERS[name], nasty()
    before = copy.deepcopy(tensors)
    folder, decoded = through_bitstream(coder, tensors, tmp_path)
    assert decoded.keys() == tensors.keys()
    for key, tensor in tensors.items():
        found = decoded[key]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), key
        if not tensor.is_floating_point() or tensor.ndim == 0:
            assert torch.equal(found, tensor), key
        elif tensor.numel():
            error = float((found.double() - tensor.double()).abs().max())
            assert error <= TOLERANCE.get(name, 0.0 if tensor.dtype != torch.float64 else 1e-8), key
        assert torch.equal(tensor, before[key])
    assert decoded["tied.a"].data_ptr() == decoded["tied.b"].data_ptr()

    output = tmp_path / "out.safetensors"
    extra = ["--decode-command", "cat {input}", "--exchange", coder.exchange] if isinstance(coder, External) else []
    assert receiver.main([str(folder), str(output), *extra]) == 0
    written = load_file(output)
    assert written.keys() == decoded.keys()
    for key, tensor in decoded.items():
        assert written[key].dtype == tensor.dtype
        assert torch.equal(written[key], tensor)


@pytest.mark.parametrize("name", CODERS)
@pytest.mark.parametrize(
    "tensors",
    [
        {"n": torch.tensor(3), "table": torch.arange(6).reshape(2, 3)},
        {"scale": torch.tensor(0.5)},
        {},
        {"e": torch.zeros(0, 3)},
    ],
    ids=["integers", "0-d", "nothing", "empty"],
)
def test_state_dicts_without_any_tensor_for_the_coder(name: str, tensors: dict, tmp_path: Path) -> None:
    folder, decoded = through_bitstream(CODERS[name], tensors, tmp_path)
    assert decoded.keys() == tensors.keys()
    assert all(torch.equal(decoded[key], tensor) for key, tensor in tensors.items())
    assert not {"model.nnc", "model.zst", "model.ext"} & {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_what_is_not_finite_is_refused_by_name(value: float, dtype: torch.dtype) -> None:
    tensors = {"good": normal(3), "bad": normal(2, 3).to(dtype)}
    assert coded_part(tensors).keys() == {"good", "bad"}
    tensors["bad"][1, 2] = value
    with pytest.raises(TrackerError, match="the tensor bad"):
        coded_part(tensors)


# --- chains ---


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ({"int8": "integers.Int8", "zstd": "floats.Zstd"}, "2 coders"),
        ({"nnc": "nnc.Nnc", "fp16": "floats.Fp16", "int4": "integers.Int4"}, "3 coders"),
    ],
)
def test_chains_with_several_coders_are_refused(chain: dict, message: str) -> None:
    config = {name: {"_target_": f"tracker.codecs.{path}"} for name, path in chain.items()}
    with pytest.raises(TrackerError, match=message):
        build_codec(config)


def test_an_empty_chain_is_none() -> None:
    assert build_codec({}) is None


@pytest.mark.parametrize("options", [{}, {"use_dq": False}, {"opt_qp": True}, {"sparsity": 0.5}])
def test_the_preview_of_nnc_is_what_its_decoder_gives(options: dict[str, Any], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {"a_G.weight": torch.randn(12, 6, 3, 3, generator=generator), "b": torch.randn(7, generator=generator)}
    coder = Nnc(qp=-20, **options)
    preview = coder.preview(tensors, nn.Module(), CONTEXT)
    coder.encode(tensors, tmp_path, nn.Module(), CONTEXT)
    decoded = coder.decode(tmp_path)
    assert preview is not None
    assert sorted(preview) == sorted(decoded)
    for name, tensor in decoded.items():
        assert torch.equal(preview[name], tensor)


@pytest.mark.parametrize(
    ("qp", "density", "whole", "finer"), [(-26.5, 2, -53, 3), (-26.25, 2, -105, 4), (-13.5, 1, -27, 2)]
)
def test_a_qp_between_two_steps_is_one_of_a_finer_density(
    qp: float, density: int, whole: int, finer: int, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {"w": torch.randn(12, 6, 3, 3, generator=generator), "b": torch.randn(7, generator=generator)}
    coder = Nnc(qp=qp, qp_density=density, nonweight_qp=-20)
    records = coder.encode(tensors, tmp_path, nn.Module(), CONTEXT)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    options = {
        **DEFAULT,
        "qp": whole,
        "qp_density": finer,
        "nonweight_qp": -20 * 2 ** (finer - density),
        "use_dq": True,
    }
    direct = nncodec.compress(arrays, bitstream_path=None, return_bitstream=True, **options)
    assert (tmp_path / "model.nnc").read_bytes() == bytes(direct)
    assert records[0].step_size == get_stepsize_from_qp(whole, finer)
    assert records[1].step_size == get_stepsize_from_qp(-20, density)


def test_a_qp_between_the_finest_steps_is_refused() -> None:
    with pytest.raises(ValidationError, match="multiple of 1/4"):
        Nnc(qp=-26.1)
    assert Nnc(qp=-26.0).qp == -26 and isinstance(Nnc(qp=-26.0).qp, int)
    with pytest.raises(ValidationError, match="qp_late"):
        Nnc(qp=-10, qp_late=200)


def test_slopes_change_the_qp_of_the_first_and_the_last_weights(tmp_path: Path) -> None:
    tensors = {f"w{index}": torch.randn(8, 8) for index in range(5)} | {"b": torch.randn(8)}
    coder = Nnc(qp=-20, qp_early=-4, qp_late=2, nonweight_qp=-40)
    steps = [record.step_size for record in coder.encode(tensors, tmp_path, nn.Module(), CONTEXT)]
    wanted = [step_size(qp, 2) for qp in (-24, -22, -20, -19, -18, -40)]
    assert steps == wanted
    own = Nnc(qp=-20, qp_early=-4, qp_per_tensor={"w0": -30})
    assert own.encode(tensors, tmp_path, nn.Module(), CONTEXT)[0].step_size == step_size(-30, 2)


class Shared(nn.Module):
    """A table that gives the scores too, a layer of other size, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner, self.norm = nn.Embedding(20, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.scores = nn.Linear(8, 20, bias=False)
        self.scores.weight = self.words.weight


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_the_least_weights_become_zero(scope: str) -> None:
    torch.manual_seed(0)
    model = Shared()
    nn.init.normal_(model.words.weight, std=3.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own = dataclasses.replace(CONTEXT, state=state_tensors)
    done = Sparsify(sparsity=0.4, scope=scope).apply(model, own)
    after = done.state_dict()
    assert done.scores.weight is done.words.weight
    weights = {name: before[name] for name in ("words.weight", "inner.weight")}
    every = torch.cat([weight.abs().flatten() for weight in weights.values()])
    for name, weight in weights.items():
        among = every if scope == "model" else weight.abs().flatten()
        least = among.sort().values[round(0.4 * len(among)) - 1]
        assert torch.equal(after[name], torch.where(weight.abs() <= least, 0, weight))
    for name in before.keys() - weights.keys() - {"scores.weight"}:
        assert torch.equal(after[name], before[name])


def test_zeros_cost_little_behind_zstd(here: Here, tmp_path: Path) -> None:
    for words in (["+codec=zstd"], ["+codec=[sparsify,zstd]", "codec.sparsify.sparsity=0.8"]):
        assert here(*words).returncode == 0
    sizes = [run.data.metrics["size/bitstream_bytes"] for run in runs(tmp_path, "compression")]
    assert sizes[1] < 0.4 * sizes[0]
    one_line(here("+codec=[sparsify,zstd]", "codec.sparsify.sparsity=1"), "codec.sparsify.sparsity")


def test_weights_of_a_keras_model_become_zero(here: Here, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    words = ("anchor=keras_digits", "anchor.epochs=1", "+codec=[sparsify,zstd]")
    assert here(*words, "codec.sparsify.sparsity=0.7").returncode == 0
    (run,) = runs(tmp_path, "compression")
    found = decode_bitstream(tmp_path / f"mlruns/artifacts/{run.info.run_id}/artifacts/bitstream")
    weights = torch.cat([tensor.flatten() for tensor in found.values() if tensor.ndim > 1])
    assert float((weights == 0).float().mean()) == pytest.approx(0.7, abs=0.001)
    others = torch.cat([tensor.flatten() for name, tensor in found.items() if "variance" in name])
    assert len(others) and (others > 0).all()
