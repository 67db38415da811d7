"""Comparisons of a name with a value, as text: ``cost/mac_ratio<=0.6``, ``codec.nnc.sparsity>0``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tracker.errors import TrackerError

COMPARISON = re.compile(r"^\s*([^\s<>=!]+)\s*(<=|>=|==|!=|<|>)\s*(.+?)\s*$")
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True)
class Comparison:
    """A name, an operator and a value.

    Attributes:
        name: of a metric or of a configuration key.
        sign: of the operator.
        value: number, boolean or text.
    """

    name: str
    sign: str
    value: Any

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.value}"

    def holds(self, value: Any) -> bool:
        """Whether a value compares so; what cannot be compared (null with a number) does not."""
        try:
            return bool(OPERATORS[self.sign](value, self.value))
        except TypeError:
            return False


def read_comparison(text: str, where: str) -> Comparison:
    """Read a comparison.

    Args:
        text: NAME OPERATOR VALUE.
        where: its config key, for the error message.

    Raises:
        TrackerError: it is none.
    """
    match = COMPARISON.match(text)
    if match is None:
        raise TrackerError(f"{where}={text!r} is no comparison; write NAME<=VALUE (or >=, <, >, ==, !=)")
    return Comparison(match[1], match[2], _value(match[3]))


def _value(text: str) -> Any:
    """As Hydra reads it on the command line."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"value={text}").value()
    except HydraException:
        return text


def read_bound(text: str, where: str) -> Comparison:
    """Read a bound on a metric: a comparison by ``<=`` or ``>=`` with a number.

    Raises:
        TrackerError: it is none.
    """
    try:
        bound = read_comparison(text, where)
    except TrackerError:
        bound = Comparison(text, "", None)
    number = isinstance(bound.value, int | float) and not isinstance(bound.value, bool)
    if bound.sign not in ("<=", ">=") or not number:
        raise TrackerError(f"{where}={text!r} is no bound; write METRIC<=NUMBER or METRIC>=NUMBER")
    return bound


def excess(bound: Comparison, value: float) -> float:
    """How far a metric lies beyond its bound, 0 or less where it keeps it: what Optuna calls a constraint's value."""
    return value - bound.value if bound.sign == "<=" else bound.value - value
