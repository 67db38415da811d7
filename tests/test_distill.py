"""Training through the quantiser: the rate in the loss is the coder's, and what is coded is what was trained."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Here, runs
from nncodec import nnc
from scipy.stats import entropy
from torch import nn

from tracker.codecs import distill
from tracker.codecs.base import Context
from tracker.codecs.chain import build_codec
from tracker.codecs.distill import Distill
from tracker.codecs.nnc import Nnc
from tracker.codecs.nnc_steps import nearest_qp, step_size
from tracker.codecs.records import Judged, Target
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import FRAMEWORK
from tracker.rate_distortion import start as start_module
from tracker.rate_distortion import training
from tracker.rate_distortion.code_length import bits_of, code_lengths, quantised
from tracker.rate_distortion.distortion import sensitivities
from tracker.rate_distortion.latent import Latent
from tracker.rate_distortion.norms import plain_norms
from tracker.rate_distortion.plan import Plan
from tracker.rate_distortion.quantised import Quantised, on_grid
from tracker.rate_distortion.rounds import Round, chosen, enough, following
from tracker.rate_distortion.start import CAREFUL, MANNERS, MILD, STRICT, start
from tracker.rate_distortion.training import Training
from tracker.rate_distortion.trellis import UNIFORM
from tracker.scenarios import aiming
from tracker.scenarios.aiming import left_out, pivot
from tracker.scenarios.draft import Draft, Workshop
from tracker.settings import Aim

DISTILL = {"_target_": "tracker.codecs.distill.Distill"}
WORDS = (
    "codec.distill.steps=300",
    "codec.distill.rounds=2",
    "codec.distill.precision=float32",
    "target.confidence=null",
)


def test_the_rate_is_the_entropy_of_the_integers() -> None:
    torch.manual_seed(0)
    integers = torch.distributions.Laplace(0.0, 1.5).sample((400, 300)).round()
    counts = torch.bincount(integers.abs().flatten().long())
    wanted = integers.numel() * float(entropy(counts.numpy(), base=2)) + int((integers != 0).sum())
    assert float(bits_of(integers, code_lengths(integers))) == pytest.approx(wanted, rel=2e-3)


def test_the_rate_falls_towards_zero_and_its_slope_is_that_between_integers() -> None:
    integers = torch.tensor([0.0] * 90 + [1.0] * 8 + [3.0] * 2)
    lengths = code_lengths(integers)
    assert bool((lengths[1:] >= lengths[:-1]).all()) and bool(torch.isfinite(lengths).all())
    values = torch.tensor([0.4, -0.4, 1e6], requires_grad=True)
    bits_of(values, lengths).backward()
    assert values.grad is not None
    slope = float(lengths[1] - lengths[0])
    assert values.grad[:2].tolist() == pytest.approx([slope, -slope])


def test_gradients_of_the_quantiser_are_those_of_the_learned_step() -> None:
    """Esser et al. 2020, equation 3, without clipping: round(v / s) - v / s by the step, and 1 by the value."""
    values = torch.tensor([0.26, -0.9, 0.04], requires_grad=True)
    step = torch.tensor(0.1, requires_grad=True)
    found, integers = quantised(values, step)
    assert integers.tolist() == [3, -9, 0] and torch.allclose(found, integers * 0.1)
    found.sum().backward()
    assert values.grad is not None and step.grad is not None
    assert values.grad.tolist() == pytest.approx([1, 1, 1])
    assert float(step.grad) == pytest.approx(float((integers - values.detach() / 0.1).sum()), abs=1e-5)


def test_norms_become_a_scale_and_a_shift() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(180))
    for _ in range(3):
        model(torch.randn(8, 3, 8, 8) * 2 + 1)
    with torch.no_grad():
        for module in (model[1], model[4]):
            module.weight.uniform_(-2, 2)
            module.bias.uniform_(-2, 2)
    inputs = torch.randn(4, 3, 8, 8)
    before = model.eval()(inputs)
    plain_norms(model)
    assert torch.allclose(model(inputs), before, atol=1e-5)
    for module in (model[1], model[4]):
        assert not module.running_mean.any() and bool((module.running_var == 1).all())


@pytest.mark.parametrize("size", [1.0, 0.013, 3e-4, 17.0, step_size(-13, 2), step_size(5, 2)])
def test_the_nearest_qp(size: float) -> None:
    every = min(range(-128, 128), key=lambda qp: abs(math.log(step_size(qp, 2) / size)))
    assert nearest_qp(size, 2) == every


def linear(seed: int = 0) -> tuple[nn.Module, Context]:
    """Two layers without anything between them, so that the Gauss-Newton matrix is known; and inputs."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 3, bias=False))
    batches = [torch.randn(64, 6) * torch.tensor([1.0, 2, 3, 0.1, 1, 1]) for _ in range(8)]
    context = Context(
        lambda model, inputs: model(inputs),
        lambda: batches,
        0,
        "cpu",
        training=lambda: batches,
        anchor=model,
        judge=lambda model: Judged(0.0, 0.0, 0.0),
    )
    return model, context


