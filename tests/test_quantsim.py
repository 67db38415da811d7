"""quantsim against AIMET itself called directly, on the models that users have, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from conftest import Here, runs
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from tracker.anchors.base import output_tensor
from tracker.anchors.digits import Digits
from tracker.bitstream import bitstream_bytes, decode_bitstream, encode_bitstream, read_manifest
from tracker.codecs.base import Context
from tracker.codecs.chain import Codec
from tracker.codecs.floats import Fp16, Zstd
from tracker.codecs.integers import Int8
from tracker.codecs.nnc import Nnc
from tracker.codecs.quantsim import QuantSim
from tracker.codecs.records import Transformed
from tracker.data.digits import Digits as DigitsData
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import FRAMEWORK
from tracker.structure import Edit, rebuild

pytest.importorskip("aimet_torch")


def predict(model: nn.Module, inputs: Any) -> Tensor:
    return output_tensor(model(**inputs) if isinstance(inputs, dict) else model(inputs))


class Net(nn.Module):
    """Grouped, transposed and one-dimensional convolutions, norms that fold and ones that do not, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.each, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.up, self.norm3 = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6)
        self.act1, self.act2 = nn.ReLU6(), nn.ReLU6()
        self.last, self.line, self.layer = nn.Conv2d(6, 4, 3), nn.Conv1d(4, 5, 3), nn.LayerNorm(5)
        self.fc, self.norm4 = nn.Linear(5, 7), nn.BatchNorm1d(7, affine=False)
        self.mix = nn.Parameter(torch.randn(2, 7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.norm2(self.each(self.act1(self.norm1(self.first(x))))))
        x = self.last(functional.relu(self.norm3(self.up(x))))
        x = self.layer(self.line(x.flatten(2)).mean(2))
        return self.norm4(self.fc(x)) @ self.mix.T


class Language(nn.Module):
    """Like a transformer: named inputs, a dict of outputs, the embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(400, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 400, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.block(self.embed(ids) * mask[..., None]))}


class Padded(nn.Conv2d):
    """A subclass, as model libraries have them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (1, 1, 1, 1)))


class Own(nn.Module):
    """A layer of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 8) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)


class Shared(nn.Module):
    """One convolution in three places with different norms behind it, a recurrent layer, a reparametrised weight."""

    def __init__(self) -> None:
        super().__init__()
        self.padded, self.conv = Padded(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.again, self.block = self.conv, nn.Sequential(self.conv, nn.ReLU())
        self.norm1, self.norm2, self.own = nn.BatchNorm2d(8), nn.BatchNorm2d(8), Own()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.out = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.norm2(self.again(self.norm1(self.conv(self.padded(x))))))
        return self.out(self.lstm(self.own(x.mean((2, 3)))[:, None])[0][:, 0])


class Untraceable(nn.Module):
    """As models with a compiled kernel of their own are: it runs, and tracing it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("this kernel\ncannot be traced")
        return self.norm(self.conv(x)).mean((2, 3))


GENERATOR = torch.Generator().manual_seed(0)
IMAGES = [torch.randn(n, 3, 16, 16, generator=GENERATOR) for n in (6, 6, 2)]
WORDS = [{"ids": torch.randint(0, 400, (3, 9), generator=GENERATOR), "mask": torch.ones(3, 9)} for _ in range(2)]


def made(kind: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model whose norms have learned something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 2), nn.init.normal_(module.bias)
    return model


def context(folder: Path, batches: Any, seed: int = 0) -> Context:
    return Context(predict, lambda: iter(batches), seed, "cpu", folder=folder)


def applied(stage: QuantSim, model: nn.Module, folder: Path, batches: Any, seed: int = 0) -> Transformed:
    folder.mkdir(exist_ok=True)
    return stage.apply(model, context(folder, batches, seed))


