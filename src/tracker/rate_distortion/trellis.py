"""Dependent (trellis-coded) quantisation of a layer's weights that keeps its outputs, at the least cost of bits.

Two quantisers share a grid: one has its even multiples, the other its odd ones and zero. Which of them gives a weight
follows from the parities of the integers before it, through eight states (ISO/IEC 15938-17, dependent quantisation;
Haase et al. 2021, "Dependent Scalar Quantization for Neural Network Compression"). The best path through the states is
found by Viterbi's algorithm, in which each survivor makes up for its own errors in the columns that follow, as in
`rounding` (Raheli et al. 1995, "Per-survivor processing"). `viterbi` has the search itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracker.rate_distortion.code_length import code_lengths

# The step size of a uniform quantiser, over that of the grid, with as large an error (0.182 squared steps), and with as
# many bits.
UNIFORM, AS_MANY_BITS = 1.48, 1.8


class Path(NamedTuple):
    """What was chosen.

    Attributes:
        levels: integers, shape (outputs, inputs).
        odd: whether each is of the quantiser with odd multiples.
        ends: the state after each row, shape (outputs,).
    """

    levels: Tensor
    odd: Tensor
    ends: Tensor

    def multiples(self) -> Tensor:
        """Of the step size."""
        return (2 * self.levels - self.levels.sign() * self.odd).float()


def best_path(
    scaled: Tensor,
    factor: Tensor,
    gains: Tensor,
    price: float,
    lengths: Tensor,
    starts: Tensor,
    ends: Tensor | None = None,
) -> Path:
    """The integers along the least sum of error and rate, of each row by itself.

    Args:
        scaled: weights over the step size, shape (outputs, inputs).
        factor: of `inverse_factor`.
        gains: of a squared error in each column, shape (inputs,).
        price: of a bit, in the unit of gains.
        lengths: bits by quantiser and magnitude, as of `lengths_of`.
        starts: the state before each row, shape (outputs,).
        ends: after it; None for any.
    """
    from tracker.rate_distortion.viterbi import search

    anywhere = torch.full((len(scaled),), -1)
    levels, odd, after = search(
        _array(scaled),
        _array(factor),
        _array(gains),
        _array(price * lengths),
        _array(starts),
        _array(anywhere if ends is None else ends),
        torch.get_num_threads(),
    )
    found = (torch.from_numpy(values).to(scaled.device) for values in (levels, odd, after))
    return Path(*found)


def chained(ends: Tensor, start: int) -> Tensor:
    """The state before each row, for those after them and the one before the first."""
    return torch.cat([ends.new_full((1,), start), ends[:-1]])


def lengths_of(path: Path) -> Tensor:
    """Bits by quantiser and magnitude, for how often each occurs on a path: shape (2, magnitudes)."""
    return torch.stack([code_lengths(path.levels[~path.odd]), code_lengths(path.levels[path.odd])])


def first_lengths(scaled: Tensor) -> Tensor:
    """As `lengths_of`, before there is a path."""
    return code_lengths((scaled / AS_MANY_BITS).round()).expand(2, -1)


def _array(tensor: Tensor) -> np.ndarray:
    """In one piece: NumPy tells its strides apart, and what is compiled is for rows next to each other."""
    found: np.ndarray = tensor.contiguous().cpu().numpy()
    return found