def test_sensitivities_are_the_diagonal_of_the_gauss_newton_matrix() -> None:
    model, context = linear()
    training = Training(Distill(loss="mse", batch_size=1), copy.deepcopy(model), model, context)
    # One sample a batch: eight of them are too few, so the estimate is averaged over many draws.
    weights = dict(model.named_parameters())
    found = [
        {name: float(values.mean()) for name, values in estimate.items()}
        for estimate in (
            sensitivities(weights, model, itertools.islice(training.batches(), 8), training.distance)
            for _ in range(400)
        )
    ]
    inputs = torch.cat(list(context.training()))
    first, second = model[0].weight.detach(), model[1].weight.detach()
    scale = 3 * training.distance.variance  # the loss is the mean over 3 outputs, over the anchor's variance
    exact = {
        "0.weight": float(torch.outer(second.square().sum(0), inputs.square().mean(0)).mean()) / scale,
        "1.weight": float((inputs @ first.T).square().mean()) / scale,
    }
    for name, wanted in exact.items():
        assert np.mean([one[name] for one in found]) == pytest.approx(wanted, rel=0.15), name


def test_all_tensors_as_one_vector_are_quantised_and_counted_as_each_alone() -> None:
    torch.manual_seed(2)
    shapes = {"a": (5, 3, 2), "b": (4,), "c": (7, 6), "d": (2,)}
    parameters = {name: torch.randn(shape) for name, shape in shapes.items()} | {"n": torch.tensor(3)}
    sizes, fine = {"a": step_size(-8, 2), "c": step_size(-3, 2)}, {"b": step_size(-20, 2), "d": 1.0}
    latent = Latent(parameters, sizes, fine)
    values, bits = latent.quantised()
    wanted = 0.0
    for name, size in (sizes | fine).items():
        assert torch.allclose(values[name], (parameters[name] / size).round() * size, atol=1e-6)
        if name in sizes:
            scaled = parameters[name] / size
            wanted += float(bits_of(scaled, code_lengths(scaled.round())))
    assert torch.equal(values["n"], torch.tensor(3)) and float(bits) == pytest.approx(wanted, rel=1e-5)
    # Gradients of values and steps are those of each tensor alone.
    (values["c"].square().sum() + bits).backward()
    alone = parameters["c"].clone().requires_grad_(True)
    log = torch.tensor(math.log(sizes["c"]), requires_grad=True)
    found, integers = quantised(alone, log.exp())
    (found.square().sum() + bits_of(alone / log.exp(), code_lengths(integers))).backward()
    assert latent.weights.grad is not None and alone.grad is not None
    assert torch.allclose(latent.weights.grad[30:], alone.grad.flatten(), rtol=1e-4)
    assert latent.logs.grad is not None and log.grad is not None
    assert float(latent.logs.grad[1]) == pytest.approx(float(log.grad), rel=1e-4)
    # What is coded has steps on the grid, and looking at it changes nothing.
    latent.set_steps({"a": 0.1234, "c": sizes["c"]})
    before = latent.logs.detach().clone()
    coded = latent.snapshot()
    assert coded.steps["c"] == sizes["c"] and coded.steps["a"] == step_size(nearest_qp(0.1234, 2), 2)
    assert torch.equal(latent.logs.detach(), before)


def test_training_begins_with_the_steps_of_the_stage_before_or_of_the_coder() -> None:
    model, context = linear()
    given = {"0.weight": step_size(-19, 3)}  # of a finer grid than training ends on
    coder = Nnc(qp=-28, qp_density=3)
    context = dataclasses.replace(context, coder=coder, steps=given, state=lambda model: model.state_dict())
    stage = Distill(loss="mse", batch_size=16, steps=1, rounds=1)
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        rounded[0].weight.copy_((model[0].weight / given["0.weight"]).round() * given["0.weight"])
    sizes = {**given, "1.weight": step_size(-14, 2)}
    # From chosen integers it goes on with care, and from the weights before them with larger steps; those of dependent
    # quantisation, which is the coder's for what is no integers yet, are of a finer grid than uniform ones.
    for exact, way, begun, factors in (
        ({"0.weight", "1.weight"}, CAREFUL, rounded, (1.0, 1.0)),
        ({"1.weight"}, MANNERS["mse"], model, (2 * UNIFORM, 2.0)),
    ):
        context = dataclasses.replace(context, exact=exact, unrounded=model)
        training = Training(stage, copy.deepcopy(rounded), model, context)
        assert training.latent.given == sizes and training.manner == way
        found = start(training, context)
        # What nothing is trained of is what was given, and it is judged as it is coded.
        assert found.given.steps == given and found.weight == way.weight
        for name, weight in rounded.named_parameters():
            assert torch.equal(found.given.values[name], weight)
        coded = coder.approximate(rounded.state_dict(), rounded, context)
        wanted = training.distortion(coded)
        assert found.given.loss == pytest.approx(wanted, rel=1e-5) and wanted > 0
        flat = torch.cat([weight.detach().flatten() for weight in begun.parameters()])
        assert torch.equal(training.latent.weights.detach(), flat)
        logs = [math.log(factor * size) for factor, size in zip(factors, sizes.values(), strict=True)]
        assert training.latent.logs.tolist() == pytest.approx(logs, rel=1e-5)


