"""SVD of Keras models, against AIMET on the equal PyTorch network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Here, runs
from torch import nn

pytest.importorskip("tensorflow")

from tracker.anchors.keras_base import KerasAnchor
from tracker.codecs.base import Context
from tracker.codecs.svd import Svd
from tracker.codecs.weight_svd import WeightSvd
from tracker.errors import TrackerError
from tracker.frameworks.keras import FRAMEWORK, load
from tracker.frameworks.keras_graph import replaceable
from tracker.frameworks.keras_names import layers_by_name
from tracker.structure import Edit, rebuild
from tracker.tasks.base import Task

STAGES = {"spatial_svd": Svd, "weight_svd": WeightSvd}
IMAGES = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Run(KerasAnchor):
    """An anchor only to run models."""

    def build(self) -> Any: ...

    def weights(self) -> Any: ...


class Network(nn.Module):
    """Strides, padding, a depthwise convolution, a branch and a dense layer; what Keras and PyTorch both have."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 24, (3, 5), stride=(2, 1), bias=False)
        self.c = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.d = nn.Conv2d(24, 24, 1)
        self.e = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x).relu()).relu()
        return self.e((x + self.d(self.c(x))).mean(dim=(2, 3)))


def keras_network() -> Any:
    keras = load()
    layers = keras.layers
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="a")(inputs)
    x = layers.Conv2D(24, (3, 5), strides=(2, 1), use_bias=False, activation="relu", name="b")(x)
    y = layers.Conv2D(24, 1, name="d")(layers.DepthwiseConv2D(3, padding="same", name="c")(x))
    return keras.Model(inputs, layers.Dense(10, name="e")(layers.GlobalAveragePooling2D()(x + y)))


def equal_pair() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    network, model = Network().eval(), keras_network()
    names = {"weight": "kernel", "bias": "bias"}
    tensors = {
        "/".join([name.split(".")[0], names[name.split(".")[1]]]): tensor
        for name, tensor in network.state_dict().items()
    }
    FRAMEWORK.fill(model, tensors, "PyTorch's weights")
    return network, model


def context(model: Any, folder: Path, key: str = "") -> Context:
    anchor = Run(name="run")
    batches = IMAGES.movedim(1, -1).contiguous()
    return Context(
        anchor.predict,
        lambda: [batches],
        0,
        "cpu",
        agreement=agreement,
        anchor=model,
        folder=folder,
        key=lambda: key or str(folder),
        framework="keras",
    )


def agreement(output: torch.Tensor, reference: torch.Tensor) -> float:
    return Task.agreement(None, output, reference)  # type: ignore[arg-type]


def predicted(model: Any) -> torch.Tensor:
    return Run(name="run").predict(model, IMAGES.movedim(1, -1).contiguous())


@pytest.mark.parametrize("metric", ["mac", "memory"])
@pytest.mark.parametrize("kind", ["spatial_svd", "weight_svd"])
def test_ranks_outputs_and_ratios_are_aimets(kind: str, metric: str, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("aimet_torch")
    from aimet_torch.common.defs import CompressionScheme, CostMetric
    from aimet_torch.compress import ModelCompressor
    from aimet_torch.defs import ModuleCompRatioPair, SpatialSvdParameters, WeightSvdParameters

    monkeypatch.chdir(tmp_path)
    network, model = equal_pair()
    with torch.no_grad():
        assert torch.allclose(predicted(model), network(IMAGES), atol=1e-5)
    kinds = SpatialSvdParameters if kind == "spatial_svd" else WeightSvdParameters
    names = ["a", "b", "d"] if kind == "spatial_svd" else ["a", "b", "d", "e"]
    for ratio in (0.9, 0.75, 0.5):
        for multiplicity in (1, 4):
            pairs = [ModuleCompRatioPair(getattr(network, name), Decimal(str(ratio))) for name in names]
            expected, stats = ModelCompressor.compress_model(
                network,
                lambda *_, **__: 0.0,
                None,
                (1, 3, 12, 12),
                CompressionScheme[kind],
                CostMetric[metric],
                kinds(kinds.Mode.manual, kinds.ManualModeParams(pairs), multiplicity),
            )
            stage = STAGES[kind](ratio=ratio, cost_metric=metric, multiplicity=multiplicity)
            given = stage.apply(model, context(model, tmp_path))
            (edit,) = given.edits
            made = dict(expected.named_modules())
            # A rank that rounding makes as large as the layer is none.
            ranks = {name: made[f"{name}.0"].weight.shape[0] for name in names if f"{name}.0" in made}
            assert len(ranks) >= 3 or multiplicity > 1
            assert edit.layers == ranks
            with torch.no_grad():
                assert torch.allclose(predicted(given.model), expected(IMAGES), atol=1e-4)
            assert given.mac_ratio == pytest.approx(float(stats.mac_compression_ratio), abs=5e-4)
            assert given.memory_ratio == pytest.approx(float(stats.memory_compression_ratio), abs=5e-4)


def odd_models() -> dict[str, Callable[[], Any]]:
    keras = load()
    layers = keras.layers

    def same_with_strides() -> Any:
        # TensorFlow pads these by different amounts on either side.
        return keras.Sequential(
            [
                keras.Input((12, 12, 3)),
                layers.Conv2D(8, (3, 4), strides=(2, 2), padding="same", activation="tanh"),
                layers.Conv2D(8, (5, 2), strides=(1, 1), dilation_rate=(2, 1), padding="same"),
                layers.Conv2D(6, 3, padding="valid", use_bias=False),
                layers.Flatten(),
                layers.Dense(10),
            ]
        )

    def nested() -> Any:
        block = keras.Sequential([keras.Input((12, 12, 8)), layers.Conv2D(8, 3, padding="same"), layers.ReLU()])
        inner_input = keras.Input((12, 12, 8))
        inner = keras.Model(inner_input, layers.Conv2D(8, 3, padding="same")(inner_input) + inner_input)
        inputs = keras.Input((12, 12, 3))
        x = layers.Conv2D(8, 3, padding="same")(inputs)
        shared = layers.Conv2D(8, 3, padding="same")
        x = shared(block(shared(inner(block(x)))))
        return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))

    return {"same_with_strides": same_with_strides, "nested": nested}


