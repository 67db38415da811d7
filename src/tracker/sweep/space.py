"""The search space: which keys of the configuration a sweep varies, and within what.

A value is written in Hydra's own sweep syntax (https://hydra.cc/docs/advanced/override_grammar/extended): ``choice``,
``range``, ``interval``, ``glob`` for a config group, ``tag(log, ...)`` for a logarithmic scale, ``int(...)``. The upper
end of a ``range`` belongs to it, as in Hydra's published Optuna sweeper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tracker.errors import TrackerError
from tracker.sweep.conditions import Comparison, read_comparison

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override
    from optuna import Trial
    from optuna.distributions import BaseDistribution

    from tracker.codecs.base import Entry

SYNTAX = "choice(a,b), range(first,last), interval(low,high), tag(log,interval(low,high)) or int(interval(low,high))"


@dataclass(frozen=True)
class Parameter:
    """A key that the sweep varies.

    Attributes:
        key: as on the command line, such as ``codec.nnc.qp`` or, for a config group, ``+codec``.
        distribution: Optuna's, of its values.
        when: the parameter is there only where this comparison with another key holds.
        group: whether the key is a config group.
        entry: the name whose value it is, where the option is a mapping by name of layers or tensors; ``*`` stands
            for all of them.
    """

    key: str
    distribution: BaseDistribution
    when: Comparison | None = None
    group: bool = False
    entry: str = ""


def read_space(
    params: Mapping[str, Any], overrides: Sequence[str], loader: ConfigLoader
) -> tuple[dict[str, Parameter], list[str]]:
    """The search space, and the overrides that are the same for all trials.

    Args:
        params: ``hydra.sweeper.params``: by key, a value in sweep syntax, or ``{space: VALUE, when: COMPARISON}``.
        overrides: of the command line; one in sweep syntax adds a parameter or takes the place of one in ``params``,
            any other fixes the key.
        loader: knows which keys are config groups, and their choices.

    Raises:
        TrackerError: a value is not in sweep syntax, or its range is empty.
    """
    space: dict[str, Parameter] = {}
    fixed: list[str] = []
    for key, value in params.items():
        when = None
        if isinstance(value, Mapping):
            when, value = _conditional(key, value)
        option, wild, _ = key.partition(".*")
        override = _parsed(f"{option}={value}", loader)
        if not override.is_sweep_override():
            raise TrackerError(f"hydra.sweeper.params.{key}={value} is no search space; write {SYNTAX}")
        space[_plain(key)] = replace(_parameter(override, when, loader), entry=wild[1:])
    for word in overrides:
        override = _parsed(word, loader)
        key = _plain(override.get_key_element())
        if override.is_sweep_override():
            space[key] = _parameter(override, space[key].when if key in space else None, loader)
        else:
            fixed.append(word)
            space.pop(key, None)
    return space, fixed


def suggest(trial: Trial, space: Mapping[str, Parameter]) -> dict[str, Any]:
    """A trial's values, of the parameters that are there.

    Args:
        trial: asks the sampler, or has the values already.
        space: the parameters.
    """
    chosen: dict[str, Any] = {}
    for key, parameter in in_order(space):
        if active(parameter, chosen):
            chosen[key] = _suggested(trial, key, parameter.distribution)
    return chosen


def _suggested(trial: Trial, key: str, distribution: BaseDistribution) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(key, distribution.choices)
    low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(key, low, high, step=distribution.step, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(key, low, high, step=distribution.step, log=distribution.log)


def active(parameter: Parameter, chosen: Mapping[str, Any]) -> bool:
    """Whether a parameter is there, given the values of those before it; not, where the one it depends on is not."""
    when = parameter.when
    return when is None or (when.name in chosen and when.holds(chosen[when.name]))


def settled(space: Mapping[str, Parameter], config: Callable[[str], Any]) -> dict[str, Parameter]:
    """The space without conditions on keys that are not varied: they hold, or the parameter is never there.

    Integers are searched where the configuration has an integer and an interval has whole ends.

    Args:
        space: as it was read.
        config: the value of a key of the composed configuration.
    """
    from optuna.distributions import FloatDistribution, IntDistribution

    found = {}
    for key, parameter in space.items():
        when, distribution = parameter.when, parameter.distribution
        if when is not None and when.name not in space:
            if not when.holds(config(when.name)):
                continue
            when = None
        if isinstance(distribution, FloatDistribution) and distribution.step is None and not parameter.group:
            low, high = distribution.low, distribution.high
            if type(config(key)) is int and low == int(low) and high == int(high):
                distribution = IntDistribution(int(low), int(high), log=distribution.log)
        found[key] = replace(parameter, distribution=distribution, when=when)
    # A parameter whose condition names one that has gone is never there either.
    while gone := [key for key, one in found.items() if one.when is not None and one.when.name not in found]:
        for key in gone:
            del found[key]
    return found


def expanded(parameter: Parameter, entries: Mapping[str, Entry]) -> dict[str, Parameter]:
    """One parameter for each name of an option that is a mapping: what ``KEY.*`` stands for.

    Args:
        parameter: of the whole option.
        entries: by name; the range ends at what makes a difference for each, and is left out where nothing of it does.
    """
    found = {}
    for name, entry in entries.items():
        distribution = _bounded(parameter.distribution, entry.most)
        if distribution is not None:
            key = f"{_plain(parameter.key)}.{name}"
            found[key] = replace(parameter, distribution=distribution, entry=name)
    return found


def _bounded(distribution: BaseDistribution, most: int | None) -> BaseDistribution | None:
    """A distribution up to an upper end; None where nothing of it is left."""
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
        high = low + math.floor((high - low) / step + 1e-9) * step
    if isinstance(distribution, IntDistribution):
        return IntDistribution(int(low), int(high), log=distribution.log, step=distribution.step)
    return FloatDistribution(low, high, log=distribution.log, step=distribution.step)


def in_order(space: Mapping[str, Parameter]) -> Iterator[tuple[str, Parameter]]:
    """The parameters, each behind the one that its condition names.

    Raises:
        TrackerError: conditions go round in a circle.
    """
    waiting = dict(space)
    while waiting:
        ready = [key for key, one in waiting.items() if one.when is None or one.when.name not in waiting]
        if not ready:
            raise TrackerError(f"the conditions of {', '.join(waiting)} go round in a circle; leave one `when` out")
        for key in ready:
            yield key, waiting.pop(key)


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
        count = math.floor((high - low) / distribution.step + 1e-9) + 1
        return [low + index * distribution.step for index in range(count)]
    if low == high or points == 1:
        return [high]
    shares = [index / (points - 1) for index in range(points)]
    if distribution.log:
        inner = [low * (high / low) ** share for share in shares[1:-1]]
    else:
        inner = [low + (high - low) * share for share in shares[1:-1]]
    values = [low, *inner, high]
    return sorted({round(value) for value in values}) if isinstance(distribution, IntDistribution) else values


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


def _conditional(key: str, value: Mapping[str, Any]) -> tuple[Comparison | None, Any]:
    where = f"hydra.sweeper.params.{key}"
    if unknown := sorted(set(value) - {"space", "when"}):
        raise TrackerError(f"{where}.{unknown[0]} is not an option; there are space and when")
    if "space" not in value:
        raise TrackerError(f"{where} has no space; write {{space: {SYNTAX.split(',')[0]}..., when: KEY>VALUE}}")
    when = value.get("when")
    return (read_comparison(str(when), f"{where}.when") if when is not None else None), value["space"]


def _parsed(word: str, loader: ConfigLoader) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create(config_loader=loader).parse_overrides([word])[0]
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise TrackerError(f"{word} cannot be read ({reason[:200]}); a search space is written as {SYNTAX}") from error


def _plain(key: str) -> str:
    return key.lstrip("+")


def _parameter(override: Override, when: Comparison | None, loader: ConfigLoader) -> Parameter:
    key = override.get_key_element()
    group = override.key_or_group in loader.list_groups("") or loader.get_group_options(override.key_or_group) != []
    return Parameter(key, _distribution(override), when, group)


def _distribution(override: Override) -> BaseDistribution:
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from optuna.distributions import CategoricalDistribution

    sweep = override.value()
    try:
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
        return IntDistribution(low, low + (high - low) // step * step, step=1 if log else step, log=log)
    count = math.floor((high - low) / step + 1e-9)
    return FloatDistribution(float(low), float(low) + count * float(step), step=float(step))


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
