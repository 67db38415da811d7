"""A search space fitted to the model: a parameter for each layer, none that change nothing; and what is tried first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Here, runs
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn

from tracker.codecs.nnc import Nnc
from tracker.codecs.records import Entry
from tracker.codecs.svd import Svd
from tracker.codecs.weight_svd import WeightSvd
from tracker.decomposition.options import largest_rank
from tracker.sweep.distributions import nearest, values_of
from tracker.sweep.frontier import Frontier
from tracker.sweep.history import History, Past, key_of
from tracker.sweep.outcome import Outcome
from tracker.sweep.planner import Planner
from tracker.sweep.samplers import Tpe
from tracker.sweep.settings import SweepSettings
from tracker.sweep.space import Parameter, expanded

TOLERANCE = 0.005


@pytest.mark.parametrize(
    "shape", [(16, 3, 3, 3), (4, 1, 3, 3), (1, 1, 1, 1), (8, 8, 1, 1), (64, 2, 5, 1), (2, 64, 1, 7)]
)
def test_the_largest_rank_is_the_last_that_saves_weights(shape: tuple[int, int, int, int]) -> None:
    """Against the layers themselves, built at every rank."""
    out, into, high, wide = shape
    weights = math.prod(shape)
    spatial, weight = [0], [0]
    for rank in range(1, into * high + 1):
        pair = nn.Conv2d(into, rank, (high, 1), bias=False), nn.Conv2d(rank, out, (1, wide), bias=False)
        if rank <= out * wide and sum(layer.weight.numel() for layer in pair) < weights:
            spatial.append(rank)
    for rank in range(1, into + 1):
        pair = nn.Conv2d(into, rank, 1, bias=False), nn.Conv2d(rank, out, (high, wide), bias=False)
        if sum(layer.weight.numel() for layer in pair) < weights:
            weight.append(rank)
    assert largest_rank(shape, "spatial_svd") == spatial[-1]
    assert largest_rank(shape, "weight_svd") == weight[-1]


def test_layers_without_a_rank_that_saves_are_not_searched() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 32, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(9, 5)
    )
    state = model.state_dict()
    svd, weight_svd = Svd(ratio=0.5), WeightSvd(ignore=["4"])
    assert set(svd.entries("ratios", model, state)) == {"0", "2"}
    ranks = svd.entries("ranks", model, state)
    assert {name: entry.most for name, entry in ranks.items()} == {
        "0": largest_rank((4, 1, 3, 3), "spatial_svd") + 1,  # which leaves the layer as it is
        "2": largest_rank((32, 4, 3, 3), "spatial_svd") + 1,
    }
    assert set(weight_svd.entries("ranks", model, state)) == {"2"}  # conv 0 has one input; the linear layer is ignored
    assert svd.entries("layers", model, state) == {}


def test_a_wildcard_stands_for_each_name_up_to_what_makes_a_difference() -> None:
    whole = Parameter("codec.svd.ranks", IntDistribution(2, 14, step=4), entry="*")
    found = expanded(whole, {"a": Entry(9, 9), "b.0": Entry(1, 1), "c": Entry(50, 50)})
    assert {key: values_of(one.distribution, 2) for key, one in found.items()} == {
        "codec.svd.ranks.a": [2, 6],
        "codec.svd.ranks.c": [2, 6, 10, 14],
    }
    assert {one.entry for one in found.values()} == {"a", "c"}


@pytest.mark.parametrize(
    ("model", "framework", "idle"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)), "pytorch", set()),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False)),
            "pytorch",
            {"bnf", "nonweight_qp"},
        ),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), "pytorch", {"bnf", "qp_early", "qp_late"}),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)), "keras", {"bnf"}),
    ],
)
def test_options_that_change_nothing_are_known(model: nn.Module, framework: str, idle: set[str]) -> None:
    torch.manual_seed(0)
    reasons = Nnc().idle(model, model.state_dict(), framework)
    assert set(reasons) == idle
    assert all(reason and "\n" not in reason for reason in reasons.values())


@pytest.mark.parametrize(
    ("distribution", "value", "found"),
    [
        (IntDistribution(-40, -8), -32, -32),
        (IntDistribution(-40, -8), -75, -40),
        (FloatDistribution(0.3, 1, step=0.1), 0.77, 0.8),
        (FloatDistribution(0.3, 1), None, 0.3),
        (CategoricalDistribution([False, True]), True, True),
        (CategoricalDistribution(["a", "b"]), "c", "a"),
        (CategoricalDistribution([16, 64]), 60, 64),
    ],
)
def test_a_value_outside_the_range_gives_the_nearest_one(distribution: Any, value: Any, found: Any) -> None:
    given = nearest(distribution, value)
    assert given == pytest.approx(found) if isinstance(found, float) else given == found


SPACE = {
    "qp": Parameter("qp", IntDistribution(-40, -8)),
    "side": Parameter("side", CategoricalDistribution([False, True])),
}


def size_of(point: Mapping[str, Any]) -> float:
    return 1e4 * 2 ** (-point["qp"] / 8) * (0.9 if point["side"] else 1.0)


def drop_of(point: Mapping[str, Any]) -> float:
    return 0.004 * 2 ** ((point["qp"] + 22) / 2)  # transparent up to -22; side information is for nothing


def measured(history: History, point: Mapping[str, Any]) -> Past:
    drop, number = drop_of(point), len(history.past)
    past = Past(
        number, dict(point), Outcome({}, violation=drop - TOLERANCE), size_of(point), feasible=drop <= TOLERANCE
    )
    history.past[number] = history.by_params[key_of(point)] = past
    return past


def test_what_is_tried_first() -> None:
    """The search from the configuration's own values; the known point where that ended; and the search from there."""
    settings = SweepSettings(n_trials=60, rate_falls_with="qp", known_points={"side": {"side": True}})
    planner = Planner(settings, SPACE, {"qp": -32, "side": False}, Tpe(), TOLERANCE)
    history = History("size", "minimize")
    tried = []
    while (point := planner.propose(history)) is not None:
        tried.append(measured(history, point).params)
    first = next(index for index, point in enumerate(tried) if point["side"])
    assert tried[0] == {"qp": -32, "side": False}
    assert {"qp": -22, "side": False} in tried[:first]
    assert tried[first] == {"qp": -22, "side": True}
    assert all(point["side"] for point in tried[first:])
    assert tried[-1]["qp"] > -22  # it was seen that no coarser one will do
    assert len(tried) < 16


