"""Ranks by cost and by score, as AIMET chooses them; nothing here knows a framework.

Formulas and the greedy search are those of AIMET's cost_calculator.py, comp_ratio_rounder.py and comp_ratio_select.py
(https://github.com/quic/aimet, BSD-3-Clause).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

Metric = Literal["mac", "memory"]
Scores = Mapping[str, Mapping[Decimal, float]]


@dataclass(frozen=True)
class Cost:
    """Values of a weight, and multiply-accumulate operations for one input."""

    memory: int
    mac: int

    def by(self, metric: Metric) -> int:
        """One of the two."""
        return self.mac if metric == "mac" else self.memory


@dataclass(frozen=True)
class Shape:
    """What a layer's costs depend on.

    Attributes:
        kind: ``spatial_svd`` or ``weight_svd``.
        out: channels.
        into: channels.
        kernel: height and width; 1, 1 of a dense layer.
        stride: of rows and columns.
        positions: number of outputs of each channel.
    """

    kind: str
    out: int
    into: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    positions: int = 1

    def cost(self) -> Cost:
        """Of the layer."""
        memory = self.out * self.into * self.kernel[0] * self.kernel[1]
        return Cost(memory, memory * self.positions)

    def at(self, rank: int, counted: bool = False) -> Cost:
        """Of the pair.

        Args:
            rank: channels between the two.
            counted: as AIMET counts the pair in its statistics. In its search it multiplies the first layer of weight
                SVD by the strides, in its statistics not.
        """
        height, width = self.kernel
        if self.kind == "spatial_svd":
            first, second, more = self.into * rank * height, rank * self.out * width, self.stride[1]
        else:
            first, second = self.into * rank, rank * self.out * height * width
            more = 1 if counted else self.stride[0] * self.stride[1]
        return Cost(first + second, (first * more + second) * self.positions)

    def largest(self) -> int:
        """The largest rank that AIMET tries."""
        if self.kind == "spatial_svd":
            return min(self.into * self.kernel[0], self.out * self.kernel[1])
        return self.into

    def rank(self, ratio: Decimal, metric: Metric) -> int:
        """The largest rank whose pair costs no more than the ratio of the layer; at least 1."""
        target = self.cost().by(metric) * ratio
        rank = self.largest()
        while rank > 0 and self.at(rank).by(metric) > target:
            rank -= 1
        return max(rank, 1)

    def rounded(self, ratio: Decimal, metric: Metric, multiplicity: int) -> Decimal:
        """The ratio that gives a rank which is a multiple, rounded up."""
        if multiplicity == 1:
            return ratio
        rank, largest = self.rank(ratio, metric), self.rank(Decimal(1), metric)
        multiple = min(math.ceil(rank / multiplicity) * multiplicity, largest)
        return ratio if multiple == rank else Decimal(self.at(multiple).by(metric)) / Decimal(self.cost().by(metric))

    def saves(self, rank: int, metric: Metric) -> bool:
        """Whether the pair costs less than the layer."""
        return self.at(rank).by(metric) < self.cost().by(metric)


def greedy(
    scores: Scores,
    shapes: Mapping[str, Shape],
    rest: int,
    target: float,
    metric: Metric,
    rounding: Callable[[str, Decimal], Decimal],
) -> dict[str, Decimal | None]:
    """Ratios by layer: the highest score, equal for all layers, at which the model's cost meets the target.

    Args:
        scores: by layer and ratio: the model's, with that layer alone decomposed.
        shapes: of these layers.
        rest: cost of all other layers.
        target: cost of the model after over before.
        metric: of the costs.
        rounding: a layer's ratio, rounded.

    Returns:
        None for layers that stay as they are.
    """
    rounded = {
        name: {rounding(name, ratio): _at(rounding(name, ratio), row) for ratio in row} for name, row in scores.items()
    }
    every = [score for row in rounded.values() for score in row.values()]
    low, high = min(every), max(every)
    close = (high - low) * 0.0001
    whole = rest + sum(shape.cost().by(metric) for shape in shapes.values())

    def chosen(score: float) -> dict[str, Decimal | None]:
        return {name: _ratio(row, score) for name, row in rounded.items()}

    def reached(ratios: Mapping[str, Decimal | None]) -> float:
        costs = (
            shapes[name].cost() if ratio is None else shapes[name].at(shapes[name].rank(ratio, metric))
            for name, ratio in ratios.items()
        )
        return (rest + sum(cost.by(metric) for cost in costs)) / whole

    while True:
        middle = (low + high) / 2
        ratio = reached(chosen(middle))
        if math.isclose(low, high, rel_tol=1e-9, abs_tol=close):
            return chosen(low)
        if math.isclose(ratio, target, rel_tol=1e-9, abs_tol=0.001):
            return chosen(middle)
        low, high = (low, middle) if ratio > target else (middle, high)


def _ratio(row: Mapping[Decimal, float], score: float) -> Decimal | None:
    """The smallest ratio down to which a layer keeps a score; None where none does."""
    ratios = sorted(row, reverse=True)
    if score > row[ratios[0]]:
        return None
    if score < row[ratios[-1]]:
        return ratios[-1]
    for above, ratio in itertools.pairwise(ratios):
        if score > row[ratio]:
            return above
    return None


def _at(ratio: Decimal, row: Mapping[Decimal, float]) -> float:
    """A score between those that were measured."""
    if ratio in row:
        return row[ratio]
    ratios = sorted(row)
    place = next((index for index, known in enumerate(ratios) if ratio < known), len(ratios) - 1)
    if place == len(ratios) - 1:
        return row[ratios[-1]]
    right, left = ratios[place], ratios[place - 1]
    slope = (row[right] - row[left]) / (float(right) - float(left))
    return (float(ratio) - float(right)) * slope + row[right]


def monotonic(row: Mapping[Decimal, float]) -> dict[Decimal, float]:
    """Scores fitted by a polynomial of degree 7 that rises from 0 to 0.98, as AIMET fits them."""
    import numpy as np
    from scipy.optimize import minimize

    x, y = np.array([float(ratio) for ratio in row]), np.array(list(row.values()))
    powers = np.arange(8)
    phi = x[:, None] ** powers
    between = np.arange(0, 0.98, 0.02)[:, None]
    slopes = powers * between ** np.maximum(powers - 1, 0)
    found = minimize(
        lambda c: float(((phi @ c - y) ** 2).sum()),
        np.array([y.mean(), *[0.0] * 7]),
        jac=lambda c: 2 * phi.T @ (phi @ c - y),
        constraints={"type": "ineq", "fun": lambda c: slopes @ c, "jac": lambda _: slopes},
        method="SLSQP",
        options={"maxiter": 500},
    )
    return dict(zip(row, map(float, phi @ found.x), strict=True))
