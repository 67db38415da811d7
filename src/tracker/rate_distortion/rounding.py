"""Integers for a layer's weights that keep its outputs, at the least cost of bits.

Column after column is rounded, and what that does to the outputs is made up for by the columns that follow (Frantar et
al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", section 3). Which integer
is taken weighs its error against its bits, as encoders of video do (Sullivan and Wiegand 1998, "Rate-distortion
optimization for video compression").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tracker.rate_distortion import trellis
from tracker.rate_distortion.code_length import LARGEST, code_lengths

DAMPING = 0.01  # of the mean diagonal, added to the covariance of inputs
PRICES = {False: 0.5, True: 0.1}  # of bits, by whether quantisation is dependent: paths choose among fewer integers
SLOPE = math.log(2) / 6  # of a uniform quantiser's squared error in squared steps by bits, which is 1/12 of 4^-bits
PASSES = 2  # over paths: code lengths are those of the path before


def rounded(weight: Tensor, covariance: Tensor, step: float, rate_weight: float) -> Tensor:
    """Integers for a weight matrix.

    Args:
        weight: shape (outputs, inputs).
        covariance: second moments of the inputs, shape (inputs, inputs).
        step: size of the quantisation step.
        rate_weight: of bits, over the slope of distortion by rate that rounding to nearest has at this step size; 0
            for the least distortion.

    Returns:
        Whole numbers, shape (outputs, inputs), in float32.
    """
    diagonal = covariance.diagonal()
    order = diagonal.argsort(descending=True)
    factor = inverse_factor(covariance[order][:, order])
    gains = gains_of(factor)
    price = rate_weight * SLOPE * float(gains.mean())
    scaled = weight[:, order] / step
    nearest = scaled.round()
    lengths = code_lengths(nearest)
    if price:  # code lengths are those of the integers that are chosen, and without errors made up for these are alike
        lengths = code_lengths(_cheapest(scaled, nearest, float(gains.mean()), price * lengths))
    found = torch.empty_like(scaled)
    found[:, order] = _columns(scaled, factor, gains, price, lengths)
    return found


def on_path(weight: Tensor, covariance: Tensor, step: float, rate_weight: float, state: int = 0) -> tuple[Tensor, int]:
    """As `rounded`, by dependent quantisation in the order of the rows.

    Args:
        weight, covariance, step, rate_weight: as there.
        state: before the first value.

    Returns:
        Multiples of the step size, and the state after the last value.
    """
    factor = inverse_factor(covariance)
    gains = gains_of(factor)
    price = rate_weight * SLOPE * trellis.UNIFORM**2 * float(gains.mean())
    scaled = weight / step
    given = (scaled, factor, gains, price)
    starts = torch.full((len(scaled),), state, device=scaled.device)
    path = trellis.best_path(*given, trellis.first_lengths(scaled), starts)
    # Where a row ends best hardly depends on where it begins: now each begins where the one before it ends.
    for _ in range(PASSES - 1):
        path = trellis.best_path(*given, trellis.lengths_of(path), trellis.chained(path.ends, state), path.ends)
    return path.multiples(), int(path.ends[-1])


def gains_of(factor: Tensor) -> Tensor:
    """What a squared error in each column does that nothing makes up for."""
    return factor.diagonal().square().reciprocal()


def remaining(covariance: Tensor, dependent: bool) -> float:
    """What columns leave of errors that are alike in all weights, as a share: the rest is made up for.

    Args:
        covariance: second moments of the inputs, shape (inputs, inputs).
        dependent: whether columns are taken as they are, or in the order of `rounded`.
    """
    diagonal = covariance.diagonal()
    mean = float(diagonal.mean())
    order = slice(None) if dependent else diagonal.argsort(descending=True)
    gains = gains_of(inverse_factor(covariance[order][:, order]))
    return min(float(gains.mean()) / mean, 1.0) if mean > 0 else 1.0


def following(weight: Tensor, crossed: Tensor, covariance: Tensor) -> Tensor:
    """Weights with which the outputs for changed inputs are nearest to those for the original ones.

    Least squares, drawn towards the weights as they are (Li et al. 2025, "GPTAQ: Efficient Finetuning-Free Quantization
    for Asymmetric Calibration").

    Args:
        weight: shape (outputs, inputs).
        crossed: mean of original times changed inputs, shape (inputs, inputs).
        covariance: of changed inputs.
    """
    size = len(covariance)
    damping = DAMPING * covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(size, device=covariance.device)
    lower, failed = torch.linalg.cholesky_ex(covariance + damping)
    if failed:
        return weight
    return torch.cholesky_solve((crossed + damping).T @ weight.T, lower).T


def inverse_factor(covariance: Tensor) -> Tensor:
    """The upper Cholesky factor of a damped covariance's inverse: row j tells how later columns make up for j."""
    size = len(covariance)
    mean = covariance.diagonal().mean().clamp(min=1e-12)
    damping = DAMPING
    while True:
        damped = covariance + damping * mean * torch.eye(size, dtype=covariance.dtype, device=covariance.device)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        damping *= 10


def _columns(scaled: Tensor, factor: Tensor, gains: Tensor, price: float, lengths: Tensor) -> Tensor:
    """Round column after column.

    Args:
        scaled: the weights over the step size, shape (outputs, inputs).
        factor: of `inverse_factor`.
        gains: of each column, shape (inputs,).
        price: of a bit, in the unit of gains.
        lengths: bits by magnitude.
    """
    left = scaled.T.contiguous()  # a column's values are next to each other, which is what takes the time
    integers = torch.empty_like(left)
    shares, weights, costs = factor / factor.diagonal()[:, None], gains.tolist(), price * lengths
    for column, values in enumerate(left):
        best = values.round()
        if price:
            best = _cheapest(values, best, weights[column], costs)
        integers[column] = best
        left[column + 1 :].addr_(shares[column, column + 1 :], values - best, alpha=-1)
    return integers.T.contiguous()


def _cheapest(values: Tensor, nearest: Tensor, gain: float, costs: Tensor) -> Tensor:
    """Of the nearest integer, the one next to it towards zero, and zero: that of the least error and rate together."""
    exact, most = values.abs(), nearest.abs()
    candidates = torch.stack([most, (most - 1).clamp(min=0), torch.zeros_like(most)])
    bits = costs[candidates.clamp(max=LARGEST + 1).long()]
    found = torch.addcmul(bits, exact - candidates, exact - candidates, value=gain).argmin(0, keepdim=True)
    return candidates.gather(0, found)[0] * values.sign()
