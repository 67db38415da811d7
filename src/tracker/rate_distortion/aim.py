"""The working point that a target asks for, on a scale along which bitstreams get smaller and models worse."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from tracker.codecs.base import Context
from tracker.codecs.records import Judged
from tracker.errors import TrackerError
from tracker.tasks.base import ROUNDING

T = TypeVar("T")
FIRST = 0.6  # of all places, where nothing is known: from 0.5 to 0.9 is what most targets ask for
LEAST = 0.001  # a target's drop of which multiples are taken, at least
# How much the logarithm of a divergence grows from place to place, about; and how near to the wanted one is enough.
SLOPE, CLOSE = 0.15, 0.25
AROUND, APART = 8, 2  # places before and after such a one that are measured too, and how far apart
FARTHEST = 3.0  # that a logarithm is taken for: what is farther from a target tells no more


@dataclass(frozen=True)
class Found(Generic[T]):
    """One place on the scale.

    Attributes:
        place: on the scale.
        made: what is there.
        judged: what the split for decisions says of it; None where bytes decide.
        bytes: of the bitstream; None where the drop decides.
    """

    place: int
    made: T
    judged: Judged | None
    bytes: int | None

    def meets(self, context: Context) -> bool:
        """Whether it is within the target."""
        target = context.target
        if self.judged is not None:
            return within(self.judged.bound, context)
        return self.bytes is not None and target.bytes is not None and self.bytes <= target.bytes

    def beyond(self, context: Context) -> float:
        """How far it is beyond where the target is reached: a logarithm that grows from place to place."""
        target = context.target
        if self.judged is None:
            return math.log((target.bytes or 1) / max(self.bytes or 1, 1))
        ratio = self.judged.bound / max(target.drop, LEAST)
        return math.log(max(ratio, math.exp(-FARTHEST))) if ratio < math.exp(FARTHEST) else FARTHEST


def within(drop: float, context: Context) -> bool:
    """Whether a drop is within the target's; NaN is not."""
    return drop <= context.target.drop + ROUNDING


def working_point(
    count: int,
    make: Callable[[int], T],
    judge: Callable[[T], Judged],
    size: Callable[[T], int],
    context: Context,
    seen: dict[int, Found[T]] | None = None,
    lucky: bool = True,
) -> Found[T]:
    """Search a scale of `count` places, of which the first is the largest and best: by interpolation, and bisection.

    Args:
        count: of places, from 0.
        make: what is at a place.
        judge: of it.
        size: of its bitstream.
        context: with the target.
        seen: all places that were looked at are added to it.
        lucky: whether a place may be within a drop that others around it are beyond; see `supported`.

    Returns:
        For a drop, the last place found within it, some of those after the one that the search
        gives among them, or the first of all where none is. For bytes, the first found within them.

    Raises:
        TrackerError: not even the last place is within the bytes.
    """
    by_bytes = context.target.bytes is not None
    seen = {} if seen is None else seen

    def at(place: int) -> Found[T]:
        if place not in seen:
            made = make(place)
            seen[place] = Found(place, made, None if by_bytes else judge(made), size(made) if by_bytes else None)
        return seen[place]

    low, high = (-1, count - 1) if by_bytes else (0, count)
    best: Found[T] | None = None
    while high - low > 1:
        found = at(_between(low, high, {one.place: one.beyond(context) for one in seen.values()}))
        if found.meets(context):
            best = found
        if found.meets(context) is by_bytes:
            high = found.place
        else:
            low = found.place
    if not by_bytes:
        beyond = [at(place) for place in range(high + 1, min(high + 1 + context.target.ahead, count))]
        best = next((found for found in reversed(beyond) if found.meets(context)), best)
        if best is not None and not lucky:
            return supported(seen.values(), context)
    if best is not None and (not by_bytes or best.place == high):
        return best
    last = at(high if by_bytes else low)
    if by_bytes and not last.meets(context):
        raise TrackerError(
            f"target.bytes={context.target.bytes} is less than the {last.bytes} bytes of the smallest bitstream that "
            "this codec makes; raise it"
        )
    return last


def supported(seen: Collection[Found[T]], context: Context) -> Found[T]:
    """The last place within the target's drop where those around it say so as well, or else the first within it.

    Drops go up and down from place to place by some tenths, and the last of many within the target is so by luck.

    Args:
        seen: places that were looked at, some of them within it.
        context: with the target.
    """
    meeting = sorted((one for one in seen if one.meets(context)), key=lambda one: -one.place)
    for found in meeting:
        near = [one for one in seen if abs(one.place - found.place) <= AROUND]
        slope, level = _line([one.place for one in near], [one.beyond(context) for one in near])
        if level + slope * found.place <= 0:
            return found
    return meeting[-1]


def _between(low: int, high: int, beyond: dict[int, float]) -> int:
    """The next place to look at, between two that need not have been looked at.

    Every third one is the middle, or what goes up and down could be approached from one side only.
    """
    if low in beyond and high in beyond and beyond[low] < beyond[high]:
        guess = low + (high - low) * -beyond[low] / (beyond[high] - beyond[low])
    elif low in beyond or high in beyond:
        known = low if low in beyond else high
        guess = known - len(beyond) * beyond[known] / SLOPE  # a longer step where those before did not pass it
    else:
        guess = FIRST * high
    if len(beyond) % 3 == 2:
        guess = (low + high) / 2
    return min(max(round(guess), low + 1), high - 1)


def by_divergence(count: int, measure: Callable[[int], float], wanted: float) -> tuple[int, dict[int, float]]:
    """Look for the place of a divergence by the secant method: its logarithm grows nearly evenly.

    Single networks lie above and below that by some tenths, so the place is where a line through many divergences
    around it meets the wanted one; or what training begins with, and so what it ends with, would be a matter of luck.

    Args:
        count: of places, from 0.
        measure: the divergence at a place.
        wanted: divergence.

    Returns:
        The place, and divergences by place, in the order in which they were measured.
    """
    logs: dict[int, float] = {}

    def at(place: int) -> float:
        if place not in logs:
            logs[place] = math.log(max(measure(place), 1e-12) / wanted)
        return logs[place]

    place, slope = int(FIRST * count), SLOPE
    while place not in logs and abs(at(place)) >= CLOSE:
        if len(logs) > 1:
            slope, _ = _line(list(logs)[-2:], list(logs.values())[-2:])
        place = min(max(place - round(logs[place] / slope), 0), count - 1)
    middle = min(logs, key=lambda one: (abs(logs[one]), -one))
    near = [one for one in range(middle - AROUND, middle + AROUND + 1, APART) if 0 <= one < count]
    slope, level = _line(near, [at(one) for one in near])
    found = min(max(round(-level / slope), near[0]), near[-1])
    return found, {one: wanted * math.exp(log) for one, log in logs.items()}


def _line(places: Sequence[int], logs: Sequence[float]) -> tuple[float, float]:
    """The slope, as far as it can be, and the level at 0 of the line with the least squared errors."""
    middle, level = np.mean(places), np.mean(logs)
    slope = float(np.polyfit(places, logs, 1)[0]) if len(places) > 1 else SLOPE
    slope = min(max(slope, SLOPE / 5), 3 * SLOPE)
    return slope, float(level - slope * middle)
