"""Spatial and weight SVD against AIMET called directly, on models of many kinds, and rebuilt without AIMET."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Completed, Here, runs
from torch import nn

from tracker.anchors.base import output_tensor
from tracker.anchors.digits import Digits
from tracker.codecs.base import Context
from tracker.codecs.records import Transformed
from tracker.codecs.svd import Svd
from tracker.codecs.weight_svd import WeightSvd
from tracker.component import build
from tracker.data.digits import Digits as DigitsData
from tracker.decomposition.options import Decomposition
from tracker.decomposition.plots import by_layer
from tracker.decomposition.report import reported
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import FRAMEWORK
from tracker.structure import Edit, rebuild

pytest.importorskip("aimet_torch")
from tracker import aimet

aimet.load()
from aimet_torch.common.comp_ratio_select import GreedyCompRatioSelectAlgo  # noqa: E402
from aimet_torch.common.compression_algo import CompressionAlgo  # noqa: E402
from aimet_torch.common.defs import CompressionScheme, CostMetric, GreedySelectionParameters, RankSelectScheme  # noqa: E402
from aimet_torch.compress import ModelCompressor  # noqa: E402
from aimet_torch.defs import ModuleCompRatioPair, SpatialSvdParameters, WeightSvdParameters  # noqa: E402
from aimet_torch.layer_database import LayerDatabase  # noqa: E402
from aimet_torch.svd.svd_splitter import SpatialSvdModuleSplitter, WeightSvdModuleSplitter  # noqa: E402


def predict(model: Any, inputs: Any) -> torch.Tensor:
    if isinstance(inputs, dict):
        return output_tensor(model(**inputs))
    return output_tensor(model(*inputs) if isinstance(inputs, tuple | list) else model(inputs))


def agreement(output: torch.Tensor, reference: torch.Tensor) -> float:
    return float(1 - (output - reference).square().mean() / reference.var())


def context(folder: Path, model: nn.Module, inputs: Any, **changes: Any) -> Context:
    made = Context(
        predict, lambda: [inputs], 0, "cpu", agreement=agreement, anchor=model, folder=folder, key=lambda: "k"
    )
    return replace(made, **changes)


def applied(stage: Decomposition, model: nn.Module, inputs: Any, folder: Path, **changes: Any) -> Transformed:
    """The stage's result; the given model stays as it is, and what a receiver rebuilds is the same as the result."""
    folder.mkdir(exist_ok=True)
    stage.check_model(model, "pytorch")
    given = stage.apply(copy.deepcopy(model), context(folder, model, inputs, **changes))
    received = rebuild(
        copy.deepcopy(model), [Edit(edit.kind, json.loads(json.dumps(edit.layers))) for edit in given.edits]
    )
    FRAMEWORK.fill(received, given.model.state_dict(), "the tensors")
    assert str(received) == str(given.model)
    with torch.no_grad():
        assert torch.equal(predict(received.eval(), inputs), predict(given.model.eval(), inputs))
    return given


def notes(given: Transformed) -> dict[str, str]:
    return {row["layer"]: row["note"] for row in given.tables["layers"]}


def ranks(given: Transformed) -> dict[str, int]:
    return {name: rank for edit in given.edits for name, rank in edit.layers.items()}


def directly(
    model: nn.Module, kind: str, shape: tuple[int, ...], ratios: dict[nn.Module, float]
) -> tuple[nn.Module, Any]:
    """ModelCompressor in manual mode, with nothing of ours."""
    parameters = SpatialSvdParameters if kind == "spatial_svd" else WeightSvdParameters
    pairs = [ModuleCompRatioPair(module, ratio) for module, ratio in ratios.items()]
    return ModelCompressor.compress_model(
        model.eval(),
        lambda *_: 0.0,
        1,
        shape,
        CompressionScheme[kind],
        CostMetric.mac,
        parameters(parameters.Mode.manual, parameters.ManualModeParams(pairs)),
    )


@pytest.fixture(scope="module")
def digits() -> nn.Module:
    anchor = Digits(name="digits")
    model = anchor.build()
    model.load_state_dict(anchor.weights())
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder: AIMET called directly writes there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stage").mkdir()
    return tmp_path / "stage"