def through(coder: Any, given: Transformed, kind: Callable[[], nn.Module], folder: Path) -> tuple[nn.Module, int]:
    """The decoded model, from the bitstream alone, and the bitstream's size."""
    folder.mkdir()
    state = FRAMEWORK.state(given.model, given.model.state_dict().keys())
    codec = Codec({"quantsim": QuantSim()}, "coder", coder)
    encode_bitstream(codec, state, given.model, folder, context(folder, []), given.edits, given.integers)
    decoded = decode_bitstream(folder, coder.receiver())
    model = rebuild(kind(), read_manifest(folder).structure)
    FRAMEWORK.fill(model, decoded, "the decoded tensors")
    return FRAMEWORK.ready(model, "cpu"), bitstream_bytes(folder)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def outputs(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        return predict(model, inputs)


# Digits: AIMET called as its documentation says, by whoever has never seen this project.


def aimet_itself(stage: QuantSim, folder: Path) -> Any:
    import aimet_torch
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.common.defs import QuantScheme
    from aimet_torch.quantsim import QuantizationSimModel

    model = filled()
    example = DigitsData().arrays("calibration")[0][:1]
    fold_all_batch_norms(model, None, dummy_input=example)
    shipped = Path(aimet_torch.__file__).parent / "common" / "quantsim_config"
    text = (shipped / f"default_config{'_per_channel' if stage.per_channel else ''}.json").read_text()
    config = folder / "config.json"
    config.write_text(text if stage.symmetric else text.replace('"is_symmetric": "True"', '"is_symmetric": "False"'))
    scheme = {"min_max": QuantScheme.min_max, "tf_enhanced": QuantScheme.post_training_tf_enhanced}[stage.scheme]
    width = stage.activations or 8
    sim = QuantizationSimModel(model, example, scheme, width, stage.bits, config_file=str(config))
    if stage.activations is None:
        for _, module in sim.named_qmodules():
            for quantisers in (module.input_quantizers, module.output_quantizers):
                for index in range(len(quantisers)):
                    quantisers[index] = None
    sim.compute_encodings(lambda model: [model(batch) for batch in digits()])
    return sim


def digits() -> list[Tensor]:
    return list(DigitsData().arrays("calibration")[0].split(64))[:4]


def filled() -> nn.Module:
    anchor = Digits(name="digits")
    model = anchor.build()
    model.load_state_dict(dict(anchor.weights()), strict=False)
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 4, "per_channel": False},
        {"bits": 4, "scheme": "tf_enhanced"},
        {"bits": 6, "symmetric": False},
        {"bits": 16, "per_channel": False, "symmetric": False},
        {"bits": 4, "activations": 8},
    ],
    ids=str,
)
def test_values_are_those_of_aimet_itself(options: dict[str, Any], tmp_path: Path) -> None:
    stage = QuantSim(calibration_batches=4, **options)
    given = applied(stage, filled(), tmp_path / "stage", digits())
    decoded, _ = through(Zstd(), given, Digits(name="digits").build, tmp_path / "bitstream")
    sim = aimet_itself(stage, tmp_path)
    state = decoded.state_dict()
    with torch.no_grad():  # as in inference: with gradients AIMET divides instead of multiplying, and ties differ
        for name, module in sim.named_qmodules():
            for key, quantiser in module.param_quantizers.items():
                if quantiser is not None:
                    value = quantiser(getattr(module, key)).as_subclass(Tensor)
                    assert torch.equal(state[f"{name}.{key}"], value)
    assert len(given.integers) == 4
    images, labels = DigitsData().arrays("report")
    mine = outputs(given.simulate(decoded) if given.simulate else decoded, images)
    theirs = outputs(sim.model, images)
    assert distance(mine, theirs) < 1e-6
    assert (mine.argmax(1) == labels).sum() == (theirs.argmax(1) == labels).sum()


