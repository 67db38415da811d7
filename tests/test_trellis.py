"""Dependent quantisation: the path is the best one, NNCodec's own decoder gives it back, and it is worth its while."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nncodec import nnc
from scipy.stats import entropy
from torch import Tensor, nn

from tracker.codecs.base import Context
from tracker.codecs.nnc import Nnc
from tracker.codecs.nnc_steps import step_size
from tracker.codecs.round import Round
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import state_tensors
from tracker.rate_distortion import viterbi
from tracker.rate_distortion.rounding import on_path, rounded
from tracker.rate_distortion.trellis import best_path
from tracker.rate_distortion.viterbi import NEXT


def walked(levels: Iterable[int], state: int = 0) -> tuple[int, list[int]]:
    """The state after integers, and the multiples that they stand for, one after the other."""
    multiples = []
    for level in levels:
        sign = (level > 0) - (level < 0)
        multiples.append(2 * level - (state & 1) * sign)
        state = NEXT[state][level & 1]
    return state, multiples


def test_the_path_is_the_best_of_all() -> None:
    """Where errors cannot be made up for, all paths can be tried."""
    torch.manual_seed(1)
    gains, price = torch.tensor([1.0, 3.0, 0.5, 1.0, 2.0, 1.0]), 0.2
    factor = torch.diag(gains.rsqrt())
    lengths = torch.stack([torch.arange(257.0), 1.5 * torch.arange(257.0)])
    scaled, starts = torch.randn(4, 6), torch.tensor([0, 3, 5, 7])

    def cost(row: Tensor, levels: tuple[int, ...], state: int) -> float:
        total = 0.0
        for value, gain, level, multiple in zip(row, gains, levels, walked(levels, state)[1], strict=True):
            total += float(gain * (value - multiple) ** 2 + price * lengths[state & 1, abs(level)])
            state = NEXT[state][level & 1]
        return total

    every = list(itertools.product(range(-2, 3), repeat=6))
    for ends in (None, torch.tensor([0, 6, 1, 2])):
        found = best_path(scaled, factor, gains, price, lengths, starts, ends)
        assert ends is None or torch.equal(found.ends, ends)
        rows = zip(scaled, found.levels.int().tolist(), starts.tolist(), found.ends.tolist(), strict=True)
        for row, levels, start, end in rows:
            assert walked(levels, start)[0] == end
            allowed = [path for path in every if ends is None or walked(path, start)[0] == end]
            assert cost(row, tuple(levels), start) == pytest.approx(min(cost(row, p, start) for p in allowed), rel=1e-5)


def correlated(inputs: int) -> Tensor:
    vectors = torch.randn(2000, inputs) @ torch.randn(inputs, inputs)
    return vectors.T @ vectors / len(vectors)


def error(weight: Tensor, values: Tensor, covariance: Tensor) -> float:
    return float(((values - weight) @ covariance * (values - weight)).sum())


def test_it_errs_less_than_a_uniform_quantiser_of_as_many_bits() -> None:
    """Both without, or nearly without, the rate in their costs."""
    torch.manual_seed(0)
    weight, covariance = torch.randn(48, 120), correlated(120)
    multiples, _ = on_path(weight, covariance, 1.0, 0.1)
    state, odd, levels = 0, [], []
    for multiple in multiples.int().flatten().tolist():
        odd.append(bool(state & 1))
        levels.append((abs(multiple) + odd[-1]) // 2)
        state = NEXT[state][levels[-1] & 1]
    integers, of_odd = np.array(levels), np.array(odd)
    parts = [integers[of_odd], integers[~of_odd]]
    bits = sum(entropy(np.bincount(part), base=2) * len(part) for part in parts) + np.count_nonzero(integers)
    step = 1.0
    while True:  # the finest uniform quantiser that takes no more bits
        uniform = rounded(weight, covariance, step, 0.0)
        counts = np.bincount(uniform.abs().int().flatten().numpy())
        if entropy(counts, base=2) * weight.numel() + np.count_nonzero(uniform) <= bits:
            break
        step *= 1.01
    assert error(weight, multiples, covariance) < 0.85 * error(weight, step * uniform, covariance)


def test_rows_are_one_path_in_parts_and_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight, covariance = 2 * torch.randn(10, 37), correlated(37)
    whole, end = on_path(weight, covariance, 1.0, 0.1)
    state = 0
    for multiple in whole.int().flatten().tolist():
        odd = state & 1
        assert multiple == 0 or multiple % 2 == odd
        state = NEXT[state][(abs(multiple) + odd) // 2 & 1]
    assert state == end
    monkeypatch.setattr(viterbi, "EACH", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    parts, again = on_path(weight, covariance, 1.0, 0.1)
    assert torch.equal(whole, parts) and end == again


def test_every_state_is_reached_from_every_other_in_three_values() -> None:
    """So that a row of `SHORTEST` values can end in any."""
    for state in range(8):
        assert {walked(levels, state)[0] for levels in itertools.product((0, 1), repeat=3)} == set(range(8))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.ConvTranspose2d(4, 2, 3))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * 8 * 8, 5)).eval()


def context(model: nn.Module, coder: Nnc, **more: Any) -> Context:
    inputs = torch.randn(20, 2, 10, 10)
    given = Context(lambda m, x: m(x), lambda: [inputs], 0, "cpu", anchor=model, coder=coder, state=state_tensors)
    return dataclasses.replace(given, **more)


def test_nncodec_decodes_what_was_chosen(tmp_path: Path) -> None:
    model, coder = network(), Nnc(qp=-10)
    done = Round().apply(model, context(model, coder))
    # Not those whose values are in another order.
    assert set(done.dependent) == {"0.weight", "2.weight", "5.weight"} and set(done.exact) == {
        *done.dependent,
        "3.weight",
    }
    tensors = {name: tensor.clone() for name, tensor in state_tensors(done.model).items()}
    after = context(model, coder, steps=done.steps, exact=done.exact, dependent=done.dependent)
    coder.encode(tensors, tmp_path, done.model, after)
    plain = nnc.decompress(bytearray((tmp_path / "model.nnc").read_bytes()), verbose=False)
    step = step_size(-10, 2)
    for name in done.exact:
        assert torch.equal(torch.from_numpy(plain[name]), tensors[name]), name
        multiples = (tensors[name] / step).flatten()
        assert torch.equal(multiples, multiples.round())
    approximated = coder.approximate(tensors, done.model, after)
    assert approximated is not None
    assert all(torch.equal(approximated[name], tensors[name]) for name in done.exact)


def test_uniform_integers_where_the_coder_has_no_trellis() -> None:
    for coder in (Nnc(qp=-10, use_dq=False), Nnc(qp=-10, scan_order=1)):
        model = network()
        assert not Round().apply(model, context(model, coder)).dependent
        with pytest.raises(TrackerError, match="needs nnc after it, with use_dq=true and scan_order=0"):
            Round(dependent=True).apply(model, context(model, coder))
    model = network()
    assert not Round(dependent=False).apply(model, context(model, Nnc(qp=-10))).dependent


def test_step_sizes_for_dependent_quantisation_grow_to_the_same_error_where_integers_are_uniform() -> None:
    """NNCodec's own quantiser, with and without dependent quantisation, is the measure of what the same error is."""
    torch.manual_seed(0)
    model = nn.Linear(200, 300, bias=False)
    nn.init.normal_(model.weight, std=0.5)
    given = torch.randn(2000, 200)  # inputs that are independent, so that nothing can be made up for
    step = step_size(-10, 2)

    def errors(coder: Nnc, size: float) -> float:
        own = context(model, coder, steps={"weight": size})
        found = coder.approximate({"weight": model.weight.detach()}, model, own)
        assert found is not None
        return float((found["weight"] - model.weight.detach()).square().mean())

    own = context(model, Nnc(qp=-10), calibration=lambda: [given], steps={"weight": step})
    done = Round(rate_weight=0, dependent=False).apply(copy.deepcopy(model), own)
    assert done.steps["weight"] == step_size(-8, 2) and not done.dependent
    integers = done.model.weight / done.steps["weight"]
    assert torch.equal(integers, integers.round())
    wanted = errors(Nnc(qp=-10, lambda_scale=0), step)
    error = float((done.model.weight - model.weight).detach().square().mean())
    assert 0.65 < error / wanted < 1.1  # the grid of step sizes is coarse; without growing it is 0.38
    assert error == pytest.approx(errors(Nnc(qp=-10, use_dq=False, lambda_scale=0), done.steps["weight"]), rel=0.1)
    # Step sizes that a coder without it has told of are meant for uniform integers.
    plain = dataclasses.replace(own, coder=Nnc(qp=-10, use_dq=False))
    assert Round(dependent=False).apply(copy.deepcopy(model), plain).steps["weight"] == step
