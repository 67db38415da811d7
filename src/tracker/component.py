"""Typed components: what a Hydra node with a ``_target_`` becomes.

A component is a pydantic model whose fields are the keys of its config, so that an unknown key, a wrong type or a
value out of range is refused, in one line, before any work starts.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tracker.errors import TrackerError

T = TypeVar("T")
# What pydantic calls the types of a union, at the end of a key.
BRANCH = re.compile(r"literal\[.*\]|(constrained-)?(int|float|str)|bool|none")


class Component(BaseModel):
    """Base of everything that a config names by ``_target_``: anchors, data sets, tasks and codec stages."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True, protected_namespaces=())


def locate(path: str, where: str) -> Any:
    """The object that a dotted path names.

    Args:
        path: ``package.module.name`` (``name`` may itself be dotted).
        where: the config key that holds the path, for the error message.

    Raises:
        TrackerError: the path cannot be imported.
    """
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and not (module_name == error.name or module_name.startswith(error.name + ".")):
                raise TrackerError(
                    f"{where}={path} needs the package {error.name!r}, which is not installed; install it and run again"
                ) from error
            continue
        except (Exception, SystemExit) as error:  # the module is there, and fails: a user's own, mostly
            raise TrackerError(
                f"{where}={path}: importing {module_name} fails: {type(error).__name__}: {error}"
            ) from error
        try:
            for part in parts[cut:]:
                found = getattr(found, part)
        except AttributeError:
            break
        return found
    raise TrackerError(
        f"{where}={path} cannot be found; give the dotted path of something importable "
        "(python -m tracker looks in the current folder and on PYTHONPATH)"
    )


def build(node: Mapping[str, Any], where: str, base: type[T]) -> T:
    """Instantiate a config node.

    Args:
        node: plain (resolved) mapping with ``_target_`` and the fields of the target.
        where: its place in the config, such as ``codec.nnc``; error messages name keys below it.
        base: the class that the result must be an instance of.

    Raises:
        TrackerError: no target, an unknown or missing key, a wrong type, a value out of range, a wrong kind of object.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise TrackerError(f"{where} is not complete: it needs a _target_, the dotted path of a {base.__name__}")
    target = locate(str(node["_target_"]), f"{where}._target_")
    fields = {str(key): value for key, value in node.items() if key != "_target_"}
    try:
        made = target(**fields)
    except ValidationError as error:
        raise TrackerError(explain(error, where)) from error
    except TypeError as error:
        raise TrackerError(f"{where} does not fit {node['_target_']}: {error}") from error
    if not isinstance(made, base):
        raise TrackerError(f"{where}._target_={node['_target_']} is not a {base.__module__}.{base.__name__}")
    return made


def code_digest(*nodes: Any) -> str:
    """SHA-256 (hex) over the source files of the user's own code that config nodes name by ``_target_``."""
    digest = hashlib.sha256()
    for target in sorted({target for node in nodes for target in _targets(node)}):
        if target.startswith("tracker."):
            continue
        module = inspect.getmodule(locate(target, "_target_"))
        file = getattr(module, "__file__", None)
        digest.update(Path(file).read_bytes() if file else target.encode())
    return digest.hexdigest()


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)


def call(node: Mapping[str, Any], where: str, *args: Any) -> Any:
    """Call what a ``_target_`` node names, with ``args`` first and the node's other keys as keyword arguments.

    Raises:
        TrackerError: the target cannot be found, or raises.
    """
    if "_target_" not in node:
        raise TrackerError(f"{where} needs a _target_: the dotted path of a callable")
    target = locate(str(node["_target_"]), f"{where}._target_")
    keywords = {str(key): value for key, value in node.items() if key != "_target_"}
    try:
        return target(*args, **keywords)
    except TrackerError:
        raise
    except Exception as error:
        raise TrackerError(f"{where}: {node['_target_']} raised {type(error).__name__}: {error}") from error


def made(node: Mapping[str, Any], where: str, kind: type[T], word: str) -> T:
    """What a ``_target_`` node makes, of the type that is wanted.

    Args:
        node: as for `call`.
        where: the config key of the node.
        kind: the type.
        word: its name, for the error message.

    Raises:
        TrackerError: as `call`, or it is of another type.
    """
    value = call(node, where)
    if not isinstance(value, kind):
        raise TrackerError(f"{where}._target_={node['_target_']} gives {type(value).__name__}, not a {word}")
    return value


def _same_union(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    """Whether two places are those of the same key, of which pydantic has tried two types."""
    return one[:-1] == other[:-1] and all(BRANCH.fullmatch(str(place[-1])) for place in (one, other) if place)


def explain(error: ValidationError, where: str) -> str:
    """One line from pydantic's list of errors: the first problem, and how many more there are."""
    problems = error.errors(include_url=False, include_context=False)
    first, *others = problems
    branches = [one for one in others if _same_union(first["loc"], one["loc"])]
    if branches:  # none of several types fits: one problem, of the key before
        wanted = [one["msg"].removeprefix("Input ") for one in (first, *branches)]
        first = {**first, "loc": first["loc"][:-1], "msg": f"Input {', or '.join(wanted)}", "type": "union"}
        problems = [first, *(one for one in others if one not in branches)]
    key = ".".join([where, *(str(part) for part in first["loc"])]) if first["loc"] else where
    if first["type"] == "extra_forbidden":
        text = f"{key} is not an option; look at `python -m tracker --cfg job` for those that are"
    elif first["type"] == "missing":
        text = f"{key} is missing; set it on the command line"
    elif first["type"] == "value_error":
        text = (
            f"{key}={first['input']!r}: {first['msg'].removeprefix('Value error, ')}"
            if first["loc"]
            else (f"{where}: {first['msg'].removeprefix('Value error, ')}")
        )
    else:
        text = f"{key}={first['input']!r}: {first['msg']}"
    more = len(problems) - 1
    return text + (f" (and {more} more)" if more else "")