@pytest.mark.parametrize("kind", ["spatial_svd", "weight_svd"])
@pytest.mark.parametrize("which", ["same_with_strides", "nested"])
def test_at_full_rank_the_model_computes_the_same_and_the_receiver_builds_it(which: str, kind: str, tmp_path) -> None:
    from tracker.decomposition.keras_split import decomposed, pair_of

    build, pair = odd_models()[which], pair_of(kind)
    model = build()
    known = {name: layer for name, layer in replaceable(model).items() if not pair.reason(layer)}
    assert len(known) >= 3
    ranks = {name: pair.largest_rank(layer) for name, layer in known.items()}
    changed = decomposed(model, pair, kind, ranks)
    assert torch.allclose(predicted(changed), predicted(model), atol=1e-4)
    state = FRAMEWORK.state(changed, ())
    assert all(f"{name}.0/kernel" in state and f"{name}.1/kernel" in state for name in ranks)
    kept = {name for name in FRAMEWORK.state(model, ()) if name.rpartition("/")[0] not in ranks}
    assert kept <= state.keys()

    again = rebuild(build(), [Edit(f"keras_{kind}", ranks)])  # as the receiver does it, from a model built anew
    FRAMEWORK.fill(again, state, "the decoded tensors")
    assert torch.equal(predicted(again), predicted(changed))
    twin = FRAMEWORK.copy(changed)
    assert FRAMEWORK.state(twin, ()).keys() == state.keys()
    changed.save(tmp_path / "changed.keras")  # it is a plain model of Keras
    loaded = load().saving.load_model(tmp_path / "changed.keras")
    assert np.allclose(predicted(loaded), predicted(changed), atol=1e-6)


def test_forged_edits_are_refused() -> None:
    for layers in ({"a": 0}, {"a": 10**9}, {"a": True}, {"a": "3"}, {"a": 2.0}, {"c": 2}, {"nothing": 2}, {"": 2}):
        with pytest.raises(TrackerError, match="structure"):
            rebuild(keras_network(), [Edit("keras_spatial_svd", layers)])
    with pytest.raises(TrackerError, match=r"of a Keras model, and the anchor is a PyTorch model: give the anchor"):
        rebuild(nn.Linear(2, 2), [Edit("keras_weight_svd", {"": 1})])
    for kind in ("spatial_svd", "weight_svd", "prune", "fold_norm", "relu"):
        with pytest.raises(TrackerError, match=r"of a PyTorch model, and the anchor is a Keras model: give the anchor"):
            rebuild(keras_network(), [Edit(kind, {"a": 2})])
    with pytest.raises(TrackerError):
        rebuild(keras_network(), [Edit("keras_pair", {})])


def test_options_choose_layers_and_ranks(tmp_path: Path) -> None:
    _, model = equal_pair()
    given = Svd(ranks={"a": 2}, ratios={"d": 0.5}, ratio=1).apply(model, context(model, tmp_path))
    assert given.edits[0].layers == {"a": 2, "d": 6}
    rows = {row["layer"]: row for row in given.tables["layers"]}
    assert rows["c"]["rank"] is None and rows["c"]["note"]
    given = WeightSvd(layers=["b", "e"], ignore=[]).apply(model, context(model, tmp_path))
    assert given.edits[0].layers.keys() == {"b", "e"}
    for stage, told in (
        (Svd(ranks={"a": 10}), "1 to 9"),
        (Svd(ranks={"f": 1}), r"ranks names f, and the model has no such layer; those that it can name are a, b, d"),
        (Svd(ranks={"a1": 1}), r"did you mean a\?"),
        (Svd(layers=["c"]), "DepthwiseConv2D"),
        (Svd(ignore=["nothing"]), "no such layer"),
    ):
        with pytest.raises(TrackerError, match=told):
            stage.apply(model, context(model, tmp_path))


