"""Which step size each tensor gets: all of them at the same price of a bit.

Least distortion for a rate has the same slope for every tensor (Shoham and Gersho 1988, "Efficient bit allocation for
an arbitrary set of quantizers"): each takes the step size at which distortion + lambda * bits is least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CANDIDATES = 2000  # prices that are looked at


@dataclass(frozen=True)
class Curve:
    """A tensor's rate and distortion by step size.

    Attributes:
        steps: ascending.
        bits: at each.
        distortion: at each.
    """

    steps: np.ndarray
    bits: np.ndarray
    distortion: np.ndarray

    def best(self, price: float) -> tuple[float, float]:
        """The step size at which distortion + price * bits is least, and its bits."""
        place = int(np.argmin(self.distortion + price * self.bits))
        return float(self.steps[place]), float(self.bits[place])


def curve(steps: Sequence[float], sizes: Sequence[float], errors: Sequence[float], sensitivity: float) -> Curve:
    """A curve through measured points.

    Args:
        steps: ascending.
        sizes: bytes at each.
        errors: sum of squared errors at each.
        sensitivity: distortion over squared error.
    """
    # A coder's sizes may rise a little here and there; a larger step is taken to cost no more.
    bits = 8 * np.minimum.accumulate(np.asarray(sizes, float))
    return Curve(np.asarray(steps, float), bits, sensitivity * np.maximum.accumulate(np.asarray(errors, float)))


def allocated(curves: Mapping[str, Curve], price: float) -> tuple[dict[str, float], float]:
    """Step sizes at a price, and all bits.

    Args:
        curves: by tensor name.
        price: lambda, distortion for a bit.
    """
    found = {name: one.best(price) for name, one in curves.items()}
    return {name: step for name, (step, _) in found.items()}, sum(bits for _, bits in found.values())


def prices(curves: Mapping[str, Curve], finest: float) -> list[float]:
    """Prices from where nothing is worth saving to where nothing is worth its bits.

    Args:
        curves: by tensor name.
        finest: the share of all bits that must be saved from one price to the next.
    """
    slopes = []
    for one in curves.values():
        falling, rising = -np.diff(one.bits), np.diff(one.distortion)
        slopes += [(up / down) for up, down in zip(rising, falling, strict=True) if up > 0 and down > 0]
    found, last = [0.0], allocated(curves, 0.0)[1]
    for price in np.geomspace(min(slopes) / 2, max(slopes) * 2, CANDIDATES) if slopes else ():
        bits = allocated(curves, float(price))[1]
        if bits <= last * (1 - finest):
            found.append(float(price))
            last = bits
    return found