def test_a_stage_that_begins_from_what_another_finds_ends_that_ones_search() -> None:
    """`allocate` is judged after `round`, before `distill` trains; a plain `nnc` after all."""
    target = {"_target_": "tracker.codecs.nnc.Nnc"}
    chain = {name: {"_target_": f"tracker.codecs.{name}.{name.capitalize()}"} for name in ("allocate", "round")}
    assert pivot(build_codec({**chain, "distill": DISTILL, "nnc": target}), Aim()) == (
        "allocate",
        "allocate",
        "distill",
    )
    assert pivot(build_codec({**chain, "nnc": target}), Aim()) == ("allocate", "allocate", "nnc")
    assert pivot(build_codec({"round": chain["round"], "nnc": target}), Aim(drop=0.1)) == ("nnc", "round", "nnc")
    assert pivot(build_codec({"round": chain["round"], "nnc": target}), Aim()) is None


@pytest.mark.parametrize(
    ("changed", "chain", "expected"),
    [
        ({"classes": 1}, ("allocate", "round", "correct", "distill"), {"round", "correct"}),
        ({"classes": 1}, ("allocate", "round", "correct"), set()),
        ({"classes": 1}, ("correct", "allocate", "distill"), set()),
        ({"classes": 1, "by_choice": False}, ("allocate", "round", "correct", "distill"), set()),
        ({}, ("allocate", "round", "correct", "distill"), set()),
    ],
)
def test_what_makes_up_for_rounding_is_left_out_where_training_begins_before_it(
    changed: dict[str, Any], chain: tuple[str, ...], expected: set[str], tmp_path: Path
) -> None:
    _, context = linear()
    parts = {name: {"_target_": f"tracker.codecs.{name}.{name.capitalize()}"} for name in chain if name != "distill"}
    parts |= {"distill": DISTILL} if "distill" in chain else {}
    codec = build_codec({**{name: parts[name] for name in chain}, "nnc": {"_target_": "tracker.codecs.nnc.Nnc"}})
    shop = Workshop(FRAMEWORK, dataclasses.replace(context, **changed), tmp_path)
    where = pivot(codec, Aim())
    assert where is not None and left_out(codec, where, shop) == expected


def test_a_stage_may_begin_from_what_the_model_was_before_it_was_rounded(tmp_path: Path) -> None:
    model, context = linear()
    context = dataclasses.replace(context, state=lambda model: model.state_dict())
    parts = {
        "round": {"_target_": "tracker.codecs.round.Round"},
        "correct": {"_target_": "tracker.codecs.correct.Correct"},
    }
    nnc_alone = {"_target_": "tracker.codecs.nnc.Nnc", "qp": -8}
    seen = []
    for chain in ({**parts, "distill": DISTILL}, parts):
        codec = build_codec({**chain, "nnc": nnc_alone})
        shop = Workshop(FRAMEWORK, context, tmp_path)
        given = Draft(copy.deepcopy(model), model.state_dict())
        draft = shop.through(codec, "round", "distill" if "distill" in chain else "nnc", given)
        seen.append(shop.given(codec, draft).unrounded)
        assert not torch.equal(draft.model[0].weight, model[0].weight) and draft.exact
        assert given.unrounded is None
    assert torch.equal(seen[0][0].weight, model[0].weight)
    assert seen[1] is None  # nothing needs it


def test_training_becomes_bolder_until_it_has_to_mend() -> None:
    def done(*rounds: tuple[float, float]) -> list[Round]:
        return [
            Round(weight, Quantised({}, {}, 1.0, 0.0), Judged(drop, drop, drop), int(1000 / weight), 1.0)
            for weight, drop in rounds
        ]

    _, context = linear()
    by_drop = dataclasses.replace(context, target=Target(0.005))
    bolder = following(done((4, 0.0)), False, by_drop)
    assert bolder.weight > 4 and bolder.bold
    assert following(done((4, 0.0)), True, by_drop) == Plan(4, False)  # nothing is left to mend it
    strict = dataclasses.replace(by_drop, by_choice=False)
    assert following(done((4, 0.0)), True, strict) == bolder
    for last in (False, True):
        mended = following(done((4, 0.0), (8, 0.1)), last, by_drop)
        assert mended.weight < 8 and not mended.bold and mended.finer == 0.8
        again = following(done((8, 0.1), (4, 0.1)), last, by_drop)
        assert again.weight < 4 and not again.bold and again.finer == 0.8
    # What is too much falls as the fourth power of step sizes.
    for rounds, left in ((done((8, 0.01)), 0.01), (done((8, 0.007), (4, 0.0056)), 0.0056)):
        slightly = following(rounds, False, by_drop)
        assert slightly.finer == pytest.approx((0.0045 / left) ** 0.25) and not slightly.bold
        classes = dataclasses.replace(by_drop, classes=1)  # whose drop is noise for the most part
        assert following(rounds, False, classes) == Plan(rounds[-1].weight, False)  # and more training helps
        assert following(rounds * 3, False, classes).finer == pytest.approx((0.0045 / left) ** 0.125)
        assert following(rounds, False, dataclasses.replace(classes, by_choice=False)) == slightly
    assert following(done((8, 0.011)), False, classes).finer < 1  # but not where much is lost
    assert following(done((8, 0.1), (4, math.nan)), False, by_drop).finer == 0.8
    # 250 bytes at 4, and 125 at 8: bytes fall with lambda.
    by_bytes = dataclasses.replace(context, target=Target(0.005, 200))
    for last in (False, True):
        larger, smaller = following(done((4, 0.1)), last, by_bytes), following(done((8, 0.0)), last, by_bytes)
        assert larger.weight > 4 and larger.bold
        assert smaller.weight < 8 and not smaller.bold