def test_coders_leave_the_integers_as_they_are(tmp_path: Path) -> None:
    """And fewer bits are fewer bytes, whichever coder."""
    sizes: dict[tuple[int, str], int] = {}
    for bits in (16, 8, 6, 4):
        given = applied(QuantSim(bits=bits), filled(), tmp_path / f"{bits}", digits())
        for coder in (Nnc(), Zstd(), Int8(), Fp16()):
            name = type(coder).__name__
            folder = tmp_path / f"{bits}-{name}"
            decoded, sizes[bits, name] = through(coder, given, Digits(name="digits").build, folder)
            for tensor, integers in given.integers.items():
                assert integers.bits == bits
                assert int(integers.integers.abs().max()) <= 2 ** (bits - 1)
                assert torch.equal(decoded.state_dict()[tensor], integers.value())
    for name in ("Nnc", "Zstd", "Int8", "Fp16"):
        assert sizes[16, name] > 1.5 * sizes[8, name] and sizes[8, name] > sizes[6, name] > sizes[4, name]
    assert sizes[8, "Nnc"] < sizes[8, "Zstd"]


# Models as users have them.


def test_folding_and_a_layer_of_every_kind(tmp_path: Path) -> None:
    before = outputs(made(Net), IMAGES[0])
    given = applied(QuantSim(bits=16, activations=16), made(Net), tmp_path / "a", IMAGES)
    assert [(edit.kind, edit.layers) for edit in given.edits] == [
        ("fold_norm", {"norm1": {"into": "first"}, "norm2": {"into": "each"}, "norm3": {"into": "up"}})
    ]
    assert given.integers.keys() == {f"{name}.weight" for name in ("first", "each", "up", "last", "line", "fc")}
    assert given.integers["up.weight"].scale.shape == (1, 6, 1, 1)
    assert type(given.model.norm1) is nn.Identity and type(given.model.norm4) is nn.BatchNorm1d
    assert all(type(module).__module__.startswith(("torch.", __name__)) for module in given.model.modules())
    decoded, _ = through(Zstd(), given, Net, tmp_path / "b")
    assert distance(outputs(decoded, IMAGES[0]), before) < 1e-3
    assert distance(outputs(given.simulate(decoded), IMAGES[0]), before) < 1e-2
    (rows,) = given.tables.values()
    assert [row["tensor"] for row in rows if row["bits"] is None] == ["mix"]
    assert all(row["SQNR dB"] > 80 for row in rows if row["bits"])


def test_bits_per_layer_and_layers_in_floating_point(tmp_path: Path) -> None:
    stage = QuantSim(bits=5, bits_per_layer={"fc": 12, "line": 4}, ignore=["each"], per_channel=False, fold_norm=False)
    model = made(Net)
    weight = model.each.weight.detach().clone()
    given = applied(stage, model, tmp_path / "a", IMAGES)
    assert {name: integers.bits for name, integers in given.integers.items()} == {
        **dict.fromkeys(("first.weight", "up.weight", "last.weight"), 5),
        **{"fc.weight": 12, "line.weight": 4},
    }
    assert all(integers.scale.shape == () for integers in given.integers.values())
    assert torch.equal(given.model.each.weight, weight) and given.edits == []


@pytest.mark.parametrize("options", [{"activations": 8}, {"bits": 4, "sequential_mse": True}, {"ignore": ["head"]}])
def test_tied_weights_and_named_inputs(options: dict[str, Any], tmp_path: Path) -> None:
    before = outputs(made(Language), WORDS[0])
    given = applied(QuantSim(**options), made(Language), tmp_path / "a", WORDS)
    assert given.model.head.weight is given.model.embed.weight
    decoded, size = through(Nnc(), given, Language, tmp_path / "b")
    assert torch.equal(decoded.head.weight, decoded.embed.weight)
    assert torch.equal(decoded.embed.weight, given.model.embed.weight) or "ignore" in options
    assert distance(outputs(decoded, WORDS[0]), before) < (0.2 if options.get("bits") == 4 else 0.02)
    if "ignore" in options:  # the embedding is the head
        assert "embed.weight" not in given.integers
    else:
        assert given.integers["embed.weight"].scale.shape == (400, 1)
        assert "head.weight" not in given.integers
    if given.simulate:
        assert 0 < distance(outputs(given.simulate(decoded), WORDS[0]), before) < 0.1
    assert size < 4 * sum(parameter.numel() for parameter in given.model.parameters()) / 2


