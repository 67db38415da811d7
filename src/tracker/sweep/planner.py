"""What is tried next, before the sampler is asked: known points, a grid's next one, a search along one parameter.

The search along a parameter with which the rate falls (NNC's qp) finds the coarsest value that is transparent, all
others as in the best of the known points. It looks for the last good value and then at every value above it, until two
are hopeless and all above them: performance does not fall evenly, and a coarser step may do better than a finer one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracker.sweep.history import History, Past, key_of
from tracker.sweep.samplers import BruteForce, Sampler
from tracker.sweep.space import Parameter, active, in_order, values_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from tracker.sweep.settings import SweepSettings

HOPELESS = 3.0  # tolerances beyond the tolerance
MANY = 4  # values left between the last good one and the first hopeless ones
MOST_ALONG = 40  # values that the search along a parameter looks at, of as many as there may be
FIRST_STEPS = 8  # the search begins with steps of an eighth of the range


class Planner:
    """Proposes values that the sampler would have to find."""

    def __init__(
        self,
        settings: SweepSettings,
        space: Mapping[str, Parameter],
        base: Mapping[str, Any],
        sampler: Sampler,
        tolerance: float,
    ) -> None:
        self.space, self.base, self.tolerance = space, base, tolerance
        self.plan = sampler.plan(settings.seed, space)
        if self.plan is None and combinations(space) <= settings.n_trials:
            self.plan = BruteForce().plan(settings.seed, space)  # no sampler can do better than to try them all
        points = self.plan
        if points is None:
            points = [dict(base), *map(self._completed, settings.known_points.values())]
        self.left = deque((key_of(point), point) for point in points)
        self.points = [] if self.plan is not None else points
        self.along = settings.rate_falls_with if self.plan is None and len(settings.objectives) == 1 else None
        self.along = self.along if self.along in base else None

    def propose(self, trials: Sequence[FrozenTrial], history: History) -> dict[str, Any] | None:
        """The values that are to be tried next; None to ask the sampler.

        Args:
            trials: all of the study.
            history: of those that have ended.
        """
        begun = {
            key_of(trial.params or trial.system_attrs.get("fixed_params", {}))
            for trial in trials
            if trial.number not in history.past
        }
        while self.left and (self.left[0][0] in begun or self.left[0][0] in history.by_params):
            self.left.popleft()
        if self.left:
            return self.left[0][1]
        return self._next_along(history, begun)

    def coarser(self, params: Mapping[str, Any], history: History, size: float) -> Past | None:
        """An earlier trial that was the same but coarser, and no smaller than ``size``: then this one is not either."""
        if self.along is None or self.along not in params:
            return None
        rest = key_of({key: value for key, value in params.items() if key != self.along})
        for past in history.past.values():
            if past.value is None or past.value < size or past.params.get(self.along, -1e9) <= params[self.along]:
                continue
            if key_of({key: value for key, value in past.params.items() if key != self.along}) == rest:
                return past
        return None

    def _next_along(self, history: History, begun: set[str]) -> dict[str, Any] | None:
        """The next point of the search along one parameter, the others at the best of the first points."""
        if self.along is None:
            return None
        start = self._start(history)
        values = values_of(self.space[self.along].distribution, MOST_ALONG)
        values = values[:: math.ceil(len(values) / MOST_ALONG)]  # the sampler has all of them
        points = [{**start, self.along: value} for value in values]
        state: dict[int, str] = {}
        for index, key in enumerate(map(key_of, points)):
            past = history.by_params.get(key)
            if past is not None:
                state[index] = self._state(past)
            elif key in begun:
                state[index] = "running"
        step = max(1, len(values) // FIRST_STEPS)
        nearest = min(range(len(values)), key=lambda index: abs(values[index] - start[str(self.along)]))
        following = next_index(state, len(values), nearest, step)
        return None if following is None else points[following]

    def _start(self, history: History) -> Mapping[str, Any]:
        """The smallest feasible one of the points that were tried first; the configuration's own where none is."""
        found = [past for point in self.points if (past := history.by_params.get(key_of(point))) and past.feasible]
        found = [past for past in found if past.value is not None and self.along in past.params]
        return min(found, key=lambda past: past.value or 0.0).params if found else self.base

    def _state(self, past: Past) -> str:
        if past.feasible:
            return "good"
        violation = past.outcome.violation
        hopeless = violation is not None and violation > HOPELESS * self.tolerance
        return "hopeless" if hopeless else "bad"

    def _completed(self, point: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, parameter in in_order(self.space):
            if not active(parameter, values):
                continue
            value = point.get(key, self.base.get(key))
            if key in point and not contains(parameter, value):
                # A narrower range than the one that ships leaves the point out of it, which is no mistake.
                value = self.base.get(key)
            values[key] = value if contains(parameter, value) else values_of(parameter.distribution, 3)[0]
        return values


def next_index(state: Mapping[int, str], count: int, start: int, step: int) -> int | None:
    """The next of ``count`` values, from fine to coarse, to look at; None where the coarsest good one is known.

    Args:
        state: of those that were looked at: ``good``, ``bad``, ``hopeless`` or ``running``.
        count: of values.
        start: index to begin with.
        step: of the first look upwards or downwards.
    """
    if not state:
        return start
    good = max((index for index, word in state.items() if word == "good"), default=None)
    if good is None:
        # Nothing good yet: finer, in steps, down to the finest; then whatever the steps went over.
        if min(state) > 0:
            return max(0, min(state) - step)
        good = -1
    above = sorted(index for index in state if index > good)
    sure = [index for index in above if all(state[other] == "hopeless" for other in above if other >= index)]
    if len(sure) < 2 and max(state) < count - 1:
        # Hopeless from here on? The next one tells; before there is such a one, further up.
        return max(state) + 1 if sure else min(count - 1, max(state) + step)
    untried = [index for index in range(good + 1, min(sure, default=count)) if index not in state]
    # Of many the middle one, which may show that those above it are hopeless; of few the coarsest.
    return untried[len(untried) // 2] if len(untried) > MANY else max(untried, default=None)


def combinations(space: Mapping[str, Parameter]) -> float:
    """How many points a space has, conditions apart; infinite where one parameter is continuous."""
    from optuna.distributions import FloatDistribution, IntDistribution

    total = 1.0
    for parameter in space.values():
        distribution = parameter.distribution
        if isinstance(distribution, FloatDistribution) and distribution.step is None:
            return math.inf
        if isinstance(distribution, IntDistribution) and distribution.log:
            total *= distribution.high - distribution.low + 1
        else:
            total *= len(values_of(distribution, 2))
    return total


def contains(parameter: Parameter, value: Any) -> bool:
    """Whether a value lies in a parameter's range."""
    if value is None and "None" not in str(parameter.distribution):
        return False
    try:
        return bool(parameter.distribution._contains(parameter.distribution.to_internal_repr(value)))
    except (ValueError, TypeError):
        return False
