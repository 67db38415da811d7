"""What `round` makes up for, `allocate` does not count: shares of errors against rounding itself."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from test_rate_distortion import Twice, context, network
from torch import Tensor, nn

from tracker.codecs.allocate import Allocate
from tracker.codecs.chain import Codec
from tracker.codecs.correct import Correct
from tracker.codecs.nnc import Nnc
from tracker.codecs.round import Round
from tracker.rate_distortion import rounding
from tracker.rate_distortion.rounding import on_path, rounded


@pytest.mark.parametrize("alike", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("dependent", [False, True])
def test_the_share_is_that_of_errors_that_are_not_made_up_for(alike: float, dependent: bool) -> None:
    """Of inputs each of which tells something of its neighbours: what is known, and what rounding leaves."""
    place = torch.arange(24)
    covariance, step = alike ** (place[:, None] - place).abs().float(), 0.05
    torch.manual_seed(2)
    weight = torch.randn(1000, 24)

    def error(moments: Tensor) -> float:
        integers = on_path(weight, moments, step, 0.0)[0] if dependent else rounded(weight, moments, step, 0.0)
        difference = weight - step * integers
        return float((difference @ moments * difference).sum())

    found = rounding.remaining(covariance, dependent)
    # An autoregressive process: only the last input has no neighbour that follows.
    assert found == pytest.approx((23 * (1 - alike**2) + 1) / 24, rel=0.03)
    assert found == pytest.approx(error(covariance) / error(torch.eye(24)), rel=0.1)
    assert rounding.remaining(torch.zeros(3, 3), dependent) == 1.0  # inputs that are always zero


class Two(nn.Module):
    """Two layers of equal weights and inputs of equal size; those of the second hardly differ from each other."""

    def __init__(self) -> None:
        super().__init__()
        self.apart, self.alike = nn.Linear(16, 8, bias=False), nn.Linear(16, 8, bias=False)
        self.alike.weight.data.copy_(self.apart.weight.data)

    def forward(self, given: Tensor) -> Tensor:
        """Shape (batch, 16)."""
        return torch.cat([self.apart(given[:, :16]), self.alike(given[:, 16:])], dim=1)


def two() -> tuple[nn.Module, Any]:
    """The network, and its inputs."""
    torch.manual_seed(0)
    model = Two().eval()
    apart = torch.randn(512, 16)
    common = 0.95 * torch.randn(512, 1) + 0.3 * torch.randn(512, 16)
    base = context(model, classes=None)
    inputs = [torch.cat([apart, common], dim=1)]
    return model, dataclasses.replace(base, calibration=lambda: inputs)


def stepped(model: nn.Module, own: Any, **options: Any) -> dict[str, float]:
    """Step sizes at a price in the middle."""
    places = Allocate(**options).places(copy.deepcopy(model), own)
    return dict(places[len(places) // 2].apply(copy.deepcopy(model), own).steps)


def test_layers_whose_errors_are_made_up_for_get_larger_steps() -> None:
    model, own = two()
    chain = Codec({"allocate": Allocate(), "round": Round(), "correct": Correct()}, "nnc", Nnc(qp=-14))
    rounded_after = dataclasses.replace(own, remaining=chain.remaining)
    shares = chain.remaining(model, rounded_after)
    assert set(shares) == {"apart.weight", "alike.weight"}
    assert shares["apart.weight"] > 0.8 and shares["alike.weight"] < 0.2
    same = [
        stepped(model, own),
        stepped(model, rounded_after, feedback=False),
        stepped(model, dataclasses.replace(rounded_after, exact={"alike.weight"})),
        stepped(model, dataclasses.replace(own, remaining=chain.without({"round"}).remaining)),
    ]
    for steps in same:  # within the half of an octave between step sizes
        assert 0.7 < steps["alike.weight"] / steps["apart.weight"] < 1.45
    steps = stepped(model, rounded_after)
    assert steps["alike.weight"] / steps["apart.weight"] > 1.9


def test_shares_are_of_the_layers_that_are_rounded() -> None:
    model = network()
    own = context(model)
    assert set(Round().remaining(model, own)) == {"0.weight", "3.weight", "7.weight"}
    assert all(0 < share <= 1 for share in Round().remaining(model, own).values())
    assert Round(dependent=False).remaining(model, own) != Round().remaining(model, own)  # in another order
    assert Round().remaining(model, own) == Round().remaining(model, context(model))
    torch.manual_seed(0)
    tied, vectors = Twice().eval(), torch.randn(64, 12)
    found = Round().remaining(tied, dataclasses.replace(context(tied), calibration=lambda: [vectors]))
    assert set(found) == {"words.weight"}