@pytest.mark.parametrize("ratio", [0.9, 0.75, 0.5])
@pytest.mark.parametrize("kind", ["spatial_svd", "weight_svd"])
def test_the_same_as_aimet_called_directly(digits: nn.Module, folder: Path, kind: str, ratio: float) -> None:
    images, labels = DigitsData().arrays("report")
    stage = Svd(ratio=ratio) if kind == "spatial_svd" else WeightSvd(ratio=ratio, ignore=["0"])
    given = applied(stage, digits, images[:64], folder)
    layers = {module: ratio for name, module in digits.named_modules() if isinstance(module, stage.types())}
    if kind == "weight_svd":
        layers.pop(digits[0])  # a single input channel: AIMET would make the layer larger
    expected, stats = directly(digits, kind, (1, 1, 8, 8), layers)
    assert given.mac_ratio == pytest.approx(float(stats.mac_compression_ratio), abs=5e-4)
    assert given.memory_ratio == pytest.approx(float(stats.memory_compression_ratio), abs=5e-4)
    with torch.no_grad():
        ours, theirs = given.model(images), expected.eval()(images)
    assert torch.equal(ours.argmax(1) == labels, theirs.argmax(1) == labels)
    assert torch.equal(ours, theirs)
    rows = given.tables["layers"]
    for column, whole in (("MACs", given.mac_ratio), ("memory", given.memory_ratio)):
        assert sum(row[f"{column} after"] for row in rows) == pytest.approx(
            whole * sum(row[f"{column} before"] for row in rows), rel=1e-4
        )


GEOMETRIES = list(
    itertools.product(
        [(3, 3), (1, 5), (4, 2)], [(1, 1), (2, 1), (2, 3)], [(0, 0), (1, 2)], [(1, 1), (2, 1)], [True, False]
    )
)


@pytest.mark.parametrize("splitter", [SpatialSvdModuleSplitter, WeightSvdModuleSplitter])
def test_pairs_are_rebuilt_as_aimet_makes_them(splitter: Any) -> None:
    torch.manual_seed(0)
    kind = "spatial_svd" if splitter is SpatialSvdModuleSplitter else "weight_svd"
    for kernel, stride, padding, dilation, bias in GEOMETRIES:
        if kind == "spatial_svd" and dilation != (1, 1):
            continue
        layer = nn.Conv2d(5, 6, kernel, stride, padding, dilation, bias=bias)
        pair = nn.Sequential(*splitter.split_module(layer, 3)).eval()
        rebuilt = rebuild(nn.Sequential(layer), [Edit(kind, {"0": 3})])[0]
        rebuilt.load_state_dict(pair.state_dict())
        inputs = torch.randn(2, 5, 17, 19)
        with torch.no_grad():
            assert torch.equal(rebuilt(inputs), pair(inputs))
        assert str(rebuilt) == str(pair)


