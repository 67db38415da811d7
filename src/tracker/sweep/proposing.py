"""A sampler's proposals, moved to where they can still be the best.

The size of a bitstream is a smooth function of the codec's options, and known for every trial that was encoded. A model
of it tells beforehand which proposals cannot be smaller than the best one: these are moved along the parameter with
which the rate falls, to the finest value that the model holds to be smaller. And what was tried is not proposed again.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.samplers import BaseSampler

from tracker.sweep.history import History, Past, key_of
from tracker.sweep.space import Parameter, values_of

if TYPE_CHECKING:
    import numpy as np
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState

log = logging.getLogger(__name__)
ATTEMPTS = 10  # at a proposal that was not tried yet
FEWEST = 8  # trials with a size, for a model of it
MARGIN = 0.003  # of the size, by which a proposal must be smaller as far as the model can tell
MOST_FITTED = 200  # trials, the most recent ones


class Proposing(BaseSampler):
    """Optuna's sampler for one trial, and what the study knows."""

    def __init__(
        self,
        build: Callable[[int], BaseSampler],
        space: Mapping[str, Parameter],
        along: str | None,
        history: History,
        begun: set[str],
    ) -> None:
        """Prepare.

        Args:
            build: the sampler, seeded for the n-th attempt at this trial.
            space: what is searched.
            along: the parameter with which the rate falls.
            history: of the trials that have ended.
            begun: keys of the trials that have not.
        """
        self.build, self.space, self.along, self.history, self.begun = build, space, along, history, begun
        self.inner = build(0)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The sampler's."""
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A proposal that was not tried before, moved to where it can be the best."""
        proposal: dict[str, Any] = {}
        for attempt in range(ATTEMPTS):
            if attempt:
                self.inner = self.build(attempt)
            proposal = self._moved(self.inner.sample_relative(study, trial, search_space))
            if not proposal or not self._tried(proposal):
                break
        return proposal

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The sampler's."""
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """The sampler's."""
        self.inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """The sampler's."""
        self.inner.after_trial(study, trial, state, values)

    def _tried(self, proposal: Mapping[str, Any]) -> bool:
        key = key_of(proposal)
        return key in self.history.by_params or key in self.begun

    def _moved(self, proposal: dict[str, Any]) -> dict[str, Any]:
        best = self.history.best()
        if best is None or best.value is None or self.along not in proposal or len(proposal) < len(self.space):
            return proposal
        values = values_of(self.space[self.along].distribution, 33)
        sizes = self._sizes([{**proposal, self.along: value} for value in values])
        if sizes is None:
            return proposal
        own = sum(value < proposal[self.along] - 1e-9 for value in values)
        limit = math.log(best.value * (1 - MARGIN))
        for value, size in list(zip(values, sizes, strict=True))[own:]:
            if size < limit and not self._tried({**proposal, self.along: value}):
                return {**proposal, self.along: value}
        return proposal

    def _sizes(self, points: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
        """The logarithms of the sizes of some points, as the model has them; None where too few trials make one."""
        import numpy as np
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import PolynomialFeatures, StandardScaler

        known = [past for past in self.history.past.values() if past.value and set(past.params) == set(self.space)]
        known = known[-MOST_FITTED:]
        if len(known) < FEWEST:
            return None
        model = make_pipeline(StandardScaler(), PolynomialFeatures(2), Ridge(alpha=0.01))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parameters that have not varied yet
            model.fit([self._features(past.params) for past in known], [math.log(_size(past)) for past in known])
            return np.asarray(model.predict([self._features(point) for point in points]))

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


def _size(past: Past) -> float:
    assert past.value is not None
    return past.value
