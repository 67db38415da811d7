"""Allocation, rounding and correction before NNC: each against an independent computation."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Here, one_line, runs
from nncodec import nnc
from torch import Tensor, nn
from torch.nn import functional as F

from tracker.bitstream.state import coded_part, with_coded
from tracker.codecs import nnc_tables, nnc_units
from tracker.codecs.allocate import Allocate
from tracker.codecs.base import Context
from tracker.codecs.correct import Correct
from tracker.codecs.nnc import Nnc
from tracker.codecs.nnc_steps import step_size
from tracker.codecs.records import Judged, Target
from tracker.codecs.round import Round
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import state_tensors
from tracker.rate_distortion import moments
from tracker.rate_distortion.aim import Found, by_divergence, supported, working_point
from tracker.rate_distortion.code_length import code_lengths
from tracker.rate_distortion.inputs import Source, made, one_batch
from tracker.rate_distortion.lagrangian import allocated, curve, prices
from tracker.rate_distortion.moments import Entered, second_moments
from tracker.rate_distortion.rounding import rounded
from tracker.rate_distortion.sensitivity import sensitivities_on
from tracker.scenarios.decision import expansion


def network() -> nn.Module:
    """Convolutions with BatchNorm that has seen data, and a linear layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, groups=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 49, 5),
    )
    for _ in range(20):
        model(torch.randn(64, 3, 16, 16) * 1.5 + 0.5)
    return model.eval()


def context(model: nn.Module, **more: Any) -> Context:
    torch.manual_seed(1)
    batches = [torch.randn(32, 3, 16, 16) * 1.5 + 0.5 for _ in range(4)]
    known = {"anchor": copy.deepcopy(model), "coder": Nnc(qp=-14), "state": state_tensors, "classes": 1}
    return Context(lambda model, inputs: model(inputs), lambda: batches, 0, "cpu", **{**known, **more})


def test_an_allocation_is_the_best_of_all_for_its_price() -> None:
    generator = np.random.default_rng(0)
    curves = {}
    for name in "abc":
        sizes = np.sort(generator.uniform(10, 100, 6))[::-1]
        errors = np.sort(generator.uniform(0, 1, 6))
        curves[name] = curve([2.0**k for k in range(6)], list(sizes), list(errors), float(generator.uniform(0.5, 2)))
    for price in (1e-4, 1e-3, 1e-2):
        steps, bits = allocated(curves, price)
        best = min(
            itertools.product(range(6), repeat=3),
            key=lambda places: sum(
                one.distortion[place] + price * one.bits[place]
                for one, place in zip(curves.values(), places, strict=True)
            ),
        )
        assert steps == {name: 2.0**place for name, place in zip(curves, best, strict=True)}
        assert bits == pytest.approx(sum(curves[name].bits[place] for name, place in zip(curves, best, strict=True)))
    given = prices(curves, 0.01)
    rates = [allocated(curves, price)[1] for price in given]
    assert given[0] == 0 and rates[0] == sum(one.bits[0] for one in curves.values())
    assert rates[-1] == sum(one.bits[-1] for one in curves.values())
    assert all(after <= 0.99 * before for before, after in itertools.pairwise(rates))


def test_the_working_point_is_the_last_within_a_drop_or_the_first_within_bytes() -> None:
    base = context(nn.Identity())

    def search(count: int, target: Target) -> int:
        aimed = Context(base.predict, base.calibration, 0, "cpu", target=target)
        found = working_point(
            count, lambda place: place, lambda made: Judged(0.0, made / 10, made / 10), lambda made: 100 - made, aimed
        )
        return found.made

    for count in (1, 2, 7, 64):
        for drop in (0.0, 0.3, 100.0):
            assert search(count, Target(drop)) == min(int(drop * 10), count - 1)
    assert search(64, Target(0.0, 80)) == 20 and search(64, Target(0.0, 1000)) == 0
    with pytest.raises(TrackerError, match="less than the 37 bytes of the smallest bitstream"):
        search(64, Target(0.0, 36))
    assert search(5, Target(-1.0)) == 0  # nothing is within it: the best there is
    # Drops that fall again: what bisection meets first, and four places further; or all of them.
    drops = [0.0] * 21 + [1.0] * 4 + [0.0] + [1.0] * 14 + [0.0] + [1.0] * 23
    for target, last in (
        (Target(0.5, ahead=0), 20),
        (Target(0.5), 20),
        (Target(0.5, ahead=4), 25),
        (Target(0.5, ahead=1000), 40),
    ):
        aimed = Context(base.predict, base.calibration, 0, "cpu", target=target)
        found = working_point(
            64, int, lambda made: Judged(0.0, drops[made], drops[made]), lambda made: 100 - made, aimed
        )
        assert found.made == last


