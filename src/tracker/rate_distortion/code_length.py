"""How many bits integers take, as a loss: the code lengths of an adaptive coder, between integers by interpolation."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 255  # magnitudes above share the last code length's slope
FARTHEST = 60  # magnitudes beyond the largest one, from where lengths grow no more
SMOOTHING = 0.3  # counts that a magnitude has though it never occurs, less for larger ones


class _Round(torch.autograd.Function):
    """Rounding to the nearest integer, through which gradients pass as they are."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        """See the class."""
        return values.round()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        """See the class."""
        return gradient


def quantised(values: Tensor, step: Tensor | float) -> tuple[Tensor, Tensor]:
    """Values on the grid of a step size, and the integers that they are.

    Gradients reach the values as they are, and the step as in Esser et al. 2020.
    """
    integers: Tensor = _Round.apply(values / step)
    return integers * step, integers.detach()


def code_lengths(integers: Tensor) -> Tensor:
    """Bits by magnitude, with the sign: the ideal code for how often each occurs in a tensor.

    Returns:
        Shape (LARGEST + 2,), never falling.
    """
    magnitudes = integers.abs().flatten().clamp(max=LARGEST + 1).long()
    counts = torch.bincount(magnitudes, minlength=LARGEST + 2).float()
    index = torch.arange(LARGEST + 2, device=counts.device)
    # What has not occurred may: its length grows by one bit with each magnitude, as a unary code's does.
    largest = int(magnitudes.max()) if len(magnitudes) else 0
    floor = SMOOTHING * torch.exp2(-(index - largest).clamp(0, FARTHEST).float())
    chances = (counts + floor) / (counts + floor).sum()
    lengths = -torch.log2(chances)
    lengths[1:] += 1.0
    return torch.cummax(lengths, 0).values


def bits_of(scaled: Tensor, lengths: Tensor, rows: Tensor | None = None) -> Tensor:
    """The bits of a tensor, or of several as one vector, differentiable by the values.

    Args:
        scaled: values over the step size.
        lengths: of `code_lengths`; or those of several tensors, as rows.
        rows: for each value, whose code lengths it has.
    """
    magnitudes = scaled.abs().clamp(max=LARGEST + 0.999)
    below = magnitudes.detach().floor().long()
    at = below if rows is None else below + rows * lengths.shape[-1]
    low, high = lengths.take(at), lengths.take(at + 1)
    return (low + (high - low) * (magnitudes - below)).sum()
