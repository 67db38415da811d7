"""The search space: which keys of the configuration a sweep varies, and within what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tracker.errors import TrackerError
from tracker.sweep.conditions import Comparison, read_comparison
from tracker.sweep.distributions import bounded, suggested
from tracker.sweep.syntax import SYNTAX, parsed, read_distribution

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override
    from optuna import Trial
    from optuna.distributions import BaseDistribution

    from tracker.codecs.records import Entry


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
        override = parsed(f"{option}={value}", loader)
        if not override.is_sweep_override():
            raise TrackerError(f"hydra.sweeper.params.{key}={value} is no search space; write {SYNTAX}")
        space[_plain(key)] = replace(_parameter(override, when, loader), entry=wild[1:])
    for word in overrides:
        override = parsed(word, loader)
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
            chosen[key] = suggested(trial, key, parameter.distribution)
    return chosen


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
        distribution = bounded(parameter.distribution, entry.most)
        if distribution is not None:
            key = f"{_plain(parameter.key)}.{name}"
            found[key] = replace(parameter, distribution=distribution, entry=name)
    return found


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


def _conditional(key: str, value: Mapping[str, Any]) -> tuple[Comparison | None, Any]:
    where = f"hydra.sweeper.params.{key}"
    if unknown := sorted(set(value) - {"space", "when"}):
        raise TrackerError(f"{where}.{unknown[0]} is not an option; there are space and when")
    if "space" not in value:
        raise TrackerError(f"{where} has no space; write {{space: {SYNTAX.split(',')[0]}..., when: KEY>VALUE}}")
    when = value.get("when")
    return (read_comparison(str(when), f"{where}.when") if when is not None else None), value["space"]


def _plain(key: str) -> str:
    return key.lstrip("+")


def _parameter(override: Override, when: Comparison | None, loader: ConfigLoader) -> Parameter:
    key = override.get_key_element()
    group = override.key_or_group in loader.list_groups("") or loader.get_group_options(override.key_or_group) != []
    return Parameter(key, read_distribution(override), when, group)
