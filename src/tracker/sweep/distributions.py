"""The values of a parameter, as Optuna's distributions describe them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution


def suggested(trial: Trial, key: str, distribution: BaseDistribution) -> Any:
    """A trial's value of a parameter: asked of the sampler, or what the trial has already."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(key, distribution.choices)
    low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(key, low, high, step=distribution.step, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(key, low, high, step=distribution.step, log=distribution.log)


def values_of(distribution: BaseDistribution, points: int) -> list[Any]:
    """The values of a distribution for a grid, both ends included.

    Args:
        distribution: any of Optuna's.
        points: how many values a continuous one gives, evenly (or evenly on its logarithmic scale).
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        return [low + index * distribution.step for index in range(steps(low, high, distribution.step) + 1)]
    if low == high or points == 1:
        return [high]
    shares = [index / (points - 1) for index in range(points)]
    if distribution.log:
        inner = [low * (high / low) ** share for share in shares[1:-1]]
    else:
        inner = [low + (high - low) * share for share in shares[1:-1]]
    values = [low, *inner, high]
    return sorted({round(value) for value in values}) if isinstance(distribution, IntDistribution) else values


def continuous(distribution: BaseDistribution) -> bool:
    """Whether it has values between any two."""
    from optuna.distributions import FloatDistribution

    return isinstance(distribution, FloatDistribution) and distribution.step is None


def nearest(distribution: BaseDistribution, value: Any) -> Any:
    """The value itself where a distribution has it, else the nearest one; the first, where nothing is near."""
    try:
        if distribution._contains(distribution.to_internal_repr(value)):
            return value
    except (ValueError, TypeError):
        pass
    values = values_of(distribution, 33)
    numbers = [one for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
    if isinstance(value, int | float) and not isinstance(value, bool) and numbers:
        return min(numbers, key=lambda one: abs(one - value))
    return values[0]


def bounded(distribution: BaseDistribution, most: int | None) -> BaseDistribution | None:
    """A distribution up to an upper end; None where nothing of it is left, and as it is where there is none."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if most is None:
        return distribution
    if isinstance(distribution, CategoricalDistribution):
        left = [choice for choice in distribution.choices if not isinstance(choice, int | float) or choice <= most]
        return CategoricalDistribution(left) if left else None
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if distribution.low > most:
        return None
    low, step = distribution.low, distribution.step
    high: float = min(distribution.high, most)
    if step is not None and not distribution.log:
        high = last(low, high, step)
    if isinstance(distribution, IntDistribution):
        return IntDistribution(int(low), int(high), log=distribution.log, step=distribution.step)
    return FloatDistribution(low, high, log=distribution.log, step=distribution.step)


def shown(distribution: BaseDistribution) -> str:
    """A distribution in Hydra's sweep syntax, as one could type it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        words = {True: "true", False: "false", None: "null"}
        texts = [words[one] if one is None or isinstance(one, bool) else str(one) for one in distribution.choices]
        return f"choice({','.join(texts)})"
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    ends, step = f"{distribution.low},{distribution.high}", distribution.step
    if distribution.log:
        inner = f"interval({ends})"
        return f"tag(log,{f'int({inner})' if isinstance(distribution, IntDistribution) else inner})"
    if step is None:
        return f"interval({ends})"
    return f"range({ends})" if step == 1 and isinstance(distribution, IntDistribution) else f"range({ends},{step})"


def steps(low: float, high: float, step: float) -> int:
    """How many whole steps there are between two ends, whatever the rounding of a division such as 0.3 / 0.1."""
    return math.floor((high - low) / step + 1e-9)


def last(low: float, high: float, step: float) -> float:
    """The last value of a range that has steps."""
    return low + steps(low, high, step) * step
