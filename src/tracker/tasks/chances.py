"""Probabilities of classes: whether outputs are some, and what they must be divided by to be true ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST, LARGEST = 0.25, 16.0  # temperatures


def are_chances(outputs: Tensor, classes: int = 1) -> bool:
    """Whether a model ends in a softmax, as many of Keras do.

    Args:
        outputs: of a batch.
        classes: the dimension over which they would add up to 1.
    """
    return bool((outputs >= 0).all() and ((outputs.sum(dim=classes) - 1).abs() < 1e-3).all())


def logits_of(outputs: Tensor) -> Tensor:
    """What a softmax makes a model's probabilities of.

    Args:
        outputs: logits, or probabilities, shape (N, classes).
    """
    return outputs.clamp(min=1e-30).log() if are_chances(outputs) else outputs


def temperature(logits: Tensor, classes: Tensor) -> float:
    """By what logits are divided so that the softmax of them is as often right as it says.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2: the one with the largest likelihood.

    Args:
        logits: shape (N, classes).
        classes: the right ones, shape (N,).
    """
    from scipy.optimize import minimize_scalar
    from torch.nn.functional import cross_entropy

    exact = logits.double()
    found = minimize_scalar(
        lambda log: float(cross_entropy(exact / math.exp(log), classes)),
        bounds=(math.log(SMALLEST), math.log(LARGEST)),
        method="bounded",
    )
    return math.exp(found.x)