@pytest.mark.parametrize("growth", [0.05, 0.15, 0.4])
@pytest.mark.parametrize("last", [3, 20, 61, 90, 147])
def test_a_working_point_is_found_in_few_steps_where_drops_grow_evenly(growth: float, last: int) -> None:
    base = context(nn.Identity())
    looked: list[int] = []

    def judge(place: int) -> Judged:
        looked.append(place)
        drop = 0.005 * math.exp(growth * (place - last - 0.5))
        return Judged(0.0, drop, drop)

    for target in (Target(0.005, ahead=0), Target(0.0, 1000)):
        looked.clear()
        aimed = Context(base.predict, base.calibration, 0, "cpu", target=target)

        def size(place: int) -> int:
            looked.append(place)
            return round(1000 * math.exp(growth * (last - 0.5 - place)))

        found = working_point(148, int, judge, size, aimed)
        assert found.place == last and len(looked) == len(set(looked)) <= 10, looked


def test_a_place_that_is_within_a_drop_by_luck_is_not_taken_where_others_tell_so() -> None:
    """Bounds of places of nnc_fast on ResNet-56, and ones that grow evenly up to a lucky place."""
    bounds = {64: 0.0027, 68: 0.0047, 72: 0.0045, 76: 0.0039, 77: 0.0070, 78: 0.0077, 79: 0.0074, 82: 0.0066}
    seen = [Found(place, place, Judged(0.0, bound, bound), None) for place, bound in bounds.items()]
    aimed = Context(context(nn.Identity()).predict, list, 0, "cpu", target=Target(0.005))
    assert supported(seen, aimed).place == 72
    assert supported([one for one in seen if one.place <= 76], aimed).place == 76
    assert supported([one for one in seen if one.place >= 76], aimed).place == 76  # there is no other
    even = {place: 0.005 * math.exp(0.15 * (place - 40.5)) for place in range(100)}

    def found(lucky: bool, **others: float) -> int:
        drops = even | {int(place[1:]): drop for place, drop in others.items()}
        target = Context(aimed.predict, list, 0, "cpu", target=Target(0.005, ahead=1000))
        judge = lambda made: Judged(0.0, drops[made], drops[made])  # noqa: E731
        return working_point(100, int, judge, lambda made: 100 - made, target, lucky=lucky).place

    assert found(True) == found(False) == 40
    assert found(True, _46=0.004) == 46 and found(False, _46=0.004) == 40


@pytest.mark.parametrize("growth", [0.05, 0.15, 0.4])
def test_a_divergence_is_found_in_a_few_steps(growth: float) -> None:
    for wanted in (0, 7, 40, 99, 150):
        asked: list[int] = []

        def measure(place: int) -> float:
            asked.append(place)  # noqa: B023 - called here only
            return math.exp(growth * place + 0.02 * math.sin(place))

        place, found = by_divergence(100, measure, math.exp(growth * wanted))
        assert abs(place - min(wanted, 99)) <= 1 and len(asked) == len(set(asked)) <= 16
        for one, value in found.items():
            assert value == pytest.approx(math.exp(growth * one + 0.02 * math.sin(one)))
    # Where nothing diverges, the last place is it; and no list is too short.
    assert by_divergence(100, lambda place: 0.0, 0.03)[0] == 99
    assert by_divergence(1, lambda place: 5.0, 0.03)[0] == 0


