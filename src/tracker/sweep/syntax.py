"""Hydra's sweep syntax, read as Optuna's distributions.

``choice``, ``range``, ``interval``, ``glob`` for a config group, ``tag(log, ...)`` for a logarithmic scale, ``int(..)``
(https://hydra.cc/docs/advanced/override_grammar/extended). The upper end of a ``range`` belongs to it, as in Hydra's
published Optuna sweeper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracker.errors import TrackerError
from tracker.sweep.distributions import last

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override
    from optuna.distributions import BaseDistribution

TAGS = {"log"}
SYNTAX = "choice(a,b), range(first,last), interval(low,high), tag(log,interval(low,high)) or int(interval(low,high))"


def parsed(word: str, loader: ConfigLoader) -> Override:
    """A word of the command line.

    Raises:
        TrackerError: it is none.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create(config_loader=loader).parse_overrides([word])[0]
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise TrackerError(f"{word} cannot be read ({reason[:200]}); a search space is written as {SYNTAX}") from error


def read_distribution(override: Override) -> BaseDistribution:
    """What a value in sweep syntax stands for.

    Raises:
        TrackerError: nothing can be searched in it.
    """
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from optuna.distributions import CategoricalDistribution

    sweep = override.value()
    try:
        if unknown := sorted(set(getattr(sweep, "tags", None) or ()) - TAGS):
            raise ValueError(f"there is no tag {unknown[0]}, only log")
        if isinstance(sweep, IntervalSweep):
            return _interval(sweep)
        if isinstance(sweep, RangeSweep):
            return _range(sweep)
        choices = [_element(value) for value in override.sweep_iterator()]
        if not choices:
            raise ValueError("no choice is left")
        return CategoricalDistribution(list(dict.fromkeys(choices)))
    except (ValueError, TypeError) as error:
        text = override.input_line
        raise TrackerError(f"{text} is no range that can be searched ({error}); write {SYNTAX}") from error


def _interval(sweep: Any) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    _check(low, high, log)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _range(sweep: Any) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    low, high, step = sweep.start or 0, sweep.stop, sweep.step
    if step <= 0:
        raise ValueError("its step is not above 0")
    log = "log" in sweep.tags
    _check(low, high, log)
    if all(isinstance(value, int) for value in (low, high, step)):
        return IntDistribution(low, int(last(low, high, step)), step=1 if log else step, log=log)
    return FloatDistribution(float(low), float(last(low, high, step)), step=float(step))


def _check(low: float, high: float, log: bool) -> None:
    if not low <= high:
        raise ValueError("it is empty: its lower end is above its upper end")
    if log and low <= 0:
        raise ValueError("a logarithmic scale needs a lower end above 0")


def _element(value: Any) -> Any:
    """A choice as Optuna stores it: number, boolean, null, or text as the command line has it."""
    from hydra.core.override_parser.types import Override, QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return Override._get_value_element_as_str(value)