class Odd(nn.Module):
    """Layers that AIMET can split, and many that it cannot, or that are not for it."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(4, 8, 3, padding=1)
        self.plain = nn.Conv2d(8, 16, 3, padding=1)
        self.dilated = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.reflected = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(16, 16, 3, padding="same")
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.multiplied = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.shared = nn.Conv2d(16, 16, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)), nn.Sequential(self.shared)])
        self.read = nn.Conv2d(16, 16, 3, padding=1)
        self.unused = nn.Conv2d(16, 16, 3)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.out = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.line(x.flatten(2)).reshape(len(x), 8, 8, 8)
        for layer in (self.plain, self.dilated, self.reflected, self.same, self.grouped, self.multiplied, self.up):
            x = layer(x)
        x = self.blocks[1](self.blocks[0](self.shared(x)))
        x = self.twice(self.twice(x)) + self.read(x) * self.read.weight.mean()
        return self.out(x.mean((2, 3))).sigmoid()


def test_what_aimet_cannot_do_is_told_and_left_as_it_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, inputs = Odd().eval(), torch.randn(2, 4, 8, 8)
    given = applied(Svd(), model, inputs, folder)
    assert ranks(given).keys() == {"plain", "blocks.0.0", "twice"}
    told = notes(given)
    for name, words in {
        "line": "not for",
        "dilated": "dilation (2, 2)",
        "reflected": "reflect",
        "same": "padding 'same'",
        "grouped": "not for grouped",
        "multiplied": "not for grouped",
        "up": "not for",
        "shared": "several places",
        "read": "does not run with a pair",
        "unused": "does not run it",
        "out": "not for",
    }.items():
        assert words in told[name]
    assert "dilated" in caplog.text
    given = applied(WeightSvd(), model, inputs, folder)
    assert ranks(given).keys() == {"plain", "dilated", "same", "blocks.0.0", "twice", "out"}
    with pytest.raises(TrackerError, match=r"cannot decompose dilated.*on_failure=skip"):
        applied(Svd(on_failure="refuse"), model, inputs, folder)
    applied(Svd(on_failure="refuse", layers=["plain"]), model, inputs, folder)
    with pytest.raises(TrackerError, match=r"cannot decompose grouped: not for grouped"):
        applied(Svd(ratios={"grouped": 0.5}), model, inputs, folder)


class Attention(nn.Module):
    """Like a transformer: tokens in a dict, a mask, tied weights, an output object, nested modules."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2, enable_nested_tensor=False
        )
        self.mlp = nn.ModuleDict({"up": nn.Linear(32, 96), "down": nn.Linear(96, 32)})
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.encoder(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
        return {"logits": self.head(self.mlp["down"](self.mlp["up"](x).relu()))}


def test_a_transformer_with_dict_inputs(folder: Path) -> None:
    torch.manual_seed(0)
    model = Attention().eval()
    inputs = {"input_ids": torch.randint(50, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    given = applied(WeightSvd(rank=4, ranks={"mlp.up": 10}), model, inputs, folder)
    assert ranks(given) == {"mlp.up": 10, "mlp.down": 4}
    assert "shared" in notes(given)["head"]
    (row,) = [row for row in given.tables["layers"] if row["layer"] == "mlp.up"]
    assert (row["MACs before"], row["MACs after"]) == (7 * 32 * 96, 7 * 10 * (32 + 96))
    assert (row["memory before"], row["memory after"]) == (32 * 96, 10 * (32 + 96))
    with pytest.raises(TrackerError, match="works on Conv2d layers, and the anchor has none"):
        applied(Svd(), model, inputs, folder)


def test_other_inputs_types_and_the_model_itself(folder: Path) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(20, 30)
    given = applied(WeightSvd(rank=5), linear, torch.randn(4, 20), folder)
    assert ranks(given) == {"": 5}
    assert given.tables["layers"][0]["MACs after"] == 5 * (20 + 30)
    for dtype in (torch.float64, torch.bfloat16):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 16)).to(dtype)
        kept = model[2].weight.clone()
        given = applied(Svd(rank=2), model, torch.randn(2, 3, 8, 8).to(dtype), folder)
        assert {tensor.dtype for tensor in given.model.state_dict().values()} == {dtype}
        assert torch.equal(given.model[2].weight, kept)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 40), nn.Linear(4, 40)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.a(x) * self.b(y)

    two = torch.randn(5, 3, 2, 6), torch.randn(5, 3, 2, 4)
    given = applied(WeightSvd(rank=1), Two().eval(), two, folder)
    assert ranks(given) == {"a": 1, "b": 1}
    assert given.tables["layers"][0]["MACs after"] == 3 * 2 * (6 + 40)


def test_ranks(digits: nn.Module, folder: Path) -> None:
    images, _ = DigitsData().arrays("calibration")
    for rank in (1, 2, 7, 23, 31, 32):
        given = applied(Svd(rank=rank, ignore=["0"]), digits, images, folder)
        assert ranks(given) == {"3": rank, "7": rank}
    given = applied(Svd(ranks={"3": 64}, ratio=1), digits, images, folder)  # 64 * (96 + 192) = 64 * 32 * 9
    assert not given.edits
    assert given.mac_ratio == given.memory_ratio == 1
    assert "cost more" in notes(given)["3"]
    assert notes(given)["7"] == "ratio 1"
    with pytest.raises(TrackerError, match=r"ranks\.3=97 is out of range: it is 1 to 96"):
        applied(Svd(ranks={"3": 97}), digits, images, folder)
    given = applied(Svd(ratio=0.5, ratios={"3": 0.3}, layers=["3", "7"], multiplicity=8), digits, images, folder)
    assert ranks(given) == {"3": 24, "7": 48}