def test_noise_of_single_answers_is_no_reason_to_mend_and_none_to_be_bolder() -> None:
    _, context = linear()
    by_drop = dataclasses.replace(context, target=Target(0.005), classes=1)
    untrained, first, mended = (
        Round(weight, Quantised({}, {}, bits, 0.0), Judged(0.0, bound, systematic), None, 1.0)
        for weight, bits, bound, systematic in (
            (0.0, 2.4, 0.004, 0.002),
            (4.0, 1.8, 0.008, 0.0049),
            (4.0, 1.7, 0.008, 0.0051),
        )
    )
    for last in (False, True):
        assert following([first], last, by_drop) == Plan(4.0, False)
    assert following([first, mended], True, by_drop) == Plan(4.0, False)
    again = following([first, mended, mended], True, by_drop)
    assert again.weight < 4 and again.finer < 1
    assert chosen([untrained, first, mended], by_drop) is first
    unsure = following([mended, mended, first], True, by_drop)
    assert unsure.weight < 4 and unsure.finer == pytest.approx((0.0045 / 0.008) ** 0.125)
    sure = Round(4.0, Quantised({}, {}, 1.9, 0.0), Judged(0.0, 0.004, 0.004), None, 1.0)
    assert chosen([untrained, first, sure], by_drop) is sure
    hardly, larger = (
        Round(4.0, Quantised({}, {}, bits, 0.0), Judged(0.0, 0.004, 0.001), None, 1.0) for bits in (1.83, 1.85)
    )
    assert chosen([first, hardly, larger], by_drop) is hardly
    assert chosen([first, larger], by_drop) is larger  # as it is surely good, which `first` is not
    other = dataclasses.replace(by_drop, classes=None)
    assert chosen([first, larger], other) is chosen([hardly, first], other) is first
    assert following([hardly], False, by_drop) == Plan(4.0, False)
    assert enough([first, hardly], by_drop) and not enough([first, mended], by_drop)
    assert not enough([first, hardly], dataclasses.replace(by_drop, target=Target(0.005, 1000)))
    assert not Distill()._lost([first, mended], by_drop) and Distill()._lost([mended], by_drop)