def test_a_divergence_is_found_beside_what_single_places_say() -> None:
    """Networks that lie above and below what is usual by a fifth: the place differs by one, not by three."""
    for seed in range(20):
        noise = np.random.default_rng(seed).uniform(-0.2, 0.2, 100)
        place, _ = by_divergence(100, lambda place: math.exp(0.1 * place + noise[place]), math.exp(0.1 * 62))  # noqa: B023
        assert abs(place - 62) <= 1, (seed, place)


def test_rates_and_errors_in_a_table_are_those_of_nncodec(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    weight = torch.randn(30, 40) * 0.1
    coder = Nnc()
    found = coder.costs({"w": weight, "b": torch.randn(30)})
    assert set(found) == {"w", "b"}
    steps = [row.step for row in found["w"]]
    assert steps == sorted(steps) and steps[0] < 0.1 / 300 and steps[-1] > 0.15
    for row in found["w"][::6]:  # every other one is measured, those between are interpolated
        qp = next(qp for qp in range(-128, 128) if step_size(qp, 2) == row.step)
        coded = nnc.compress({"w": weight.numpy()}, qp=qp, return_bitstream=True, bitstream_path=None)
        size = sum(len(unit) for kind, unit in nnc_units.split(bytes(coded)) if kind == nnc_units.NDU)
        error = float(np.square(nnc.decompress(bytearray(coded))["w"] - weight.numpy()).sum())
        # A qp of its own takes up to two bytes more than the one for all.
        assert row.bytes == pytest.approx(size, abs=2.1) and row.error == pytest.approx(error, rel=1e-3)
    between = found["w"][5]
    assert found["w"][4].bytes >= between.bytes >= found["w"][6].bytes

    def never(*_: Any) -> None:
        raise AssertionError("coded again")

    monkeypatch.setattr(nnc_tables, "measure", never)
    assert coder.costs({"w": weight})["w"] == found["w"]


def test_where_step_sizes_are_octaves_apart_each_is_in_the_table(cache: Path) -> None:
    steps = [row.step for row in Nnc(qp_density=0, qp=-8, nonweight_qp=-15).costs({"w": torch.randn(30, 40)})["w"]]
    assert len(steps) == 11 and all(after == 2 * step for step, after in itertools.pairwise(steps))


def test_a_damaged_table_is_measured_again(cache: Path) -> None:
    weight = torch.randn(8, 8)
    before = Nnc().costs({"w": weight})
    for path in (cache / "rates").glob("*.json"):
        path.write_text("[[1, 2")
    assert Nnc().costs({"w": weight}) == before


def test_a_cache_that_cannot_be_written_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKER_CACHE", str(tmp_path))
    (tmp_path / "rates").write_text("in the way of the folder")
    with pytest.raises(TrackerError, match=r"the cache .*rates cannot be written .*set TRACKER_CACHE"):
        Nnc().costs({"w": torch.randn(8, 8)})
    assert [path.name for path in tmp_path.iterdir()] == ["rates"]


def test_rounding_is_to_nearest_where_inputs_have_nothing_in_common() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 9)
    found = rounded(weight, torch.eye(9), 0.3, 0.0)
    assert torch.equal(found, (weight / 0.3).round())


def test_rounding_keeps_outputs_better_than_to_nearest_and_costs_less_with_a_price() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(500, 40) @ torch.randn(40, 40) * 0.2 + torch.rand(500, 40)
    weight, step = torch.randn(24, 40) * 0.1, 0.08
    moments = inputs.T @ inputs / len(inputs)

    def error(integers: Tensor) -> float:
        return float((inputs @ (weight - integers * step).T).square().mean())

    def bits(integers: Tensor) -> float:
        return float(code_lengths(integers)[integers.abs().long()].sum())

    nearest = (weight / step).round()
    plain = rounded(weight, moments, step, 0.0)
    cheap = rounded(weight, moments, step, 4.0)
    assert error(plain) < 0.5 * error(nearest)
    assert error(plain) < error(cheap) < error(nearest) and bits(cheap) < 0.9 * bits(plain)


