"""Viterbi's search behind `trellis`, row by row, as machine code by Numba (https://numba.pydata.org), on all cores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from joblib import Parallel, delayed

from tracker.cache import keep_libraries_tidy

keep_libraries_tidy()  # before Numba reads where it may write

from numba import njit  # noqa: E402

if TYPE_CHECKING:
    from numpy.typing import NDArray

STATES = 8
NEXT = ((0, 2), (7, 5), (1, 3), (6, 4), (2, 0), (5, 7), (3, 1), (4, 6))  # by state and by the integer's parity
BEFORE = np.array(
    [[[s, p] for s, pair in enumerate(NEXT) for p in (0, 1) if pair[p] == after] for after in range(STATES)]
)
BLOCK = 32  # columns, after which those beyond are changed
EACH = 1 << 16  # values, from which rows are divided among cores


def search(
    scaled: NDArray[np.float32],
    factor: NDArray[np.float32],
    gains: NDArray[np.float32],
    costs: NDArray[np.float32],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    threads: int,
) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]:
    """The best path of each row by itself.

    Args:
        scaled: weights over the step size, shape (rows, columns).
        factor: how errors are made up for by the columns that follow, upper triangular, shape (columns, columns).
        gains: of a squared error in each column, shape (columns,).
        costs: by quantiser and magnitude, shape (2, magnitudes); the last one stands for all that are larger.
        starts: the state before each row.
        ends: after it; -1 for any.
        threads: that work side by side.

    Returns:
        Integers and whether each is of the quantiser with odd multiples, shape (rows, columns); the state after each
        row.
    """
    rows = len(scaled)
    levels, odd = np.empty(scaled.shape, np.int32), np.empty(scaled.shape, np.bool_)
    ends = ends.copy()
    parts = np.array_split(np.arange(rows), max(1, min(threads, rows, scaled.size // EACH)))
    each = [slice(part[0], part[-1] + 1) for part in parts if len(part)]
    Parallel(n_jobs=len(each) or 1, prefer="threads")(
        delayed(_rows)(scaled[some], factor, gains, costs, starts[some], ends[some], BEFORE, levels[some], odd[some])
        for some in each
    )
    return levels, odd, ends


@njit(nogil=True, cache=True)
def _rows(
    scaled: Any, factor: Any, gains: Any, costs: Any, starts: Any, ends: Any, before: Any, levels: Any, odd: Any
) -> None:
    """See `search`; the last two and `ends` are filled."""
    rows, columns = scaled.shape
    left, other = np.empty((STATES, columns), np.float32), np.empty((STATES, columns), np.float32)
    near, near_other = np.empty((STATES, BLOCK), np.float32), np.empty((STATES, BLOCK), np.float32)
    errors, errors_other = np.empty((STATES, BLOCK), np.float32), np.empty((STATES, BLOCK), np.float32)
    cost, cost_other = np.empty(STATES), np.empty(STATES)
    found, least = np.empty((STATES, 2), np.int32), np.empty((STATES, 2))
    origin, origin_other = np.empty(STATES, np.int64), np.empty(STATES, np.int64)
    chosen, sources = np.empty((columns, STATES), np.int32), np.empty((columns, STATES), np.uint8)
    for row in range(rows):
        for state in range(STATES):
            cost[state] = 0.0 if state == starts[row] else np.inf
            left[state] = scaled[row]
        for begin in range(0, columns, BLOCK):
            width = min(BLOCK, columns - begin)
            for state in range(STATES):
                origin[state] = state
                near[state, :width] = left[state, begin : begin + width]
            for at in range(width):
                column = begin + at
                for state in range(STATES):
                    _candidates(near[state, at], gains[column], costs[state & 1], state & 1, found[state], least[state])
                for after in range(STATES):
                    one, two = before[after, 0], before[after, 1]
                    if cost[two[0]] + least[two[0], two[1]] < cost[one[0]] + least[one[0], one[1]]:
                        one = two
                    state, level = one[0], found[one[0], one[1]]
                    cost_other[after], origin_other[after] = cost[state] + least[state, one[1]], origin[state]
                    chosen[column, after], sources[column, after] = level, state
                    multiple = 2 * level - np.sign(level) * (state & 1)
                    error = np.float32((near[state, at] - multiple) / factor[column, column])
                    for later in range(at):
                        errors_other[after, later] = errors[state, later]
                    errors_other[after, at] = error
                    given, following, shares = near[state], near_other[after], factor[column, begin : begin + width]
                    for later in range(at + 1, width):
                        following[later] = given[later] - error * shares[later]
                near, near_other = near_other, near
                errors, errors_other = errors_other, errors
                cost, cost_other = cost_other, cost
                origin, origin_other = origin_other, origin
            end = begin + width
            for state in range(STATES):
                _make_up(left[origin[state]], errors[state], factor, begin, end, other[state])
            left, other = other, left
        last = ends[row] if ends[row] >= 0 else np.argmin(cost)
        ends[row] = last
        for column in range(columns - 1, -1, -1):
            levels[row, column] = chosen[column, last]
            last = sources[column, last]
            odd[row, column] = last & 1


@njit(nogil=True, cache=True)
def _make_up(given: Any, errors: Any, factor: Any, begin: Any, end: Any, other: Any) -> None:
    """What is left of a row beyond a block, in which a survivor made some errors: the last one is filled."""
    other[end:] = given[end:]
    rest = other[end:]
    for at in range(end - begin):
        error, shares = errors[at], factor[begin + at, end:]  # a row's part: of a square's, strides are not known
        for later in range(len(rest)):
            rest[later] -= error * shares[later]


@njit(nogil=True, cache=True)
def _candidates(value: Any, gain: Any, costs: Any, odd: Any, found: Any, least: Any) -> None:
    """The best integers of each parity, and what they cost.

    Looked at are the nearest one, the next one on the value's other side, the one nearer to zero, and zero.
    """
    least[0] = least[1] = np.inf
    found[0] = found[1] = 0
    nearest = int(np.rint((value + np.sign(value) * odd) / 2))
    gap = value - (2 * nearest - np.sign(nearest) * odd)
    for level in (nearest, nearest + int(np.sign(gap)), nearest - int(np.sign(nearest)), 0):
        error = value - (2 * level - np.sign(level) * odd)
        price = gain * error * error + costs[min(abs(level), len(costs) - 1)]
        parity = level & 1
        if price < least[parity]:
            least[parity], found[parity] = price, level