def test_training_of_classes_ends_once_a_network_is_surely_good(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[float] = []
    plain = Training._step

    def step(self: Training, inputs: Any, weight: float) -> float:
        steps.append(weight)
        return plain(self, inputs, weight)

    monkeypatch.setattr(Training, "_step", step)
    model, context = linear()
    for bounds, lengths in (([0.0, 0.4], [30]), ([0.0, 0.6, 0.4], [30, 5]), ([0.0, *[0.6] * 6], [30, *[5] * 5])):
        steps.clear()
        judged = iter(bounds)
        classes = dataclasses.replace(
            context, classes=1, target=Target(0.5), judge=lambda model, given=judged: Judged(0.0, next(given), 0.4)
        )
        rows = Distill(batch_size=16, steps=40, rounds=3).apply(copy.deepcopy(model), classes).tables["rounds"]
        assert len(rows) == len(bounds) and len(steps) == sum(lengths)
        assert len(set(steps[:40])) == 1  # the same lambda, until that has not helped twice


def test_rounds_with_finer_steps_are_added_where_nothing_is_good_enough(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[torch.Tensor] = []
    begin = Latent.begin

    def begun(self: Latent, learned: bool, finer: float) -> None:
        begin(self, learned, finer)
        sizes.append(self.logs.detach().clone())

    monkeypatch.setattr(Latent, "begin", begun)
    model, context = linear()
    lost = dataclasses.replace(context, judge=lambda model: Judged(1.0, 1.0, 1.0), target=Target(0.5))
    stage = Distill(loss="mse", batch_size=16, steps=40, rounds=2)
    rows = stage.apply(copy.deepcopy(model), lost).tables["rounds"]
    assert len(rows) == 6 and len(sizes) == 5
    assert all((after < before - 0.1).all() for before, after in itertools.pairwise(sizes[1:]))
    # Not where one is, nor where what is asked for leaves no choice.
    assert len(stage.apply(copy.deepcopy(model), context).tables["rounds"]) == 3
    fixed = stage.model_copy(update={"rate_weight": 1.0})
    assert len(fixed.apply(copy.deepcopy(model), lost).tables["rounds"]) == 3
    drops = iter([1.0, 1.0, 1.0, 0.0])
    mended = dataclasses.replace(lost, judge=lambda model: Judged(drop := next(drops), drop, drop))
    done = stage.apply(copy.deepcopy(model), mended)
    assert len(done.tables["rounds"]) == 4 and done.metrics["distill/round"] == 3


@pytest.mark.parametrize(("by_choice", "temperature", "way"), [(True, 4.0, MANNERS["kl"]), (False, 1.0, STRICT)])
def test_where_all_probabilities_count_training_is_less_bold(by_choice: bool, temperature: float, way: Any) -> None:
    model, context = linear()
    own = dataclasses.replace(context, classes=1, by_choice=by_choice)
    training = Training(Distill(loss="kl"), copy.deepcopy(model), model, own)
    assert training.manner == way and training.distance.temperature == temperature
    assert Training(Distill(loss="kl", temperature=2.0), copy.deepcopy(model), model, own).distance.temperature == 2.0
    careful = Training(Distill(loss="mse"), copy.deepcopy(model), model, own)
    assert careful.manner == MANNERS["mse"]


def test_where_classes_count_steps_of_training_are_as_large_as_the_weights() -> None:
    """Adam's steps do not depend on how large gradients are: half the weights would change by twice their share."""
    model, context = linear()
    own = dataclasses.replace(context, classes=1, by_choice=True)

    def rates(scale: float, kept: int = 6, **words: Any) -> dict[str, float]:
        scaled = copy.deepcopy(model)
        for parameter in scaled.parameters():
            parameter.data *= scale
        scaled[0].weight.data[:, kept:] = 0
        return Training(Distill(**words), scaled, model, own).rates

    first, second = (parameter.detach().numpy() for parameter in model.parameters())
    for kept in (6, 2):  # what is pruned does not count
        root = np.sqrt(np.mean(np.concatenate([first[:, :kept].ravel(), second.ravel()]) ** 2))
        found = rates(0.5, kept)
        assert found["weights"] == pytest.approx(0.5 * root / 0.097)
        assert (found["vectors"], found["steps"]) == (2.0, 10.0)
    assert rates(0.0)["weights"] == rates(0.5, learning_rate=0.001)["weights"] == rates(0.5, loss="mse")["weights"] == 1


@pytest.mark.parametrize("times", [0.5, 2.0])
def test_lambda_does_not_grow_with_how_far_from_the_anchor_training_begins(times: float) -> None:
    """Its unit is the distortion with temperature 4, but no more than where the divergence is 64 times the target."""
    model, base = linear()
    with torch.no_grad():
        model[1].weight *= 6
    steps = {"0.weight": 0.5, "1.weight": 0.5}
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            weight.copy_((weight / steps[name]).round() * steps[name])
    inputs = torch.cat(list(base.calibration()))

    @torch.no_grad()
    def divergence(temperature: float) -> float:
        logs = [(net(inputs) / temperature).log_softmax(1) for net in (rounded, model)]
        return temperature**2 * float(nn.functional.kl_div(*logs, reduction="batchmean", log_target=True))

    drop = divergence(1.0) / 64 / times
    assert drop > 0.001
    state = {"state": lambda model: model.state_dict(), "target": dataclasses.replace(base.target, drop=drop)}
    own = dataclasses.replace(base, classes=1, by_choice=True, steps=steps, **state)
    found = start(Training(Distill(loss="kl"), copy.deepcopy(model), model, own), own)
    assert found.distortion == pytest.approx(divergence(4.0) / max(times, 1.0), rel=1e-4)
    own = dataclasses.replace(own, by_choice=False)  # all of the divergence counts
    assert start(Training(Distill(loss="kl"), copy.deepcopy(model), model, own), own).distortion == pytest.approx(
        divergence(1.0), rel=1e-4
    )


def test_embeddings_that_training_does_not_show_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 3, bias=False))
    batches = [torch.arange(0, 10), torch.arange(5, 15)]
    _, base = linear()
    own = dataclasses.replace(
        base,
        calibration=lambda: batches,
        training=lambda: batches,
        anchor=model,
        state=lambda model: model.state_dict(),
    )
    student = copy.deepcopy(model)
    training = Training(Distill(loss="mse", batch_size=5, rate_weight=50.0, steps=60), student, model, own)
    start(training, own)
    before = training.latent.weights.detach().clone()
    training.round(Plan(50.0, False), 1.0, 1.0, "", None, lambda progress: None)
    changed = (training.latent.weights.detach() != before)[:160].view(20, 8)
    assert changed[:15].any(1).all() and not changed[15:].any()
    assert torch.equal(training.state()["unseen"][:160].view(20, 8).all(1), torch.arange(20) >= 15)