@pytest.mark.parametrize("options", [{"activations": 8}, {"bits": 4, "rounding": "adaround"}], ids=str)
def test_shared_and_unknown_modules(options: dict[str, Any], tmp_path: Path) -> None:
    """One layer with two norms is not folded into; what AIMET has no module for is quantised by AIMET's quantiser."""
    if "rounding" in options:
        options = {**options, "adaround_iterations": 5}
    before = outputs(made(Shared), IMAGES[0])
    given = applied(QuantSim(**options), made(Shared), tmp_path / "a", IMAGES)
    assert given.edits == []
    expected = {"padded.weight", "conv.weight", "own.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0"}
    assert given.integers.keys() == expected
    assert given.model.again is given.model.conv
    decoded, _ = through(Nnc(), given, Shared, tmp_path / "b")
    assert distance(outputs(decoded, IMAGES[0]), before) < 0.05
    rows = {row["tensor"]: row for row in given.tables["layers"]}
    assert [name for name, row in rows.items() if row["bits"] is None] == [
        "out.parametrizations.weight.original0",
        "out.parametrizations.weight.original1",
    ]
    if given.simulate:
        assert distance(outputs(given.simulate(decoded), IMAGES[0]), before) < 0.1


class Parametrised(nn.Module):
    """Layers whose weights are made of other tensors in each run, a bare parameter, and an extra state."""

    def __init__(self) -> None:
        super().__init__()
        parametrizations = nn.utils.parametrizations
        self.a, self.b = parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3)
        self.c = parametrizations.weight_norm(nn.Linear(4, 4))
        self.mix = nn.Parameter(torch.ones(4, 4))

    def get_extra_state(self) -> dict[str, float]:
        return {"mean": 0.5}

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError("the architecture keeps its own")

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)).mean((2, 3))) @ self.mix


def test_layers_left_in_floating_point_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = applied(QuantSim(activations=8), made(Parametrised), tmp_path / "a", IMAGES)
    assert given.integers.keys() == {"b.weight"}
    (told,) = [record.getMessage() for record in caplog.records if record.name.startswith("tracker")]
    assert told == (
        "codec.quantsim leaves layers in floating point: a (its weight is a parametrisation: SpectralNorm); "
        "c (its weight is a parametrisation: WeightNorm); the coder stores them at its own precision"
    )
    decoded, _ = through(Zstd(), given, Parametrised, tmp_path / "b")
    assert distance(outputs(given.simulate(decoded), IMAGES[0]), outputs(given.model, IMAGES[0])) < 0.1
    caplog.clear()
    applied(QuantSim(ignore=["a", "c"]), made(Parametrised), tmp_path / "c", IMAGES)
    applied(QuantSim(), made(Net), tmp_path / "d", IMAGES)  # with nothing left but a bare parameter
    assert not [record for record in caplog.records if record.name.startswith("tracker")]


def test_half_precision_stays_so(tmp_path: Path) -> None:
    model = made(Net).half()
    given = applied(QuantSim(activations=8), model, tmp_path / "a", IMAGES)
    state = given.model.state_dict()
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float16}
    decoded, _ = through(Nnc(), given, lambda: Net().half(), tmp_path / "b")
    for name, integers in given.integers.items():
        assert torch.equal(decoded.state_dict()[name], integers.value().half())
        assert torch.equal(state[name], decoded.state_dict()[name])


# AIMET's optimisations.


