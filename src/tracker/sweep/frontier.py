"""How much smaller a proposal can be expected to make the best bitstream, from what the finished trials tell.

Constrained expected improvement (Gardner et al. 2014, "Bayesian optimization with inequality constraints") under two
linear models: of the logarithm of the size, and of the drop in tolerances, on the scale of its inverse hyperbolic sine.
Near the best trial both are nearly linear in the codec's options, what remains is noise: two codings of about the same
size differ in their drop by chance. So the models look at the trials of about the best one's size, and are as sure as
these let them be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracker.sweep.space import Parameter

if TYPE_CHECKING:
    import numpy as np

    from tracker.sweep.history import Past

FEWEST = 8  # trials with a size, for a model of it
MOST = 200  # trials, the most recent ones
NEAR = 0.25  # standard deviation, in the logarithm of the size, of what counts as about the best one's size
MARGIN = 0.003  # of the size, by which a proposal must be smaller as far as the model can tell
EVEN = 20.0  # weight of the size among the other features of the drop, of which it explains the most
DOUBT = 0.3, 2.0  # standard deviation of the drop before any trial tells it, and how many trials that is worth


class Frontier:
    """What is known about sizes and drops near the smallest transparent bitstream."""

    def __init__(self, space: Mapping[str, Parameter], past: Sequence[Past], best: Past, tolerance: float) -> None:
        """Fit both models.

        Args:
            space: what is searched.
            past: finished trials.
            best: the smallest feasible one.
            tolerance: of the drop.
        """
        import numpy as np

        self.space, self.tolerance = space, tolerance
        known = [one for one in past if one.value is not None and one.value > 0 and set(one.params) == set(space)]
        known = known[-MOST:]
        assert best.value is not None
        self.ready, self.log_best = len(known) >= FEWEST, math.log(best.value)
        if not self.ready:
            return
        rows = np.array([self._features(one.params) for one in known])
        self.mean, self.deviation = rows.mean(0), rows.std(0)
        self.deviation[self.deviation == 0] = 1.0
        sizes = np.log([float(one.value or 1.0) for one in known])
        weights = np.exp(-0.5 * ((sizes - self.log_best) / NEAR) ** 2) + 1e-4
        self.size = _fitted(self._scaled(rows), sizes, weights, 0.01)
        seen = [index for index, one in enumerate(known) if one.outcome.violation is not None]
        self.scale = tolerance or float(np.median([abs(known[index].outcome.violation or 1) for index in seen] or [1]))
        drops = np.array([((known[index].outcome.violation or 0.0) + tolerance) / self.scale for index in seen])
        self.drop = None
        if seen:
            columns = self._with_size(self._scaled(rows[seen]), sizes[seen])
            self.drop = _fitted(columns, np.arcsinh(drops), weights[seen], 1.0)
            self.doubt = self._doubt(columns, np.arcsinh(drops), weights[seen])

    def gains(self, points: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The share of the best size that each point can be expected to save; 0 where it is not held to be smaller."""
        import numpy as np
        from scipy.stats import norm

        rows = self._scaled(np.array([self._features(point) for point in points]))
        sizes = self.size.predict(rows)
        gains = np.where(sizes < self.log_best - MARGIN, 1 - np.exp(sizes - self.log_best), 0.0)
        if self.drop is None:
            return gains
        limit = math.asinh(self.tolerance / self.scale)
        return gains * norm.cdf((limit - self.drop.predict(self._with_size(rows, sizes))) / self.doubt)

    def _doubt(self, columns: np.ndarray, drops: np.ndarray, weights: np.ndarray) -> float:
        """Standard deviation of a drop around the model's."""
        assert self.drop is not None
        before, worth = DOUBT
        squares = (weights * (drops - self.drop.predict(columns)) ** 2).sum() + worth * before**2
        return float(math.sqrt(squares / (weights.sum() + worth)))

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        return (rows - self.mean) / self.deviation

    def _with_size(self, rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        import numpy as np

        return np.column_stack([rows, EVEN * (sizes - self.log_best)])

    def _features(self, params: Mapping[str, Any]) -> list[float]:
        """Numbers as they are (or their logarithms), choices as ones and zeros."""
        from optuna.distributions import CategoricalDistribution

        row: list[float] = []
        for key, parameter in self.space.items():
            distribution = parameter.distribution
            if isinstance(distribution, CategoricalDistribution):
                row += [float(params[key] == choice) for choice in distribution.choices]
            else:
                row.append(math.log(params[key]) if getattr(distribution, "log", False) else float(params[key]))
        return row


def _fitted(rows: np.ndarray, values: np.ndarray, weights: np.ndarray, alpha: float) -> Any:
    from sklearn.linear_model import Ridge

    return Ridge(alpha=alpha).fit(rows, values, sample_weight=weights)