def test_an_impossible_covariance_does_not_stop_it() -> None:
    weight = torch.randn(4, 5)
    for covariance in (torch.zeros(5, 5), torch.ones(5, 5), 1e30 * torch.ones(5, 5)):
        assert bool(torch.isfinite(rounded(weight, covariance, 0.1, 1.0)).all())


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (3, 4, 9, 8)),
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(0, 2)), (3, 4, 9, 8)),
        (nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"), (3, 4, 9, 8)),
        (nn.Conv2d(4, 6, 3, groups=2), (3, 4, 9, 8)),
        (nn.Conv1d(4, 6, 5, stride=2), (3, 4, 20)),
        (nn.Conv3d(2, 4, 3, padding=1), (2, 2, 5, 6, 7)),
        (nn.Linear(7, 3), (4, 5, 7)),
    ],
)
def test_what_enters_a_layer_times_its_weights_is_its_output(
    module: Any, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = torch.randn(shape)
    groups = getattr(module, "groups", 1)
    parts = [
        Entered(module, given, group).vectors(0, 10**6) @ weight.flatten(1).T
        for group, weight in enumerate(module.weight.chunk(groups))
    ]
    found = torch.cat(parts, dim=1) + module.bias
    wanted = module(given) if isinstance(module, nn.Linear) else module(given).movedim(1, -1)
    assert torch.allclose(found, wanted.reshape(len(found), -1), atol=1e-5)
    # Moments are summed over parts.
    monkeypatch.setattr(moments, "CHUNK", 7)
    before = torch.randn(shape)
    for group in range(groups):
        here, there = (Entered(module, x, group).vectors(0, 10**6).double() for x in (given, before))
        own, crossed = second_moments(module, (before, given), group)
        assert crossed is not None and torch.allclose(own.double(), here.T @ here / len(here), atol=1e-5)
        assert torch.allclose(crossed.double(), there.T @ here / len(here), atol=1e-5)
        assert second_moments(module, (None, given), group)[1] is None


def test_of_many_vectors_some_are_taken_that_are_evenly_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "VECTORS", 5)
    given = torch.arange(41.0)[:, None].expand(41, 3)
    assert Entered(nn.Linear(3, 2), given, 0).vectors(0, 9)[:, 0].tolist() == [0, 10, 20, 30, 40]


def test_round_takes_the_steps_of_the_stage_before_or_of_the_coder() -> None:
    model = network()
    done = Round(rate_weight=0).apply(copy.deepcopy(model), context(model))
    step = step_size(-14, 2)
    assert done.exact and done.steps["0.weight"] == step
    given = Round(rate_weight=0).apply(copy.deepcopy(model), context(model, steps={"0.weight": 0.0625}))
    for transformed, size in ((done, step), (given, 0.0625)):
        integers = transformed.model[0].weight / size
        assert torch.allclose(integers, integers.round(), atol=1e-4)
    assert torch.equal(done.model[0].bias if done.model[0].bias is not None else model[1].bias, model[1].bias)
    inputs = next(iter(context(model).calibration()))
    nearest = copy.deepcopy(model)
    for module in (nearest[0], nearest[3], nearest[7]):
        module.weight.data = (module.weight / step).round() * step
    assert F.mse_loss(done.model(inputs), model(inputs)) < F.mse_loss(nearest(inputs), model(inputs))


class Attention(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, given: Tensor) -> Tensor:
        return self.inner(given, given, given, need_weights=False)[0]


@pytest.mark.parametrize("kind", ["turned", "transposed", "attention"])
def test_round_knows_weights_that_are_not_laid_out_by_outputs(kind: str) -> None:
    torch.manual_seed(0)
    name, given = "weight", torch.randn(64, 10, 12) @ torch.randn(12, 12)  # inputs that depend on each other
    if kind == "turned":
        model: Any = pytest.importorskip("transformers.pytorch_utils").Conv1D(9, 12)
        nn.init.normal_(model.weight, std=0.3)
    elif kind == "transposed":
        model, given = nn.ConvTranspose2d(12, 5, 3, stride=2).to(memory_format=torch.channels_last), given.movedim(2, 1)
        given = given[..., None].expand(-1, -1, -1, 4) + 0.1 * torch.randn(64, 12, 10, 4)
    else:
        model, name = Attention(), "inner.in_proj_weight"
    own = dataclasses.replace(context(model, coder=Nnc(qp=-10), classes=None), calibration=lambda: [given])
    done = Round(rate_weight=0, dependent=False).apply(copy.deepcopy(model.eval()), own)
    assert set(done.exact) == {name} and not done.dependent
    step, weight = done.steps[name], model.get_parameter(name)
    integers = done.model.get_parameter(name) / step
    assert torch.allclose(integers, integers.round(), atol=1e-4)
    nearest = copy.deepcopy(model)
    nearest.get_parameter(name).data = (weight / step).round() * step
    errors = [float(F.mse_loss(other(given), model(given)).detach()) for other in (done.model, nearest)]
    assert errors[0] < 0.7 * errors[1]