def test_equalisation_evens_out_and_needs_no_limit(tmp_path: Path) -> None:
    def uneven() -> nn.Module:
        layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 4, 3), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 144, 2))

    def model() -> nn.Module:
        net = made(uneven)
        with torch.no_grad():  # channels of very different ranges, which the next layer makes up for
            factors = torch.logspace(-2, 0, 8)
            net[1].weight.mul_(factors), net[1].bias.mul_(factors)
            net[3].weight.div_(factors[:, None, None])
        return net

    before = outputs(model(), IMAGES[0])
    errors = {}
    for name, options in {
        "plain": {},
        "limited": {"equalise": True},
        "even": {"equalise": True, "replace_relu6": True},
    }.items():
        given = applied(QuantSim(bits=8, per_channel=False, **options), model(), tmp_path / name, IMAGES)
        decoded, _ = through(Zstd(), given, uneven, tmp_path / f"{name}-bitstream")
        errors[name] = distance(outputs(decoded, IMAGES[0]), before)
        assert given.metrics["quantsim/equalised_groups"] == (name == "even")
        assert type(decoded[2]) is (nn.ReLU if name == "even" else nn.ReLU6)
    assert errors["even"] < 0.7 * errors["plain"] and errors["limited"] == errors["plain"]


def test_adaround_and_sequential_mse_serve_the_outputs(tmp_path: Path) -> None:
    """On the samples that they see, at 4 bits; weights stay on AIMET's grid, and AdaRound rounds to a neighbour."""
    images = digits()[:2]
    before = outputs(filled(), images[0])
    errors, values, scales = {}, {}, {}
    for name, options in {
        "nearest": {},
        "adaround": {"rounding": "adaround", "adaround_iterations": 150},
        "sequential": {"sequential_mse": True},
        "both": {"sequential_mse": True, "rounding": "adaround", "adaround_iterations": 150},
    }.items():
        given = applied(QuantSim(bits=4, per_channel=False, **options), filled(), tmp_path / name, images)
        errors[name] = distance(outputs(given.model, images[0]), before)
        values[name] = given.integers["3.weight"]
        scales[name] = torch.stack([one.scale for one in given.integers.values()])
        rounding = {row["rounding"] for row in given.tables["layers"] if row["bits"]}
        assert rounding == {options.get("rounding", "nearest")}
    assert errors["adaround"] < 0.8 * errors["nearest"] and errors["both"] < 0.8 * errors["sequential"]
    assert torch.equal(values["adaround"].scale, values["nearest"].scale)
    moved = (values["adaround"].integers - values["nearest"].integers).abs()
    assert int(moved.max()) == 1 and 0 < float(moved.float().mean()) < 0.5
    ratios = scales["sequential"] / scales["nearest"]  # which tensors gain by a narrower range depends on the weights
    assert float(ratios.max()) < 1.001 and float(ratios.min()) < 0.99


def test_the_seed_decides_and_nothing_else_is_drawn(tmp_path: Path) -> None:
    stage = QuantSim(bits=4, rounding="adaround", adaround_iterations=30, calibration_batches=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = (
        applied(stage, made(Net), tmp_path / name, IMAGES, seed).integers
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[name].integers, two[name].integers) for name in one)
    assert one.keys() == other.keys()


# What is refused.


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("fold_norm", {"norm1": {"into": "nothing"}}),
        ("fold_norm", {"norm1": {"into": "act1"}}),
        ("fold_norm", {"norm1": {"into": 3}}),
        ("fold_norm", {"norm1": "first"}),
        ("fold_norm", {"first": {"into": "first"}}),
        ("fold_norm", {"": {"into": "first"}}),
        ("fold_norm", {"norm1": {"into": "first", "more": 1}}),
        ("relu", {"norm1": {}}),
        ("relu", {"act1": {"inplace": True}}),
        ("relu", {"act1": None}),
    ],
)
def test_forged_edits(kind: str, layers: dict[str, Any]) -> None:
    with pytest.raises(TrackerError, match="bitstream's structure"):
        rebuild(Net(), [Edit(kind, layers)])


