"""A quantised network, and the step sizes that its tensors may have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tracker.codecs.nnc_steps import nearest_qp, step_size

DENSITY = 2  # of qp: steps end on the grid that every finer density has as well
FINE = 2.0**-6  # steps of vectors (norms, biases), over their root mean square


@dataclass(frozen=True)
class Quantised:
    """A quantised network.

    Attributes:
        values: of its parameters, by name.
        steps: the step size of each.
        bits: per weight, as an adaptive coder of order 0 would take.
        loss: distortion at the end of training.
    """

    values: Mapping[str, Tensor]
    steps: Mapping[str, float]
    bits: float
    loss: float

    def fill(self, model: nn.Module) -> None:
        """Give a model these values."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.values[name])


def on_grid(size: float) -> float:
    """The nearest step size that NNC has."""
    return step_size(nearest_qp(size, DENSITY), DENSITY)


def allowed(size: float, given: float) -> float:
    """The step size that was given where it is that, whatever grid it is on; else the nearest that NNC has."""
    return given if math.isclose(size, given, rel_tol=1e-5) else on_grid(size)


def fine_step(vector: Tensor) -> float:
    """A step size for a norm or a bias."""
    size = float(vector.detach().square().mean().sqrt()) if vector.numel() else 0.0
    return on_grid(FINE * size) if size > 0 else 1.0
