"""A sampler's proposals: none that was tried, and moved to where they can still be the best.

A sampler learns slowly that size and drop both follow one parameter, the one with which the rate falls: most of what it
proposes is either no smaller than the best or far from transparent. So a proposal's other values are kept, and that one
is chosen for the largest expected gain. And what was tried is not proposed again, as long as there is anything else.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.samplers import BaseSampler

from tracker.sweep.distributions import values_of
from tracker.sweep.frontier import Frontier
from tracker.sweep.history import FIXED, History, key_of
from tracker.sweep.planner import combinations
from tracker.sweep.samplers import BruteForce
from tracker.sweep.space import Parameter, active, in_order

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState

CANDIDATES = 4  # of the sampler, the best of which is taken
MANY = 300  # trials, above which the sampler is asked once: it looks through all of them
VALUES = 33  # of a continuous parameter that are looked at
BEST = 25  # trials that a sampler sees however long ago they were: as many as TPE takes for good
FEW = 10_000  # points of a space, all of which can be gone through for one that was not tried


class Latest:
    """A study that shows a sampler some of its trials only, since what it does with each takes time."""

    def __init__(self, study: Study, numbers: Collection[int]) -> None:
        self.study, self.numbers = study, numbers

    def __getattr__(self, name: str) -> Any:
        return getattr(self.study, name)

    def _get_trials(self, *args: Any, **keywords: Any) -> list[FrozenTrial]:
        return [trial for trial in self.study._get_trials(*args, **keywords) if trial.number in self.numbers]


class Proposing(BaseSampler):
    """Optuna's sampler for one trial, and what the study knows."""

    def __init__(
        self,
        build: Callable[[int], BaseSampler],
        space: Mapping[str, Parameter],
        along: str | None,
        history: History,
        tolerance: float,
        attempts: int,
        remembers: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            build: the sampler, seeded for the n-th attempt at this trial.
            space: what is searched.
            along: the parameter with which the rate falls; None where proposals are not to be moved.
            history: of the trials that have ended.
            tolerance: of the drop.
            attempts: at a proposal that was not tried yet.
            remembers: how many trials, the latest ones, the sampler looks at besides the best; None: all.
        """
        self.build, self.space, self.along, self.history = build, space, along, history
        self.tolerance, self.attempts, self.remembers = tolerance, attempts, remembers
        self.inner = build(0)
        self.together: dict[str, BaseDistribution] = {}  # what the sampler draws at once

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters: what the sampler draws one by one is drawn beforehand, to see whether it was tried."""
        if FIXED in trial.system_attrs:  # enqueued: its values are known
            return {}
        together = self.inner.infer_relative_search_space(study, trial)
        # Those with a condition come and go, and CMA-ES fails when its space changes.
        self.together = {key: one for key, one in together.items() if self.space[key].when is None}
        return {key: parameter.distribution for key, parameter in self.space.items()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A proposal that was not tried before, moved to where it can be the best."""
        if not search_space:
            return {}
        study = self._seen(study)
        frontier = self._frontier()
        wanted = 1 if frontier is None or len(self.history.past) > MANY else CANDIDATES
        proposals: list[dict[str, Any]] = []
        for attempt in range(self.attempts):
            if attempt:
                self.inner = self.build(attempt)
            proposal = self._drawn(study, trial)
            if frontier is not None or not self._tried(proposal):
                proposals.append(proposal)
            if len(proposals) == wanted:
                break
        if frontier is None or not proposals:
            return proposals[0] if proposals else self._untried() or proposal
        return self._moved(proposals, frontier)

    def _drawn(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """What the sampler proposes for every parameter that this trial has."""
        together = self.inner.sample_relative(study, trial, self.together)
        drawn: dict[str, Any] = {}
        for key, parameter in in_order(self.space):
            if not active(parameter, drawn):
                continue
            if key in together:
                drawn[key] = together[key]
            else:
                drawn[key] = self.inner.sample_independent(study, trial, key, parameter.distribution)
        return drawn

    def _seen(self, study: Study) -> Study:
        """The study as the sampler sees it."""
        past = self.history.past
        if self.remembers is None or len(past) <= self.remembers:
            return study
        good = [one for one in past.values() if one.feasible and one.value is not None]
        best = heapq.nsmallest(BEST, good, key=lambda one: self.history.sign * (one.value or 0.0))
        numbers = {*sorted(past)[-self.remembers :], *(one.number for one in best)}
        return Latest(study, numbers)  # type: ignore[return-value]

    def _untried(self) -> dict[str, Any] | None:
        """Any point of a small space that was not tried; None where there is none, or the space is large."""
        if combinations(self.space) > FEW:
            return None
        points = BruteForce().plan(len(self.history.past), self.space) or []
        return next((point for point in points if not self._tried(point)), None)

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
        return self.history.tried(key_of(proposal))

    def _frontier(self) -> Frontier | None:
        """The models that tell where to; None where nothing is to be moved, or too few trials make them."""
        best = self.history.best()
        if self.along not in self.space or best is None or best.value is None or best.value <= 0:
            return None
        frontier = Frontier(self.space, list(self.history.past.values()), best, self.tolerance)
        return frontier if frontier.ready else None

    def _moved(self, proposals: Sequence[dict[str, Any]], frontier: Frontier) -> dict[str, Any]:
        """The point with the largest expected gain, of all that differ from a proposal along the one parameter."""
        import numpy as np

        assert self.along is not None
        whole = [proposal for proposal in proposals if len(proposal) == len(self.space)]
        values = values_of(self.space[self.along].distribution, VALUES)
        points = [{**proposal, self.along: value} for proposal in whole for value in values]
        gains = frontier.gains(points) if points else np.zeros(0)
        for index in np.argsort(-gains):
            if gains[index] <= 0:
                break
            if not self._tried(points[index]):
                return points[index]
        fresh = [proposal for proposal in proposals if not self._tried(proposal)]
        return (fresh or list(proposals))[0]