def test_squared_errors_leave_integers_of_dependent_quantisation_as_they_are() -> None:
    model, context = linear()
    coded = dataclasses.replace(context, coder=Nnc(qp=-10), state=lambda model: model.state_dict())
    steps = {"0.weight": step_size(-10, 2), "1.weight": step_size(-10, 2)}
    given = dataclasses.replace(coded, steps=steps, exact=set(steps), dependent={"0.weight"}, unrounded=model)
    values = copy.deepcopy(model)
    for name, tensor in values.named_parameters():
        # Multiples of four steps are integers of the first state, which they do not leave.
        step = steps[name] * (4 if name == "0.weight" else 1)
        tensor.data = (tensor.data / step).round() * step
    done = Distill(loss="mse", batch_size=16, steps=10).apply(copy.deepcopy(values), given)
    assert done.dependent == {"0.weight"} and set(done.exact) == set(steps) and len(done.tables["rounds"]) == 1
    for name, tensor in values.named_parameters():
        assert torch.equal(done.model.get_parameter(name), tensor)
    # Pairs of neighbouring multiples are one integer there.
    integers = {name: (tensor / steps[name]).round().abs().int() for name, tensor in values.named_parameters()}
    integers["0.weight"] = (integers["0.weight"] + 1) // 2
    lengths = {name: code_lengths(one)[one.long()].sum() for name, one in integers.items()}
    bits = float(sum(lengths.values())) / sum(one.numel() for one in integers.values())
    assert done.metrics["distill/bits_per_weight"] == pytest.approx(bits)


def test_step_sizes_of_a_round_are_learned_or_stay_and_may_become_finer() -> None:
    values = {"w": torch.randn(8, 8)}
    latent = Latent(values, {"w": step_size(-13, 2)}, {})
    latent.freeze()
    latent.begin(True, 1.0)
    assert not latent.frozen and latent.named_sizes()["w"] == step_size(-13, 2)
    latent.begin(False, 0.8)
    assert latent.frozen
    assert latent.named_sizes()["w"] == float(latent.sizes()[0]) == pytest.approx(0.8 * step_size(-13, 2), rel=0.1)
    assert latent.named_sizes()["w"] < step_size(-13, 2)


def test_what_goes_to_and_fro_settles_where_it_is_on_the_whole() -> None:
    """The last twenty steps count, or so; and only those of the round."""
    latent = Latent({"w": torch.zeros(1, 2), "b": torch.zeros(2)}, {"w": 0.1}, {"b": 0.01})

    def average(count: int, at: float) -> None:
        for number in range(count):
            latent.set_values({"w": torch.tensor([[0.14 if number % 4 else 0.26, at]]), "b": torch.tensor([at, 1.0])})
            latent.average()

    average(40, 5.0)
    latent.begin(False, 1.0)
    average(4, 0.0)
    latent.settle()
    assert latent.weights.tolist() == pytest.approx([0.17, 0.0]) and latent.vectors.tolist() == [0.0, 1.0]
    average(200, 1.0)
    latent.settle()
    assert latent.weights.tolist() == pytest.approx([0.17, 1.0], abs=0.005)
    assert latent.snapshot().values["w"].tolist() == [pytest.approx([0.2, 1.0])]
    before = latent.weights.clone()
    latent.begin(False, 1.0)
    latent.settle()
    assert torch.equal(latent.weights, before)


@pytest.mark.parametrize("finer", [0.98, 0.945, 0.8])
def test_step_sizes_become_finer_on_the_whole_though_the_grid_is_coarse(finer: float) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 400, (60,), generator=generator).tolist()
    values = {f"w{n}": torch.randn(count, generator=generator) for n, count in enumerate(counts)}
    given = {name: step_size(-20 + n % 7, 2) for n, name in enumerate(values)}
    latent = Latent(values, given, {})
    latent.freeze()
    latent.begin(False, finer)
    sizes = latent.named_sizes()
    ratios = {name: sizes[name] / given[name] for name in values}
    assert all(size == on_grid(size) for size in sizes.values()) and latent.frozen
    assert max(ratios.values()) <= 1 and min(ratios.values()) > 0.8 * finer
    changed = sum(len(values[name]) * math.log(ratio) for name, ratio in ratios.items()) / sum(counts)
    assert changed == pytest.approx(math.log(finer), abs=0.01)


def test_norms_and_biases_are_trained_on_coarser_steps_where_training_is_bold() -> None:
    values, fine = {"w": torch.randn(8, 8), "b": torch.randn(8)}, step_size(-20, 2)
    latent = Latent(values, {"w": step_size(-13, 2)}, {"b": fine})
    latent.coarsen(4.0)
    found = latent.snapshot()
    assert found.steps["b"] == 4 * fine == step_size(-12, 2)
    assert torch.equal(found.values["b"], (values["b"] / (4 * fine)).round() * 4 * fine)
    model, context = linear()
    model[0].bias = nn.Parameter(torch.randn(4))
    context = dataclasses.replace(context, steps={"0.weight": 0.1, "0.bias": fine})
    for exact, times in (((), MANNERS["mse"].vectors), (("0.weight",), CAREFUL.vectors)):
        own = dataclasses.replace(context, exact=exact)
        training = Training(Distill(loss="mse"), copy.deepcopy(model), model, own)
        assert training.latent.fine["0.bias"] == times * fine