def test_dependent_integers_are_better_than_the_coders_own() -> None:
    torch.manual_seed(0)
    model = nn.Linear(90, 40)
    nn.init.normal_(model.weight, std=0.3)
    given = (torch.randn(3000, 30) @ torch.randn(30, 90) / 5 + 0.5 * torch.randn(3000, 90)).relu()
    own = dataclasses.replace(context(model, coder=Nnc(qp=-10), classes=None), calibration=lambda: [given])
    done = Round().apply(copy.deepcopy(model), own)
    assert set(done.dependent) == {"weight"}
    values = Nnc(qp=-10, lambda_scale=0).approximate(coded_part(state_tensors(model)), model, own)
    assert values is not None
    theirs = copy.deepcopy(model)
    theirs.weight.data = values["weight"]
    errors = [float(F.mse_loss(other(given), model(given)).detach()) for other in (done.model, theirs)]
    assert errors[0] < 0.65 * errors[1]


class Tied(nn.Module):
    """Words in and out, with one table for both."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.scores = nn.Embedding(40, 12), nn.Linear(12, 40, bias=False)
        self.scores.weight = self.words.weight

    def forward(self, given: Tensor) -> Tensor:
        return self.scores(self.words(given).cumsum(1))


class Twice(nn.Module):
    """One layer's weights, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.scores = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
        self.scores.weight = self.words.weight

    def forward(self, given: Tensor) -> Tensor:
        return self.scores(self.words(given).relu())


def test_an_embedding_that_gives_the_scores_too_is_not_rounded_for_these_alone() -> None:
    torch.manual_seed(0)
    model, tokens = Tied().eval(), torch.randint(40, (16, 20))
    own = dataclasses.replace(context(model, classes=-1), calibration=lambda: [tokens])
    assert set(Allocate(price=0.0).apply(copy.deepcopy(model), own).steps) == {"words.weight"}
    done = Round().apply(copy.deepcopy(model), own)
    assert not done.exact and torch.equal(done.model.words.weight, model.words.weight)


def test_a_tied_tensor_is_allocated_and_rounded_once_and_judged_as_it_is_decoded() -> None:
    torch.manual_seed(0)
    model, vectors = Twice().eval(), torch.randn(64, 12)
    own = dataclasses.replace(context(model), calibration=lambda: [vectors])
    assert set(Allocate(price=0.0).apply(copy.deepcopy(model), own).steps) == {"words.weight"}
    done = Round().apply(copy.deepcopy(model), own)
    assert set(done.exact) == {"words.weight"}
    assert set(done.dependent) == set(done.exact)
    after = dataclasses.replace(own, steps=done.steps, exact=done.exact, dependent=done.dependent)
    values = Nnc(qp=-14).approximate(coded_part(state_tensors(done.model)), done.model, after)
    assert values is not None and torch.equal(values["words.weight"], done.model.scores.weight)
    whole = with_coded(state_tensors(model), {"words.weight": values["words.weight"]})
    assert torch.equal(whole["scores.weight"], values["words.weight"])


def test_correction_leaves_alone_what_quantisation_does_not_change() -> None:
    model = network()
    fine = context(model, coder=Nnc(qp=-70, use_dq=False))
    done = Correct().apply(copy.deepcopy(model), fine).model
    for name, tensor in state_tensors(model).items():
        assert torch.allclose(state_tensors(done)[name], tensor, atol=2e-4), name