def test_nothing_decomposed_is_told(digits: nn.Module, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, _ = DigitsData().arrays("calibration")
    for stage, told in (
        (
            Svd(rank=4000),
            "codec.svd decomposed no layer: at rank 4000 a pair would cost more than the layer (3 layers)",
        ),
        (Svd(ratio=1), "codec.svd decomposed no layer: ratio 1 (3 layers)"),
        (Svd(ratio=1, ratios={"3": 0.5}), None),
    ):
        caplog.clear()
        applied(stage, digits, images, folder)
        assert [record.getMessage() for record in caplog.records] == ([told] if told else [])


@pytest.mark.parametrize(
    ("fit", "reached", "told"),
    [
        (False, 0.53, "gave 0.53; codec.svd.monotonic_fit=true or more codec.svd.candidates may come closer"),
        (True, 0.53, "gave 0.53; more codec.svd.candidates may come closer"),
        (False, 0.66, ""),
        (False, 0.73, "codec.svd reached a ratio of 0.730, not 0.700: the layers allow no less"),
    ],
)
def test_a_target_that_is_missed_is_told(
    fit: bool, reached: float, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"layer": "a", "kind": "Conv2d", "ratio": 0.5, "rank": 3, "note": ""}
    costs = {"MACs before": 10, "MACs after": 5, "memory before": 10, "memory after": 5}
    scores = [{"layer": "a", "ratio": 0.5, "rank": 3, "score": 1.0, "source": "computed"}]
    stage = Svd(mode="auto", target_ratio=0.7, monotonic_fit=fit, cost_metric="memory")
    reported(stage, (0.7, reached), [row | costs], 1, None, scores)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == bool(told) and told in "".join(messages)
    if "gave" in told:
        assert messages[0].startswith("codec.svd: asked for 0.70 of the memory, AIMET's candidates gave")


def test_layers_that_stay_are_marked_in_the_plot() -> None:
    rows = [
        {
            "layer": name,
            "rank": rank,
            "MACs before": macs,
            "MACs after": after,
            "memory before": 9,
            "memory after": left,
        }
        for name, rank, macs, after, left in (("a", 2, 1000, 750, 5), ("b", None, 1, 1, 9), ("c", None, 0, 0, 5))
    ]
    (axes,) = by_layer(rows, "title").axes
    assert [text.get_text() for text in axes.texts] == ["75%", "as it was", ""]


@pytest.mark.parametrize("stage", [Svd, WeightSvd])
def test_greedy_search_is_aimets_and_its_scores_are_kept(
    digits: nn.Module,
    folder: Path,
    stage: type[Decomposition],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR, "tracker.decomposition.report")  # it tells that the targets are missed
    images, _ = DigitsData().arrays("calibration")
    options = {"mode": "auto", "candidates": 5, "ignore": ["0"]}
    first = applied(stage(target_ratio=0.6, **options), digits, images, folder)
    metrics, key = dict(first.metrics), stage.key
    layers = 2 + (stage is WeightSvd)
    assert metrics[f"{key}/scores_computed"] + metrics[f"{key}/scores_reused"] == 4 * layers
    assert metrics[f"{key}/scores_reused"] == 0
    for path in (folder, folder.parent):
        assert not (path / "data").exists()
    assert {path.name for path in folder.iterdir()} == {"aimet.log", "ratios.json", "scores.json"}
    assert "Greedy selection" in (folder / "aimet.log").read_text()
    second = applied(stage(target_ratio=0.4, **options), digits, images, folder)
    assert second.metrics[f"{key}/scores_computed"] == 0
    assert second.mac_ratio < first.mac_ratio < 1
    out, err = capfd.readouterr()
    assert out == "" and "score" not in err and "AIMET" not in err

    with torch.no_grad():
        reference = digits(images)

    def callback(model: nn.Module, *_: Any, **__: Any) -> float:
        with torch.no_grad():
            return agreement(model(images), reference)

    for target, given in ((0.6, first), (0.4, second)):
        greedy = GreedySelectionParameters(target, 5)
        if stage is Svd:
            parameters: Any = SpatialSvdParameters.AutoModeParams(greedy, [digits[0]])
            parameters = SpatialSvdParameters(SpatialSvdParameters.Mode.auto, parameters)
        else:
            parameters = WeightSvdParameters.AutoModeParams(RankSelectScheme.greedy, greedy, [digits[0]])
            parameters = WeightSvdParameters(WeightSvdParameters.Mode.auto, parameters)
        scheme = CompressionScheme[stage.kind]
        expected, stats = ModelCompressor.compress_model(
            digits, callback, None, (1, 1, 8, 8), scheme, CostMetric.mac, parameters
        )
        assert given.mac_ratio == pytest.approx(float(stats.mac_compression_ratio))
        with torch.no_grad():
            assert torch.equal(given.model(images), expected(images))


def test_scores_are_of_the_model_and_the_data(digits: nn.Module, folder: Path) -> None:
    images, _ = DigitsData().arrays("calibration")
    stage = Svd(mode="auto", ratio=0.5, candidates=3, ignore=["0"])
    counts = []
    other = copy.deepcopy(digits)
    with torch.no_grad():
        other[3].weight.mul_(1.01)
    for model, key in ((digits, "x"), (digits, "x"), (digits, "y"), (other, "x")):
        given = applied(stage, model, images, folder, key=lambda key=key: key)
        counts.append(given.metrics["svd/scores_computed"])
    assert counts[1] == 0 and counts[0] == counts[2] == counts[3] == 4
    for path in Path(os.environ["TRACKER_CACHE"]).glob("scores-*.json"):
        path.write_text('{"3": [1, 2')
    assert applied(stage, digits, images, folder, key=lambda: "x").metrics["svd/scores_computed"] == 4


def test_a_stage_after_another(digits: nn.Module, folder: Path) -> None:
    images, _ = DigitsData().arrays("calibration")
    first = applied(Svd(layers=["3"]), digits, images, folder)
    stage = WeightSvd(ratios={"3.1": 0.5}, layers=["3.1"])
    stage.check_model(digits, "pytorch")  # 3 may be split by then
    second = applied(stage, first.model, images, folder)
    model = rebuild(Digits(name="digits").build(), [*first.edits, *second.edits])
    FRAMEWORK.fill(model, second.model.state_dict(), "the tensors")
    with torch.no_grad():
        assert torch.equal(model.eval()(images), second.model.eval()(images))
    with pytest.raises(TrackerError, match=r"names 3\.1, and the model has no such layer"):
        stage.apply(copy.deepcopy(digits), context(folder, digits, images))


@pytest.mark.parametrize("kind", ["spatial_svd", "weight_svd"])
@pytest.mark.parametrize(
    "layers",
    [
        *({"0": rank} for rank in (0, -1, True, 1.5, "1", 10**9, None, [1])),
        *({name: 1} for name in ("9", "2", "0.weight", "", "1", "4")),
    ],
)
def test_forged_edits_are_refused(kind: str, layers: dict[str, Any]) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Linear(2, 2), nn.Conv3d(1, 1, 1)
    )
    with pytest.raises(TrackerError, match=r"does not fit|not 1 to"):
        rebuild(model, [Edit(kind, layers)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 0}, "ratio=0"),
        ({"ratio": 1.5}, "ratio=1.5"),
        ({"ratios": {"0": -1}}, r"ratios\.0=-1"),
        ({"ranks": {"0": 0}}, r"ranks\.0=0"),
        ({"mode": "automatic"}, "mode='automatic'"),
        ({"mode": "auto", "ranks": {"0": 2}}, "mode=auto chooses"),
        ({"mode": "auto", "ratio": 1}, "set target_ratio"),
        ({"target_ratio": 0.5}, "add mode=auto"),
        ({"target_ratio": 1.0, "mode": "auto"}, "target_ratio=1.0"),
        ({"candidates": 1, "mode": "auto"}, "candidates=1"),
        ({"rank": 2, "multiplicity": 4}, "leave it at 1"),
        ({"ratios": {0: 0.5}, "ranks": {"0": 2}}, "both a ratio and a rank"),
        ({"ratios": {"0": 0.5}, "ignore": ["0"]}, "is in ignore"),
        ({"ratios": {"0": 0.5}, "layers": ["3"]}, "is not in layers"),
        ({"layers": []}, "layers is empty"),
        ({"rate": 2}, "codec.svd.rate is not an option"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TrackerError, match=words) as caught:
        build({"_target_": "tracker.codecs.svd.Svd", **options}, "codec.svd", Svd)
    assert "\n" not in str(caught.value)


