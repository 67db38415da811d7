"""What is tried next, before the sampler is asked: a grid's next point; or a search along one parameter, known points.

The search along a parameter with which the rate falls (NNC's qp) finds the coarsest value that is transparent, all
others as the configuration has them. It looks for the last good value and then at every value above it, until two are
hopeless and all above them: performance does not fall evenly, and a coarser step may do better than a finer one. Then
come the known points, at the value found and each on top of the best one before it, and the same search from there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracker.sweep.distributions import continuous, nearest, values_of
from tracker.sweep.history import History, Past, key_of
from tracker.sweep.samplers import BruteForce, Sampler
from tracker.sweep.space import Parameter, active, in_order

if TYPE_CHECKING:
    from tracker.sweep.settings import SweepSettings

HOPELESS = 3.0  # tolerances beyond the tolerance
DOUBT = 0.7  # standard deviation of a drop between two that were measured, in tolerances (on the scale of asinh)
LEAST = 1e-3  # chance that counts for a value which looks as if it had none
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
        self.left = deque((key_of(point), point) for point in self.plan or [])
        self.known = [] if self.plan is not None else list(settings.known_points.values())
        self.along = settings.rate_falls_with if self.plan is None and len(settings.objectives) == 1 else None
        self.along = self.along if self.along in base else None

    def propose(self, history: History) -> Mapping[str, Any] | None:
        """The values that are to be tried next; None to ask the sampler."""
        if self.plan is not None:
            while self.left and history.tried(self.left[0][0]):
                self.left.popleft()
            return self.left[0][1] if self.left else None
        for point in self._first(history):
            if point is not None and not history.tried(key_of(point)):
                return point
        return None

    def _first(self, history: History) -> Iterator[Mapping[str, Any] | None]:
        """What comes before the sampler, one after the other."""
        yield self.base
        yield self._next_along(self.base, history, first=True)
        best = found = self._best_along(history)
        for known in self.known:
            point = self._completed(known, best)
            yield point
            best = smallest([best, point], history) or best
        if best is not found:
            yield self._next_along(best, history, first=found is self.base)

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

    def _next_along(self, start: Mapping[str, Any], history: History, first: bool) -> Mapping[str, Any] | None:
        """The next point of the search along one parameter, the others as in ``start``.

        Unless it is the first that finds anything, ``start`` is nearly where it will end.
        """
        if self.along is None or self.along not in start:
            return None
        points = self._line(start)
        state: dict[int, str] = {}
        excess: dict[int, float] = {}
        for index, key in enumerate(map(key_of, points)):
            past = history.by_params.get(key)
            if past is not None:
                state[index] = self._state(past, HOPELESS if first else 0.0)
                if past.outcome.violation is not None and self.tolerance:
                    excess[index] = past.outcome.violation / self.tolerance
            elif key in history.begun:
                state[index] = "running"
        step = max(1, len(points) // FIRST_STEPS) if first else 1
        values = [point[self.along] for point in points]
        begin = min(range(len(values)), key=lambda index: abs(values[index] - start[str(self.along)]))
        following = next_index(state, len(points), begin, step, excess)
        return None if following is None else points[following]

    def _line(self, start: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Points that differ in the one parameter, from fine to coarse."""
        assert self.along is not None
        values = values_of(self.space[self.along].distribution, MOST_ALONG)
        values = values[:: math.ceil(len(values) / MOST_ALONG)]  # the sampler has all of them
        return [{**start, self.along: value} for value in values]

    def _best_along(self, history: History) -> Mapping[str, Any]:
        """The best point that the search from the configuration's own values found; these, where it found none."""
        points = self._line(self.base) if self.along is not None else []
        return smallest(points, history) or self.base

    def _state(self, past: Past, hopeless: float) -> str:
        """Good, bad, or hopeless: further beyond the tolerance than so many tolerances."""
        if past.feasible:
            return "good"
        violation = past.outcome.violation
        return "hopeless" if violation is not None and violation > hopeless * self.tolerance else "bad"

    def _completed(self, point: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
        """A known point, with the other parameters as in ``rest``."""
        values: dict[str, Any] = {}
        for key, parameter in in_order(self.space):
            if not active(parameter, values):
                continue
            value = point.get(key, point.get(f"{parameter.key}.*", rest.get(key)))
            # A narrower range than the one that ships leaves the point out of it, which is no mistake.
            values[key] = nearest(parameter.distribution, value)
        return values


def smallest(points: Sequence[Mapping[str, Any]], history: History) -> Mapping[str, Any] | None:
    """The feasible one of some points with the least value; None where none is feasible yet."""
    found = [past for point in points if (past := history.by_params.get(key_of(point))) and past.feasible]
    measured = [(past.value, past.number, past.params) for past in found if past.value is not None]
    return min(measured)[2] if measured else None


def next_index(state: Mapping[int, str], count: int, start: int, step: int, excess: Mapping[int, float]) -> int | None:
    """The next of ``count`` values, from fine to coarse, to look at; None where the coarsest good one is known.

    Args:
        state: of those that were looked at: ``good``, ``bad``, ``hopeless`` or ``running``.
        count: of values.
        start: index to begin with.
        step: of the first look upwards or downwards.
        excess: how far the drops that were measured lie beyond the tolerance, in tolerances.
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
    return max(untried, key=lambda index: promise(index, good, excess), default=None)


def promise(index: int, good: int, excess: Mapping[int, float]) -> float:
    """How many values coarser than the last good one a value is, times the chance that it is good as well.

    Args:
        index: of the value.
        good: index of the coarsest good one; -1 where there is none.
        excess: as for `next_index`; between two of them the drop is taken to rise evenly.
    """
    from statistics import NormalDist

    import numpy as np

    if not excess:
        return index - good
    places = sorted(excess)
    expected = float(np.interp(index, places, [math.asinh(excess[place]) for place in places]))
    return (index - good) * (NormalDist().cdf(-expected / DOUBT) + LEAST)


def combinations(space: Mapping[str, Parameter]) -> float:
    """How many points a space has, conditions apart; infinite where one parameter is continuous."""
    from optuna.distributions import IntDistribution

    total = 1.0
    for parameter in space.values():
        distribution = parameter.distribution
        if continuous(distribution):
            return math.inf
        if isinstance(distribution, IntDistribution) and distribution.log:
            total *= distribution.high - distribution.low + 1
        else:
            total *= len(values_of(distribution, 2))
    return total