@pytest.mark.parametrize("scales", [True, False])
def test_corrected_statistics_are_those_of_the_anchor(scales: bool) -> None:
    model = network()
    coarse = context(model, coder=Nnc(qp=-10, use_dq=False))
    done = Correct(scales=scales).apply(copy.deepcopy(model), coarse).model
    assert torch.equal(done[0].weight, model[0].weight)  # the coder quantises it
    inputs = torch.cat(list(coarse.calibration()))

    def quantised(network: nn.Module) -> nn.Module:
        found = copy.deepcopy(network)
        values = Nnc(qp=-10, use_dq=False).approximate(
            {name: t for name, t in state_tensors(network).items() if t.ndim > 1}, network, coarse
        )
        found.load_state_dict({**network.state_dict(), **values})
        return found

    def statistics(network: nn.Module, upto: int) -> tuple[Tensor, Tensor]:
        output = network[:upto](inputs).movedim(1, 0).flatten(1)
        return output.mean(1), output.std(1)

    for upto in (2, 5, 8):
        mean, deviation = statistics(model, upto)
        before, after = statistics(quantised(model), upto), statistics(quantised(done), upto)
        assert torch.allclose(after[0], mean, atol=1e-3) and not torch.allclose(before[0], mean, atol=1e-3)
        if scales and upto < 8:
            assert torch.allclose(after[1], deviation, rtol=1e-2)


def test_made_inputs_have_the_statistics_of_the_norms() -> None:
    model = network()
    own = context(model)
    like = torch.zeros(2, 3, 16, 16)
    inputs = made(own, like)
    assert inputs.shape[1:] == (3, 16, 16) and len(inputs) >= 32
    before = model[0](inputs).mean((0, 2, 3))
    noise = model[0](torch.randn(64, 3, 16, 16)).mean((0, 2, 3))
    wanted = model[1].running_mean
    assert (before - wanted).abs().mean() < 0.5 * (noise - wanted).abs().mean()
    assert torch.equal(inputs, made(own, like))
    tokens = torch.arange(12).view(3, 4)
    assert sorted(made(own, tokens).flatten().tolist()) == list(range(12))
    assert all(parameter.requires_grad for parameter in own.anchor.parameters())


@pytest.mark.parametrize("source", ["synthetic", "calibration"])
def test_before_training_nothing_depends_on_the_seed(source: Source) -> None:
    model = network()
    found = []
    for seed in (0, 7):
        own = dataclasses.replace(context(model), seed=seed)
        assert torch.equal(one_batch(source, own), one_batch(source, context(model)))
        found.append(sensitivities_on(source, model, own))
    assert all(torch.equal(values, found[1][name]) for name, values in found[0].items())