def test_bad_models_are_refused_in_one_line(digits: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = DigitsData().arrays("calibration")
    for stage, words in (
        (Svd(ratios={"33": 0.5}), r"ratios names 33, and the model has no such layer; did you mean 3\?"),
        (Svd(ranks={"12": 5}), "ranks names 12, a Linear, and not a Conv2d"),
        (Svd(ignore=["nothing"]), "ignore names nothing, .*no such layer; those that it can name are 0, 3, 7$"),
        (Svd(layers=["3.0.1x.y"], ignore=["0"]), None),
    ):
        if words is None:
            stage.check_model(digits, "pytorch")
        else:
            with pytest.raises(TrackerError, match=words):
                stage.check_model(digits, "pytorch")
    with pytest.raises(TrackerError, match="AIMET cannot run the model on one calibration sample"):
        Svd().apply(copy.deepcopy(digits), context(folder, digits, torch.randn(2, 3)))
    with pytest.raises(TrackerError, match="inputs that are tensors"):
        Svd().apply(copy.deepcopy(digits), context(folder, digits, ["words"]))
    with pytest.raises(TrackerError, match="can decompose no layer"):
        Svd(ignore=["0", "3", "7"]).apply(copy.deepcopy(digits), context(folder, digits, images))
    monkeypatch.setitem(sys.modules, "aimet_torch", None)
    with pytest.raises(
        TrackerError, match=r"needs aimet-torch, which is not installed: pip install 'tracker\[aimet\]'$"
    ):
        Svd().check_model(digits, "pytorch")


def test_nothing_of_aimet_stays_changed(digits: nn.Module, folder: Path) -> None:
    images, _ = DigitsData().arrays("calibration")
    state = torch.random.get_rng_state()
    methods = {owner: dict(vars(owner)) for owner in (LayerDatabase, CompressionAlgo, GreedyCompRatioSelectAlgo)}
    Svd(mode="auto", candidates=3).apply(copy.deepcopy(digits), context(folder, digits, images))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(logger.handlers for logger in aimet.loggers())
    assert all(dict(vars(owner)) == before for owner, before in methods.items())
    assert not (folder.parent / "data").exists()
    directly(digits, "spatial_svd", (1, 1, 8, 8), {digits[3]: 0.5})
    assert (folder.parent / "data").is_dir()  # AIMET by itself is as it was


def test_the_command_line_and_a_receiver_without_aimet(ready: Path, tracker: Callable[..., Completed]) -> None:
    done = tracker("+codec=[svd,nnc]", "codec.svd.mode=auto", "codec.svd.candidates=4")
    assert done.returncode == 0, done.stderr
    (told,) = [line for line in done.stdout.splitlines() if "AIMET" in line]  # and nothing that AIMET prints
    assert told.startswith("codec.svd: asked for 0.75 of the MACs, AIMET's candidates gave 0.") and done.stderr == ""
    assert {path.name for path in ready.iterdir()} == {"mlruns", "outputs"}
    (run,) = runs(ready, "compression")
    artifacts = ready / "mlruns" / "artifacts" / run.info.run_id / "artifacts"
    names = {str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}
    assert names >= {
        *("stages/svd/aimet.log", "stages/svd/layers.json", "stages/svd/scores.json", "stages/svd/ratios.json"),
        *("plots/svd-layers.png", "plots/svd-scores.png"),
    }
    assert 0 < run.data.metrics["cost/mac_ratio"] < 1 and 0 < run.data.metrics["cost/memory_ratio"] < 1
    manifest = json.loads((artifacts / "bitstream" / "manifest.json").read_text())
    assert manifest["structure"][0][0] == "spatial_svd"
    code = "import sys; sys.modules['aimet_torch'] = None; from tracker.__main__ import main; main()"
    words = ["scenario=receive", f"scenario.bitstream={artifacts / 'bitstream'}"]
    received = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ready, capture_output=True, text=True, check=False
    )
    assert received.returncode == 0, received.stderr
    assert f"top1 {run.data.metrics['performance/decoded']:.4f}" in received.stdout


@pytest.mark.parametrize(
    ("word", "told"),
    [("codec.svd.ratio=1.2", "codec.svd.ratio=1.2"), ("codec.svd.ratios={conv1: 0.5}", "names conv1")],
)
def test_bad_input_ends_the_command_with_one_line(ready: Path, here: Here, word: str, told: str) -> None:
    done = here("+codec=[svd,nnc]", word)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert told in line
    assert not runs(ready)