def test_trials_that_run_are_not_proposed_again() -> None:
    settings = SweepSettings(n_trials=60, rate_falls_with="qp")
    planner = Planner(settings, SPACE, {"qp": -32, "side": False}, Tpe(), TOLERANCE)
    history = History("size", "minimize")
    proposed = []
    for _ in range(5):
        point = planner.propose(history)
        if point is None:
            break
        proposed.append(key_of(point))
        history.begun.add(key_of(point))
    assert len(set(proposed)) == len(proposed) > 1


def test_gains_are_the_expected_savings() -> None:
    """Of points near the best one; checked against sizes and drops that follow a formula without noise."""
    history = History("size", "minimize")
    for qp, side in itertools.product(range(-26, -17), (False, True)):
        measured(history, {"qp": qp, "side": side})
    best = history.past[[past.params == {"qp": -22, "side": False} for past in history.past.values()].index(True)]
    assert best.value is not None
    frontier = Frontier(SPACE, list(history.past.values()), best, TOLERANCE)
    assert frontier.ready
    points = [{"qp": qp, "side": side} for qp, side in itertools.product(range(-26, -11), (False, True))]
    gains = frontier.gains(points)
    saved = np.array([1 - size_of(point) / best.value for point in points])
    assert (gains[saved < 0] == 0).all()
    assert (gains <= np.maximum(saved, 0) + 0.02).all()  # never more than what would be saved if it were transparent
    assert points[int(gains.argmax())] == {"qp": -22, "side": True}
    assert gains[points.index({"qp": -12, "side": True})] < 1e-3  # far smaller, and hopeless


