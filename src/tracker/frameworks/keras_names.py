"""Names of Keras's layers that do not depend on what was built before.

Keras numbers layers through the whole process: the second model has ``conv2d_3`` where the first had ``conv2d``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

NUMBER = re.compile(r"_\d+$")


def layers_by_name(model: Any) -> dict[str, Any]:
    """All layers of a model, nested ones too, by names that do not depend on what was built before.

    Keras numbers layers through the whole process: the second model has ``conv2d_3`` where the first had ``conv2d``.
    Here such numbers are counted anew within each layer. Nested layers stand behind their owner and a slash.
    """
    found: dict[str, Any] = {}
    seen = {id(model)}

    def visit(owner: Any, prefix: str) -> None:
        taken: set[str] = set()
        for item in owner._flatten_layers(include_self=False, recursive=False):
            if id(item) in seen:
                continue  # shared: it has its name from where it is first
            seen.add(id(item))
            name = unique(own_name(item), taken)
            taken.add(name)
            found[prefix + name] = item
            visit(item, f"{prefix}{name}/")

    visit(model, "")
    return found


def own_name(item: Any) -> str:
    """A layer's name; without its number where Keras made the name of the layer's class.

    A layer that was built again has the name that it had, see `tracker.frameworks.keras_graph`.
    """
    kept = getattr(item, "_tracker_name", None)
    if kept is not None:
        return str(kept)
    return numbered(type(item).__name__, item.name) or str(item.name)


def numbered(cls: str, name: str) -> str | None:
    """A name without its number, if Keras made it; an input of a cloned model has its tensor's."""
    plain, own = NUMBER.sub("", name), snake(cls)
    return own if plain == own or (cls == "InputLayer" and plain == "keras_tensor") else None


def snake(name: str) -> str:
    """A class's name as Keras makes layer names of it."""
    from keras.src.utils.naming import to_snake_case

    return str(to_snake_case(name))


def unique(name: str, taken: Collection[str]) -> str:
    """A name that is not taken: the name itself, or with a number behind it."""
    found, number = name, 0
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


def stable(config: Any) -> Any:
    """A model's configuration, with names that Keras numbered numbered anew in the order in which they appear."""
    names: dict[str, str] = {}
    counts: dict[str, int] = {}
    for cls, name in _names(config):
        plain = numbered(cls, name)
        if plain is not None and name not in names:
            names[name] = f"{plain} {counts.setdefault(plain, 0)}"
            counts[plain] += 1

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: renamed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [renamed(item) for item in value]
        return names.get(value, value) if isinstance(value, str) else value

    return renamed(config)


def _names(config: Any) -> Iterator[tuple[str, str]]:
    """(class, name) of every layer and operation in a configuration."""
    if isinstance(config, dict):
        inner = config.get("config")
        if isinstance(config.get("class_name"), str) and isinstance(inner, dict) and isinstance(inner.get("name"), str):
            yield config["class_name"], inner["name"]
        for item in config.values():
            yield from _names(item)
    elif isinstance(config, list):
        for item in config:
            yield from _names(item)