def test_what_loses_too_much_is_begun_once_more_with_a_smaller_lambda(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that was killed: what was given up is not done again."""
    manners: list[Any] = []
    plain = Training._step

    def step(self: Training, *words: Any) -> float:
        manners.append(self.manner)
        if len(manners) == 45:
            raise KeyboardInterrupt
        return plain(self, *words)

    monkeypatch.setattr(Training, "_step", step)
    monkeypatch.setattr(training, "SAVED", -1.0)  # after every step
    model, context = linear()
    far = dataclasses.replace(context, classes=1, judge=lambda model: Judged(2.1, 2.1, 2.1), target=Target(0.5))
    stage = Distill(batch_size=16, steps=40, rounds=2)
    with pytest.raises(KeyboardInterrupt):
        stage.apply(copy.deepcopy(model), far)
    rows = stage.apply(copy.deepcopy(model), far).tables["rounds"]
    # The first round has 30 steps, the others have 10; of the milder training all are done, with three that mend more.
    assert manners == [MANNERS["kl"]] * 30 + [MILD] * (30 + 10 + 10 + 10 + 10 + 1)
    assert len(rows) == 6 and rows[1]["lambda"] == MILD.weight and not list((cache / "unfinished").glob("*"))
    # Training that is within the target, or only a little beyond it, goes on; so does that with a given lambda. If
    # mending leaves it far beyond, or never brings it within, training is begun once more.
    for drops, fixed, bold in (
        ([0.0], None, None),
        ([0.9, 1.9, 0.9, 0.0], None, None),
        ([2.1], 5.0, None),
        ([0.9, 1.9, 1.1], None, 6 + 2),
        ([0.9], None, 6 + 4 * 2),
    ):
        manners.clear()
        given = itertools.chain(drops, itertools.repeat(drops[-1]))
        own = dataclasses.replace(far, judge=lambda model, given=given: Judged(drop := next(given), drop, drop))
        stage.model_copy(update={"rate_weight": fixed, "steps": 8}).apply(copy.deepcopy(model), own)
        assert set(manners) == {MANNERS["kl"]} if bold is None else manners.index(MILD) == bold


def test_what_was_killed_goes_on_where_it_was(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    plain = Training._step
    stop = 0

    def step(self: Training, *words: Any) -> float:
        steps.append(1)
        if len(steps) == stop:
            raise KeyboardInterrupt
        return plain(self, *words)

    monkeypatch.setattr(Training, "_step", step)
    monkeypatch.setattr(training, "SAVED", -1.0)  # after every step
    stage = Distill(loss="mse", batch_size=16, steps=40, rounds=2)
    model, context = linear()
    unfinished = cache / "unfinished"
    for stop in (10, 38):  # noqa: B007 - in the first round, which has 30 of the 40 steps, and in the second
        with pytest.raises(KeyboardInterrupt):
            stage.apply(copy.deepcopy(model), context)
        assert len(list(unfinished.glob("*.safetensors"))) == 1
    stop = 0
    assert len(stage.apply(copy.deepcopy(model), context).tables["rounds"]) == 3
    assert len(steps) == 42  # the two that were stopped were done again
    assert not list(unfinished.glob("*"))
    # Other work has nothing to do with it, and a damaged file is no reason to fail.
    stop = len(steps) + 5
    with pytest.raises(KeyboardInterrupt):
        stage.apply(copy.deepcopy(model), context)
    next(unfinished.glob("*")).write_bytes(b"damaged")
    stop, done = 0, len(steps)
    stage.apply(copy.deepcopy(model), context)
    assert len(steps) == done + 40


def test_nnc_codes_multiples_of_given_steps_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    steps = {"w": step_size(-13, 2), "b": step_size(-30, 2)}
    tensors = {
        "w": torch.randint(-3, 4, (40, 30)) * torch.tensor(steps["w"]),
        "b": torch.randint(-90, 90, (40,)) * torch.tensor(steps["b"]),
    }
    context = Context(lambda model, inputs: inputs, lambda: [], 0, "cpu", steps=steps, exact=set(steps))
    coder = Nnc(qp=-20, use_dq=True)
    records = coder.encode(tensors, tmp_path, nn.Module(), context)
    decoded = coder.receiver().decode(tmp_path)
    assert all(torch.equal(decoded[name], tensor) for name, tensor in tensors.items())
    assert {record.name: record.step_size for record in records} == steps
    preview = coder.preview(tensors, nn.Module(), context)
    assert preview is not None and all(torch.equal(preview[name], tensor) for name, tensor in tensors.items())
    # What no stage has made multiples of its step size is coded as without such stages, with dependent quantisation.
    noise = {"w": tensors["w"], "b": torch.randn(400, 30) * 10 * steps["b"]}
    sizes = {}
    for names in (set(), {"w"}, {"w", "b"}):
        coded = coder.encode(noise, tmp_path, nn.Module(), dataclasses.replace(context, exact=names))
        sizes[len(names)] = {record.name: record.bytes for record in coded}
        decoded = coder.receiver().decode(tmp_path)
        assert torch.equal(decoded["w"], tensors["w"]) is ("w" in names)
    assert sizes[0]["b"] == sizes[1]["b"] < sizes[2]["b"]
    # A coder whose own density has not those step sizes takes a finer one.
    coarse = Nnc(qp_density=0, qp=-5, nonweight_qp=-15)
    assert {record.name: record.step_size for record in coarse.encode(tensors, tmp_path, nn.Module(), context)} == steps
    decoded = coarse.receiver().decode(tmp_path)
    assert all(torch.equal(decoded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ({"distill": DISTILL, "int8": {"_target_": "tracker.codecs.integers.Int8"}},
         "which int8 does not take; end it with nnc"),
        ({"distill": DISTILL, "finetune": {"_target_": "tracker.codecs.finetune.Finetune"},
          "nnc": {"_target_": "tracker.codecs.nnc.Nnc"}}, "undo the work of distill"),
        ({"allocate": {"_target_": "tracker.codecs.allocate.Allocate"},
          "finetune": {"_target_": "tracker.codecs.finetune.Finetune"},
          "nnc": {"_target_": "tracker.codecs.nnc.Nnc"}}, "which finetune does not take; put finetune before allocate"),
    ],
)  # fmt: skip
def test_chains_that_would_lose_its_work_are_refused(stages: dict, reason: str) -> None:
    with pytest.raises(TrackerError, match=reason):
        build_codec(stages)


@pytest.mark.parametrize("kind", ["mild", "strict"])
def test_where_bold_training_loses_all_it_is_begun_once_more_with_care(
    kind: str, here: Here, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First with a smaller lambda; and where even the last fails, what came to it is coded: it is within the target."""
    monkeypatch.setattr(aiming, "BEGINS", 800.0)
    monkeypatch.setitem(MANNERS, "kl", MANNERS["kl"]._replace(weight=1e5))
    monkeypatch.setattr(distill, "MILD", MILD._replace(weight=1e5))
    if kind == "strict":
        monkeypatch.setattr(start_module, "STRICT", STRICT._replace(weight=1e5))
    done = here("+codec=nnc_calibrated", *WORDS, "codec.distill.rounds=1", "task.split=search")
    assert done.returncode == 0 and "with a smaller lambda" in done.stdout, done.stdout
    assert "where nothing is lost before it" in done.stdout
    assert "nothing is within" not in done.stdout + done.stderr
    (run,) = runs(ready, "compression")
    assert run.data.metrics["distill/search_drop"] <= 0.005 + 1e-9
    # What decides is what is decoded in the end, with its norms and biases.
    assert run.data.metrics["performance/drop"] == pytest.approx(run.data.metrics["distill/search_drop"], abs=0.0026)
    assert kind == "mild" or run.data.metrics["distill/round"] == 0
    artifacts = ready / "mlruns" / "artifacts" / run.info.run_id / "artifacts"
    stages = json.loads((artifacts / "stages.json").read_text())
    assert [row[0] for row in stages["data"]] == ["allocate", "round", "correct", "distill", "nnc"]
    places = json.loads((artifacts / "target.json").read_text())
    assert "likely below" in places["columns"]  # of the second search
    assert run.data.metrics["size/bitstream_bytes"] < 0.25 * run.data.metrics["size/anchor_bytes"]


@pytest.mark.slow
def test_a_run_is_small_transparent_and_the_same_again(here: Here, ready: Path) -> None:
    for words in (("+codec=nnc", "codec.nnc.qp=-26"), *2 * [("+codec=nnc_calibrated", *WORDS)]):
        done = here(*words)
        assert done.returncode == 0, done.stderr
    plain, first, second = runs(ready, "compression")
    assert first.data.tags["tracker.codec"] == "allocate>round>correct>distill>nnc"
    assert first.data.metrics["size/bitstream_bytes"] < 0.7 * plain.data.metrics["size/bitstream_bytes"]
    assert first.data.metrics["distill/search_drop"] <= 0.005 + 1e-9
    assert first.data.tags["tracker.bitstream.sha256"] == second.data.tags["tracker.bitstream.sha256"]
    artifacts = ready / "mlruns" / "artifacts" / first.info.run_id / "artifacts"
    rounds = json.loads((artifacts / "stages" / "distill" / "rounds.json").read_text())
    told = [dict(zip(rounds["columns"], row, strict=True)) for row in rounds["data"]]
    assert [row["round"] for row in told] == list(range(len(told)))
    # The second round is trained where the first has not given a network within the target.
    assert len(told) == (2 if told[1]["likely below"] <= 0.005 + 1e-9 else 3)
    assert (artifacts / "plots" / "distill-rounds.png").is_file()

    # NNCodec alone decodes what was evaluated.
    from tracker.bitstream import decode_bitstream

    coded = bytearray((artifacts / "bitstream" / "model.nnc").read_bytes())
    alone = nnc.decompress(coded, reconstruct_lsa=True)  # scales of folded norms multiplied into the weights
    ours = decode_bitstream(artifacts / "bitstream")
    shifts = [name for name in alone if name.endswith(".weight.bias")]
    assert shifts and all(any(np.array_equal(alone[name], t.numpy()) for t in ours.values()) for name in shifts)
    alone = {name: array for name, array in alone.items() if name not in shifts}
    assert alone and all(np.array_equal(array, ours[name].numpy()) for name, array in alone.items())