def test_too_few_trials_make_no_model() -> None:
    history = History("size", "minimize")
    best = measured(history, {"qp": -24, "side": False})
    assert not Frontier(SPACE, [best], best, TOLERANCE).ready


def search_space(folder: Path, name: str, parameter: str) -> None:
    """A sweep of the user's own, for --config-dir conf."""
    (folder / "conf" / "sweep").mkdir(parents=True)
    (folder / "conf" / "sweep" / f"{name}.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /hydra/sweeper: tracker\n"
        f"hydra:\n  sweeper:\n    params:\n      {parameter}\n"
    )


def test_a_search_over_each_tensor_runs_again_to_the_same_bytes(here: Here, ready: Path) -> None:
    """Names with dots, as the command line and the working point's file write them."""
    search_space(ready, "tensors", "codec.nnc.qp_per_tensor.*: range(-34,-28,2)")
    done = here(
        *("--config-dir", "conf", "-m", "+codec=nnc", "+sweep=tensors", "hydra.sweeper.n_trials=4"),
        *("hydra.sweeper.study_name=s", "hydra.sweeper.sampler=random"),
    )
    assert done.returncode == 0, done.stderr
    (parent,) = runs(ready, "sweep")
    searched = {key for key in parent.data.params if key.startswith("codec.nnc.qp_per_tensor.")}
    assert {"codec.nnc.qp_per_tensor.0.weight", "codec.nnc.qp_per_tensor.3.weight"} <= searched
    assert not [key for key in searched if key.endswith(".bias")]
    artifacts = ready / "mlruns" / "artifacts" / parent.info.run_id / "artifacts"
    again = here("--config-dir", str(artifacts / "working_point"), "--config-name", "working_point")
    assert again.returncode == 0, again.stderr
    digests = {run.data.tags["tracker.bitstream.sha256"] for run in runs(ready, "compression")}
    assert digests == {parent.data.tags["tracker.bitstream.sha256"]}


def test_a_wildcard_that_stands_for_nothing_is_refused(here: Here, ready: Path) -> None:
    search_space(ready, "nothing", "codec.nnc.sparsity.*: range(0,0.5,0.1)")
    done = here("--config-dir", "conf", "-m", "+codec=nnc", "+sweep=nothing")
    assert done.returncode != 0
    assert "error: codec.nnc.sparsity.*: the anchor has nothing" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("codec", "bound"),
    [
        ("[svd,nnc]", "svd/layers<=1"),
        ("[finetune,nnc]", "finetune/epoch<=-1"),
    ],
)
def test_what_transforms_log_can_be_bounded(codec: str, bound: str, here: Here, ready: Path) -> None:
    """Each trial logs it, or the sweep would stop for failures; none keeps these bounds."""
    words = ("-m", f"+codec={codec}", "hydra/sweeper=tracker", "codec.nnc.qp=-20,-16", "hydra.sweeper.n_trials=2")
    extra = ("codec.finetune.epochs=1",) if "finetune" in codec else ()
    done = here(*words, *extra, f'hydra.sweeper.constraints=["{bound}"]')
    assert done.returncode == 0, done.stderr
    assert "no trial kept the constraints" in done.stdout


def test_what_does_nothing_about_integers_is_not_searched(here: Here, ready: Path) -> None:
    """Behind quantsim the coder codes integers, and no step size changes a byte."""
    pytest.importorskip("aimet_torch")
    words = ["-m", "+codec=[quantsim,nnc]", "+sweep=[quantsim_layers,nnc]", "hydra.sweeper.n_trials=4"]
    done = here(*words, "hydra.sweeper.report=false")
    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    for option in ("qp", "qp_early", "qp_late"):
        assert f"codec.nnc.{option} is not searched: quantsim makes integers" in told
    trials = runs(ready, "trial")
    assert {run.data.params["codec.nnc.qp"] for run in trials} == {"-32"}
    prefix = "codec.quantsim.bits_per_layer."
    bits = [{key: value for key, value in run.data.params.items() if key.startswith(prefix)} for run in trials]
    assert len({str(sorted(one.items())) for one in bits}) > 1
