"""When may an evaluation stop, because the drop can no longer be within the tolerance?

A test by betting on samples drawn without replacement (Waudby-Smith and Ramdas 2020, "Confidence sequences for sampling
without replacement", NeurIPS 33; the capital process as in their 2024 "Estimating means of bounded random variables by
betting", JRSS-B 86(1), section 5). It may be looked at after every sample, and wrongly rejects a model whose drop over
all samples is within the tolerance with a probability of at most 1 - confidence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracker.tasks.base import ROUNDING

if TYPE_CHECKING:
    import numpy as np

LARGEST_STAKE = 0.75  # of what could be lost in one step; all of it would end the game


class Rejection:
    """Watches the drop of a model while its samples come in, in random order.

    The capital starts at 1 and is staked, sample after sample, on the mean drop being above the tolerance. Were it not
    above, the capital would be a supermartingale, and so reach 1 / (1 - confidence) with a probability of at most
    1 - confidence (Ville's inequality).
    """

    def __init__(self, tolerance: float, lowest: float, highest: float, count: int, confidence: float) -> None:
        """Begin.

        Args:
            tolerance: the largest mean drop that is accepted.
            lowest: no sample's drop is below.
            highest: no sample's drop is above.
            count: N, of all samples.
            confidence: the probability of not rejecting what the full evaluation would accept, in 0..1.
        """
        self.low, self.width, self.count = lowest, highest - lowest, count
        # The allowance for rounding is that of the decision itself.
        self.accepted = (tolerance + ROUNDING - lowest) / self.width
        self.needed = 1 / (1 - confidence)
        self.capital = 1.0
        self.seen, self.total, self.squares = 0, 0.0, 0.0

    @property
    def drop(self) -> float:
        """The mean drop of the samples so far."""
        return self.low + self.width * self.total / max(1, self.seen)

    def add(self, drops: np.ndarray) -> bool:
        """Take further samples.

        Args:
            drops: anchor's score less the model's (for a metric of which less is better: the other way round), of the
                next samples, shape (n,).

        Returns:
            Whether the model is rejected.
        """
        return any(self._step(float(value)) for value in (drops - self.low) / self.width)

    def _step(self, value: float) -> bool:
        # The mean of what is left, if the mean of all is just acceptable. Below 0: all that is left cannot bring the
        # drop down to the tolerance any more.
        left = self.count - self.seen
        mean = (self.count * self.accepted - self.total) / left
        if mean < 0:
            return True
        if mean > 0:
            self.capital *= 1 + self._stake(mean) * (value - mean)
        self.seen, self.total, self.squares = self.seen + 1, self.total + value, self.squares + value * value
        return self.capital >= self.needed

    def _stake(self, mean: float) -> float:
        """The stake that would have grown the capital fastest so far, by its quadratic approximation ("aGRAPA")."""
        estimate = (0.5 + self.total) / (1 + self.seen)
        variance = max((0.25 + self.squares) / (1 + self.seen) - estimate**2, 1e-6)
        excess = estimate - mean
        return min(max(0.0, excess / (variance + excess**2)), LARGEST_STAKE / mean)
