"""Dependent (trellis-coded) quantisation of a layer's weights that keeps its outputs, at the least cost of bits.

Two quantisers share a grid: one has its even multiples, the other its odd ones and zero. Which of them gives a weight
follows from the parities of the integers before it, through eight states (ISO/IEC 15938-17, dependent quantisation;
Haase et al. 2021, "Dependent Scalar Quantization for Neural Network Compression"). The best path through the states is
found by Viterbi's algorithm, in which each survivor makes up for its own errors in the columns that follow, as in
`rounding` (Raheli et al. 1995, "Per-survivor processing").
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tracker.rate_distortion.code_length import LARGEST, code_lengths

STATES = 8
NEXT = ((0, 2), (7, 5), (1, 3), (6, 4), (2, 0), (5, 7), (3, 1), (4, 6))  # by state and by the integer's parity
BLOCK = 32  # columns, after which those beyond are changed
ELEMENTS = 1 << 23  # of all survivors, in rows that are worked on together
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
        return _multiples(self.levels, self.odd)


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
    rows = max(1, ELEMENTS // (STATES * scaled.shape[1]))
    trellis = _Trellis(lengths, price)
    parts = []
    for begin in range(0, len(scaled), rows):
        some = slice(begin, begin + rows)
        levels, sources, cost = _search(trellis, scaled[some], factor, gains, starts[some])
        last = cost.argmin(1) if ends is None else ends[some]
        parts.append(Path(*_traced(levels, sources, last), last))
    return Path(*(torch.cat(found) for found in zip(*parts, strict=True)))


def chained(ends: Tensor, start: int) -> Tensor:
    """The state before each row, for those after them and the one before the first."""
    return torch.cat([ends.new_full((1,), start), ends[:-1]])


def lengths_of(path: Path) -> Tensor:
    """Bits by quantiser and magnitude, for how often each occurs on a path: shape (2, magnitudes)."""
    return torch.stack([code_lengths(path.levels[~path.odd]), code_lengths(path.levels[path.odd])])


def first_lengths(scaled: Tensor) -> Tensor:
    """As `lengths_of`, before there is a path."""
    return code_lengths((scaled / AS_MANY_BITS).round()).expand(2, -1)


def _multiples(levels: Tensor, odd: Tensor) -> Tensor:
    return 2 * levels - levels.sign() * odd


class _Trellis:
    """What does not change from column to column."""

    def __init__(self, lengths: Tensor, price: float) -> None:
        device = lengths.device
        into: list[list[tuple[int, int]]] = [[] for _ in range(STATES)]
        for state, following in enumerate(NEXT):
            for parity, after in enumerate(following):
                into[after].append((state, parity))
        self.before = torch.tensor([[state for state, _ in pair] for pair in into], device=device)
        self.parity = torch.tensor([[parity for _, parity in pair] for pair in into], device=device)
        self.odd = (torch.arange(STATES, device=device) & 1).float()
        self.costs = price * lengths[self.odd.long()].flatten()
        self.starts = (torch.arange(STATES, device=device) * lengths.shape[1])[None, :, None]

    def candidates(self, values: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        """For each survivor, the best integers of each parity, and what they cost: shapes (rows, states, 2)."""
        nearest = ((values + values.sign() * self.odd) / 2).round()
        beside = nearest + (values - _multiples(nearest, self.odd)).sign()
        found = torch.stack([nearest, beside, nearest - nearest.sign(), torch.zeros_like(nearest)], -1)
        errors = (values[..., None] - _multiples(found, self.odd[:, None])).square()
        magnitudes = found.abs()
        costs = gain * errors + self.costs.take(self.starts + magnitudes.clamp(max=LARGEST + 1).long())
        odd = magnitudes % 2 == 1
        each = torch.stack([costs.masked_fill(odd, torch.inf), costs.masked_fill(~odd, torch.inf)], -2)
        least, which = each.min(-1)
        return found.gather(-1, which), least


def _search(
    trellis: _Trellis, scaled: Tensor, factor: Tensor, gains: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The survivors of some rows.

    Returns:
        By state, the integers and the states before them, shapes (inputs, outputs, states), and the costs of all.
    """
    rows, columns = scaled.shape
    cost = torch.full((rows, STATES), torch.inf, device=scaled.device)
    cost.scatter_(1, starts[:, None], 0.0)
    levels = torch.empty(columns, rows, STATES, dtype=torch.int32, device=scaled.device)
    sources = torch.empty(columns, rows, STATES, dtype=torch.uint8, device=scaled.device)
    left = scaled[:, None].expand(rows, STATES, columns).clone()
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        near, errors = left[:, :, begin:end].clone(), left.new_zeros(rows, STATES, end - begin)
        origin = torch.arange(STATES, device=scaled.device).expand(rows, STATES)
        for column in range(begin, end):
            at = column - begin
            found, least = trellis.candidates(near[:, :, at], gains[column])
            sums = (cost[..., None] + least)[:, trellis.before, trellis.parity]
            cost, which = sums.min(-1)
            source = trellis.before.expand(rows, STATES, 2).gather(-1, which[..., None])[..., 0]
            parity = trellis.parity.expand(rows, STATES, 2).gather(-1, which[..., None])[..., 0]
            level = found.flatten(1).gather(1, 2 * source + parity)
            levels[column], sources[column] = level, source
            origin = origin.gather(1, source)
            survivors = source[..., None].expand(-1, -1, end - begin)
            near, errors = near.gather(1, survivors), errors.gather(1, survivors)
            error = (near[:, :, at] - _multiples(level, trellis.odd[source])) / factor[column, column]
            errors[:, :, at] = error
            near[:, :, at + 1 :] -= error[..., None] * factor[column, column + 1 : end]
        if end < columns:
            rest = left[:, :, end:].gather(1, origin[..., None].expand(-1, -1, columns - end))
            left[:, :, end:] = rest - errors @ factor[begin:end, end:]
    return levels, sources, cost


def _traced(levels: Tensor, sources: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The integers on the way to a state of each row, and the parities of their states."""
    columns, rows, _ = levels.shape
    every = torch.arange(rows, device=levels.device)
    chosen = torch.empty(rows, columns, device=levels.device)
    odd = torch.empty(rows, columns, dtype=torch.bool, device=levels.device)
    for column in range(columns - 1, -1, -1):
        chosen[:, column] = levels[column, every, state].float()
        state = sources[column, every, state].long()
        odd[:, column] = (state & 1).bool()
    return chosen, odd