def test_edits_reach_every_place_of_a_module() -> None:
    norm, act = nn.BatchNorm2d(4), nn.ReLU6(inplace=True)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm, act, nn.ModuleList([norm, act]))
    rebuild(model, [Edit("fold_norm", {"1": {"into": "0"}}), Edit("relu", {"2": {}})])
    assert type(model[1]) is type(model[3][0]) is nn.Identity
    assert type(model[2]) is type(model[3][1]) is nn.ReLU and model[2].inplace
    assert model[0].bias.shape == (4,)


def test_models_that_aimet_cannot_take(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for fold, mend in ((True, "set codec.quantsim.fold_norm=false"), (False, "leave quantsim out")):
        with pytest.raises(TrackerError, match=f"AIMET cannot trace.*{mend}") as caught:
            QuantSim(fold_norm=fold).apply(made(Untraceable), context(tmp_path / "a", IMAGES))
        assert "\n" not in str(caught.value)
    with pytest.raises(TrackerError, match="no weights that could be quantised"):
        QuantSim().apply(nn.Sequential(nn.Flatten(), nn.LayerNorm(768)), context(tmp_path / "a", IMAGES))
    with pytest.raises(TrackerError, match="'norm1', which has no weight of its own"):
        QuantSim(bits_per_layer={"norm1": 4}).apply(made(Net), context(tmp_path / "a", IMAGES))


def test_names_of_layers_are_checked_before_the_work() -> None:
    net = made(Net)
    QuantSim(ignore=["first.0"]).check_model(net, "pytorch")  # svd may make it
    with pytest.raises(TrackerError, match=r"ignore names frist.*no such layer; did you mean first\?"):
        QuantSim(ignore=["frist"]).check_model(net, "pytorch")
    with pytest.raises(TrackerError, match="bits_per_layer names fc1, and the model"):
        QuantSim(bits_per_layer={"fc1": 4}).check_model(net, "pytorch")
    with pytest.raises(TrackerError, match="models of pytorch only"):
        QuantSim().check_model(object(), "keras")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["codec.quantsim.bits=3"], ["bits=3 does not exist", "4 to 16"]),
        (["codec.quantsim.bits=17"], ["bits=17 does not exist", "4 to 16"]),
        (["codec.quantsim.bits_per_layer={12: 2}"], ["bits_per_layer.12=2 does not exist"]),
        (["codec.quantsim.activations=4"], ["codec.quantsim.activations"]),
        (["codec.quantsim.sequential_mse=true"], ["bits=4", "sequential_mse"]),
        (["codec.quantsim.equalise=true", "codec.quantsim.fold_norm=false"], ["fold_norm=true"]),
        (["codec.quantsim.replace_relu6=true"], ["equalise=true"]),
        (["codec.quantsim.adaround_iterations=5"], ["rounding=adaround"]),
        (["codec.quantsim.ignore=[conv]"], ["ignore names conv", "name are 0, 1, 2, 3, 4 and 8 more"]),
    ],
)
def test_bad_configurations_in_one_line(words: list[str], parts: list[str], ready: Path, capfd: Any) -> None:
    """Through Hydra and the job, in this process: the command line itself is tested below."""
    from hydra import compose, initialize_config_dir

    import tracker
    from tracker.codecs.chain import build_codec

    package = Path(tracker.__file__).parent
    conf = next(path for path in (package / "conf", package.parents[1] / "conf") if path.is_dir())
    with initialize_config_dir(str(conf), version_base=None):
        config = compose("config", ["+codec=[quantsim,zstd]", *words])
    with pytest.raises(TrackerError) as caught:
        codec = build_codec(config.codec)
        assert codec is not None
        codec.transforms["quantsim"].check_model(filled(), "pytorch")
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert "\n" not in str(caught.value)


# The command line.


