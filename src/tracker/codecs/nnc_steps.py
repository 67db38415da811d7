"""Which quantisation parameter (qp) each tensor gets, as NNCodec takes it: whole numbers at one density.

A finer density has all steps of a coarser one: delta(qp, d) = delta(2 qp, d + 1). So a qp that lies between two whole
ones is a whole one at a finer density, and the standard's finest, 4, has four of them to each step of density 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FINEST = 4  # qp_density is coded with 3 bits, and 4 is the most that the standard allows


@dataclass(frozen=True)
class Steps:
    """The qps of a model.

    Attributes:
        density: d; 2^d steps of qp halve or double the step size.
        qp: of weights (tensors of two dimensions or more).
        nonweight: of all others; None for NNCodec's own rule.
        per_tensor: of single tensors, before these two.
    """

    density: int
    qp: int
    nonweight: int | None
    per_tensor: dict[str, int]

    def of(self, name: str, weight: bool) -> int:
        """A tensor's qp."""
        other = self.qp - 2 ** (self.density + 1) if self.nonweight is None else self.nonweight
        return self.per_tensor.get(name, self.qp if weight else other)


def resolve(
    density: int,
    qp: float,
    nonweight: int | None,
    per_tensor: Mapping[str, int],
    slopes: tuple[float, float],
    weights: Sequence[str],
) -> Steps:
    """Whole qps, at the coarsest density that has all of them.

    Args:
        density: in which the other values are given.
        qp: of weights; between two whole ones, if need be.
        nonweight: of all other tensors; None for NNCodec's own rule.
        per_tensor: of single tensors.
        slopes: added to the qp of the first and of the last weight, and less and less towards the middle one.
        weights: names of the weights, in the model's order.

    Raises:
        ValueError: a qp lies between two steps of the finest density.
    """
    early, late = slopes
    finer = FINEST if early or late else density
    while qp * 2 ** (finer - density) % 1:
        finer += 1
        if finer > FINEST:
            raise ValueError(
                f"qp={qp} lies between two steps: with qp_density={density} it is a multiple of "
                f"1/{2 ** (FINEST - density)}"
            )
    scale = 2 ** (finer - density)
    exact = {name: value * scale for name, value in per_tensor.items()}
    if early or late:
        last = max(1, len(weights) - 1)
        sloped = {name: qp + _slope(index / last, early, late) for index, name in enumerate(weights)}
        exact = {name: round(value * scale) for name, value in sloped.items()} | exact
    return Steps(finer, round(qp * scale), None if nonweight is None else nonweight * scale, exact)


def step_size(qp: int, density: int) -> float:
    """NNC's step size: delta = (2^d + qp mod 2^d) * 2^(floor(qp / 2^d) - d)."""
    k = 1 << density
    return (k + qp % k) * 2.0 ** (qp // k - density)


def nearest_qp(size: float, density: int) -> int:
    """The qp whose step size is nearest to one, by their ratio."""
    octave = math.floor(math.log2(size)) << density
    near = range(octave, octave + (2 << density))
    return min(near, key=lambda qp: abs(math.log(step_size(qp, density) / size)))


def exact_qp(size: float, density: int) -> tuple[int, int] | None:
    """The qp that has a step size, and the coarsest density from the given one on that has it; None where none has."""
    for finer in range(density, FINEST + 1):
        qp = nearest_qp(size, finer)
        if math.isclose(step_size(qp, finer), size):
            return qp, finer
    return None


def _slope(depth: float, early: float, late: float) -> float:
    """What is added at a depth of 0 (the first weight) to 1 (the last one)."""
    return early * max(0.0, 1 - 2 * depth) + late * max(0.0, 2 * depth - 1)