def test_models_with_code_of_their_own_are_refused(tmp_path: Path) -> None:
    keras = load()

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.layer = keras.layers.Conv2D(4, 3)

        def call(self, x: Any) -> Any:
            return self.layer(x)

    model = Own()
    model(np.zeros((1, 12, 12, 3), np.float32))
    with pytest.raises(TrackerError, match=r"subclass with a call\(\) of its own"):
        Svd().apply(model, context(model, tmp_path))


@pytest.mark.parametrize("fit", [False, True])
def test_the_greedy_search_meets_its_target_and_scores_once(fit: bool, tmp_path: Path, cache: Path) -> None:
    _, model = equal_pair()
    stage = Svd(mode="auto", target_ratio=0.6, candidates=5, monotonic_fit=fit)
    first = stage.apply(model, context(model, tmp_path, f"greedy{fit}"))
    assert first.mac_ratio == pytest.approx(0.6, abs=0.15)
    assert first.metrics["svd/scores_computed"] > 0
    again = stage.apply(model, context(model, tmp_path, f"greedy{fit}"))
    assert again.metrics["svd/scores_computed"] == 0
    assert again.edits == first.edits
    assert len(first.tables["scores"]) == 3 * 4


def test_the_greedy_choice_is_aimets() -> None:
    pytest.importorskip("aimet_torch")
    code = """
from decimal import Decimal
import random, types
from aimet_torch.common.comp_ratio_select import GreedyCompRatioSelectAlgo as Greedy
from aimet_torch.common.comp_ratio_rounder import RankRounder
from aimet_torch.common.cost_calculator import SpatialSvdCostCalculator as Calculator
from aimet_torch.common.defs import CostMetric
from aimet_torch.common.layer_database import Conv2dTypeSpecificParams, Layer as Base
from tracker.decomposition.keras_ranks import Shape, greedy

class Layer(Base):
    def _set_type_specific_params(self, module):
        self.type_specific_params = Conv2dTypeSpecificParams(module, (0, 0), 1)

random.seed(0)
for trial in range(20):
    layers, shapes, scores = [], {}, {}
    for name in "abc":
        n, m, stride = random.randint(8, 64), random.randint(8, 64), random.choice([(1, 1), (2, 2), (1, 2)])
        size = random.randint(2, 16)
        layers.append(Layer(stride, name, (n, m, 3, 3), [1, n, size, size]))
        shapes[name] = Shape("spatial_svd", n, m, (3, 3), stride, size * size)
        scores[name] = {Decimal(1) / Decimal(10) * i: i / 10 + random.random() / 4 for i in range(1, 10)}
    database = types.SimpleNamespace(
        get_selected_layers=lambda: layers, find_layer_by_name=lambda name: next(l for l in layers if l.name == name),
        __iter__=None)
    class Database(list):
        get_selected_layers = lambda self: layers
        find_layer_by_name = lambda self, name: next(l for l in layers if l.name == name)
    for metric in ("mac", "memory"):
        for multiplicity in (1, 4):
            rounder = RankRounder(multiplicity, Calculator())
            algorithm = Greedy(Database(layers), None, Calculator(), None, 1, CostMetric[metric], 0.5, 10, False, None,
                               rounder, False, None)
            algorithm._construct_eval_dict = lambda: {k: dict(v) for k, v in scores.items()}
            pairs, _ = algorithm.select_per_layer_comp_ratios()
            expected = {p.layer.name: p.comp_ratio for p in pairs}
            given = greedy(scores, shapes, 0, 0.5, metric, lambda n, r: shapes[n].rounded(r, metric, multiplicity))
            assert given == expected, (trial, metric, multiplicity, given, expected)
print("equal")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]


def test_chains_run_from_the_command_line(here: Here, ready: Path) -> None:
    done = here("anchor=keras_digits", "+codec=[svd,nnc]", "codec.svd.ratio=0.9", "anchor.epochs=2")
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    (run,) = runs(ready, "compression")
    assert 0.5 < run.data.metrics["cost/mac_ratio"] < 0.95
    assert run.data.metrics["size/after_svd_bytes"] < run.data.metrics["size/anchor_bytes"]
    done = here("anchor=keras_digits", "+codec=[svd,nnc]", "codec.svd.ignore=[nothing]", "anchor.epochs=2")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr


def test_names_do_not_depend_on_what_was_built_before() -> None:
    first, second = list(layers_by_name(keras_network())), list(layers_by_name(keras_network()))
    assert first == second