def stored(run: Any, name: str) -> Path:
    return Path(urlsplit(run.info.artifact_uri).path) / name


def test_a_run_logs_it_and_writes_nowhere_else(tracker: Callable, ready: Path) -> None:
    chain = ["+codec=[quantsim,nnc]", "codec.quantsim.bits=5", "codec.quantsim.activations=8"]
    done = tracker(*chain, "codec.quantsim.rounding=adaround", "codec.quantsim.adaround_iterations=20", cwd=ready)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    assert sorted(path.name for path in ready.iterdir()) == ["mlruns", "outputs"]
    (run,) = runs(ready, "compression")
    metrics = run.data.metrics
    performance, drop = metrics["performance/simulated"], metrics["performance/simulated_drop"]
    assert performance > 0.9
    assert f"\nwith activations of 8 bits: top1 {performance:.4f}, drop {drop:.4g}\n" in done.stdout
    assert metrics["performance/after_quantsim"] == pytest.approx(metrics["performance/decoded"], abs=0.006)
    assert metrics["quantsim/folded_norms"] == 3 and metrics["quantsim/bits"] == 5
    assert 5 / 32 < metrics["cost/memory_ratio"] < 6.5 / 32 and metrics["cost/mac_ratio"] == 1
    names = {path.name for path in stored(run, "stages/quantsim").iterdir()}
    assert names == {"aimet.log", "encodings.json", "quantsim_config.json", "layers.json"}
    encodings = json.loads(stored(run, "stages/quantsim/encodings.json").read_text())
    assert encodings["param_encodings"].keys() == {"0.weight", "3.weight", "7.weight", "12.weight"}
    assert encodings["param_encodings"]["0.weight"][0]["bitwidth"] == 5 and encodings["activation_encodings"]
    assert stored(run, "plots/quantsim-layers.png").stat().st_size > 5000
    assert stored(run, "stages/quantsim/aimet.log").read_text()
    # The receiver has no AIMET: a module of that name that cannot be imported stands in the way.
    (ready / "aimet_torch.py").write_text("raise ImportError('not on the receiver')")
    out = ready / "out.safetensors"
    decoded = tracker(
        str(stored(run, "bitstream")), str(out), cwd=ready, module="tracker.decode", PYTHONPATH=str(ready)
    )
    assert decoded.returncode == 0, decoded.stderr
    tensors = load_file(out)
    scales = encodings["param_encodings"]["3.weight"]
    for channel, encoding in zip(tensors["3.weight"], scales, strict=True):
        integers = channel / encoding["scale"]
        assert torch.allclose(integers, integers.round(), atol=1e-3) and int(integers.round().abs().max()) <= 16
    assert "1.weight" not in tensors and "0.bias" in tensors


def test_a_run_with_layers_left_alone(here: Here, ready: Path) -> None:
    done = here("+codec=[quantsim,zstd]", "codec.quantsim.ignore=[0,12]", "codec.quantsim.bits_per_layer={3: 6}")
    assert done.returncode == 0, done.stderr
    (run,) = runs(ready, "compression")
    content = json.loads(stored(run, "stages/quantsim/layers.json").read_text())
    rows = {row[0]: dict(zip(content["columns"], row, strict=True)) for row in content["data"]}
    assert {name: row["bits"] for name, row in rows.items()} == {
        "3.weight": 6, "7.weight": 8, "0.weight": None, "12.weight": None
    }  # fmt: skip
    assert rows["0.weight"]["scheme"] == "floating point" and rows["0.weight"]["encodings"] is None


def test_without_aimet(tracker: Callable, ready: Path) -> None:
    """A machine without it: the package's finder says that there is none."""
    (ready / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'aimet_torch' else find(name, package)\n"
    )
    done = tracker("+codec=[quantsim,zstd]", cwd=ready, PYTHONPATH=str(ready))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "codec.quantsim needs aimet-torch" in done.stderr and "pip install" in done.stderr