def test_allocation_gives_sensitive_tensors_finer_steps_and_counts_norms() -> None:
    model = network()
    with torch.no_grad():
        model[7].weight[:] *= 20  # everything before it matters more now
    base = context(model)
    stage = Allocate()
    places = stage.places(copy.deepcopy(model), base)
    assert len(places) > 20
    steps = places[len(places) // 2].apply(copy.deepcopy(model), base).steps
    assert {"0.weight", "1.weight", "1.bias", "3.weight", "3.bias", "4.weight", "4.bias", "7.weight", "7.bias"} == set(
        steps
    )
    assert steps["7.weight"] > steps["0.weight"]
    sizes = [place.apply(copy.deepcopy(model), base).metrics["allocate/kilobytes"] for place in places]
    assert sizes == sorted(sizes, reverse=True)
    assert Allocate(price=1.0).places(model, base) == ()


class Branches(nn.Module):
    """Two layers, of which the second hardly matters."""

    def __init__(self) -> None:
        super().__init__()
        self.much, self.little = nn.Conv2d(3, 5, 3, bias=False), nn.Conv2d(3, 5, 3, bias=False)

    def forward(self, given: Tensor) -> Tensor:
        """Shape (batch, 5)."""
        return (self.much(given) + 0.01 * self.little(given)).mean((2, 3))


def test_inputs_made_for_a_network_without_norms_tell_what_matters_too() -> None:
    model = Branches()
    base = context(model)
    steps = {}
    for inputs in ("synthetic", "none"):
        places = Allocate(inputs=inputs).places(copy.deepcopy(model), base)
        steps[inputs] = places[len(places) // 3].apply(copy.deepcopy(model), base).steps
    assert steps["synthetic"]["little.weight"] > 8 * steps["synthetic"]["much.weight"]
    assert steps["none"]["little.weight"] == pytest.approx(steps["none"]["much.weight"], rel=0.5)


@pytest.mark.parametrize(
    ("inputs", "norms", "wanted"),
    [
        (torch.randn(2, 3, 8, 8), False, True),
        (torch.randn(2, 3, 8, 8), True, False),
        (torch.randn(2, 3), False, False),
        (torch.randint(9, (2, 3, 8, 8)), False, False),
        ({"tokens": torch.randint(9, (2, 3))}, False, False),
    ],
)
def test_of_made_inputs_only_pictures_are_followed(inputs: Any, norms: bool, wanted: bool) -> None:
    own = context(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if norms else nn.ReLU()))
    assert Round(inputs="synthetic").follows(inputs, own) is wanted
    assert Round(inputs="calibration").follows(inputs, own)
    assert Round(inputs="synthetic", follow=True).follows(inputs, own)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("+codec=int8", "target.drop=0.01"), "int8 has no option with which target.drop could be reached"),
        (("+codec=nnc", "target.drop=0.01", "target.bytes=100"), "leave one of them out"),
        (("target.drop=0.01",), "target.drop needs a codec"),
        (("+codec=nnc", "target.drop=0.01", "codec.nnc.qp=-40"), "codec.nnc.qp is what target.drop looks for"),
        (
            ("+codec=nnc_fast", "target.bytes=12000", "codec.allocate.price=0.1"),
            "codec.allocate.price is what target.bytes looks for",
        ),
        (("+codec=nnc", "target.bytes=0"), "target.bytes"),
        (("+codec=nnc", "target.drop=-1"), "target.drop"),
        (("+codec=nnc", "target.bytes=700"), "is less than the"),
        (("+codec=nnc", "codec.nnc.bitdepth=6", "target.drop=0.01"), "has nothing with which a target could be"),
        (("-m", "+codec=nnc", "+sweep=nnc", "target.drop=0.01"), "a sweep looks for the working point itself"),
        (("+codec=[round,int8]",), "round chooses step sizes, which int8 does not take"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_line(here: Here, words: tuple[str, ...], reason: str) -> None:
    one_line(here(*words), reason)


def test_a_target_of_bytes_is_met_and_used(here: Here, ready: Path) -> None:
    for codec in ("nnc", "nnc_fast"):
        done = here(f"+codec={codec}", "target.bytes=14000", "tracking.evaluate_stages=false")
        assert done.returncode == 0, done.stderr
    for run in runs(ready, "compression"):
        assert 12000 < run.data.metrics["size/bitstream_bytes"] <= 14000


def test_a_target_drop_decides_on_the_search_split(here: Here, ready: Path) -> None:
    sizes = []
    for words in (("target.drop=0.002",), ("target.drop=0.03",), ("target.drop=0.03", "target.confidence=null")):
        done = here("+codec=nnc", *words)
        assert done.returncode == 0, done.stderr
        run = runs(ready, "compression")[-1]
        sizes.append(run.data.metrics["size/bitstream_bytes"])
        assert "nnc/qp" in run.data.metrics
    assert sizes[0] > sizes[1] >= sizes[2]


def test_the_bound_of_few_samples_is_that_of_students_distribution() -> None:
    """Of normal drops, the expanded bootstrap's bound holds as often as it says, where the plain one does not."""
    generator = np.random.default_rng(0)
    for count in (3, 8, 200):
        drops = generator.normal(0.0, 1.0, (4000, count))
        deviations = drops.std(axis=1) / np.sqrt(count)  # what a bootstrap of means estimates
        bounds = drops.mean(axis=1) + 0.9945 * deviations * expansion(count, 0.84)
        assert np.mean(bounds >= 0) == pytest.approx(0.84, abs=0.025)
    assert expansion(2, 0.5) == 1.0
