"""Keras models built again layer by layer, some layers replaced by pairs: for copies, and for changed architectures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracker.errors import TrackerError
from tracker.frameworks.keras import is_functional, load
from tracker.frameworks.keras_names import layers_by_name


def is_graph(model: Any) -> bool:
    """Whether a model is a plain graph of layers: made by ``keras.Sequential`` or ``keras.Model(inputs, outputs)``."""
    return isinstance(model, load().Sequential) or is_functional(model)


def replaceable(model: Any) -> dict[str, Any]:
    """The layers that can be replaced, by name: those that are called by the model's graph or by a nested one's.

    Raises:
        TrackerError: the model is none that can be changed: its class has code of its own.
    """
    if not is_graph(model):
        raise TrackerError(
            f"the Keras model {type(model).__name__} is a subclass with a call() of its own, in which layers cannot be "
            "replaced: make it of keras.Input and keras.Model(inputs, outputs), or leave the stage out"
        )
    found, graphs = {}, {""}
    for name, layer in layers_by_name(model).items():
        if name.rpartition("/")[0] not in graphs:
            continue  # a part of a layer
        if is_graph(layer):
            graphs.add(name)
        else:
            found[name] = layer
    return found


def rebuilt(model: Any, pairs: Mapping[str, tuple[Any, Any]]) -> Any:
    """The model built again, its weights not yet filled in.

    Layers keep the names that they have here, whatever is replaced before them.

    Args:
        model: a graph of layers; not changed.
        pairs: two new layers for each name that is replaced.

    Raises:
        TrackerError: as `replaceable`.
    """
    known = layers_by_name(model)
    targets = replaceable(model)
    return _Builder(
        {id(layer): name.rpartition("/")[2] for name, layer in known.items()},
        {id(targets[name]): pair for name, pair in pairs.items()},
    ).model(model)


class _Builder:
    """What one rebuilding has made so far: layers that are used twice are made once."""

    def __init__(self, names: Mapping[int, str], pairs: Mapping[int, tuple[Any, Any]]) -> None:
        self.names, self.pairs = names, pairs
        self.made: dict[int, Any] = {}
        self.seconds: dict[int, Any] = {}

    def model(self, model: Any) -> Any:
        """A graph of layers."""
        keras = load()
        if isinstance(model, keras.Sequential):
            layers = [new for layer in model.layers for new in self.parts(layer)]
            first = model._layers[0] if model._layers else None
            if isinstance(first, keras.layers.InputLayer):
                layers.insert(0, keras.Input(batch_shape=first.batch_shape, dtype=first.dtype, name=first.name))
            return keras.Sequential(layers, name=model.name)
        return keras.models.clone_model(model, clone_function=self.layer, call_function=self.call)

    def layer(self, layer: Any) -> Any:
        """A layer; the first of a pair."""
        if id(layer) not in self.made:
            pair = self.pairs.get(id(layer))
            new = pair[0] if pair else self.model(layer) if is_graph(layer) else layer.from_config(layer.get_config())
            self.made[id(layer)] = new
            name = self.names.get(id(layer))
            if pair:
                self.seconds[id(new)] = pair[1]
                pair[0]._tracker_name, pair[1]._tracker_name = f"{name}.0", f"{name}.1"
            elif name is not None:
                new._tracker_name = name
        return self.made[id(layer)]

    def call(self, layer: Any, *inputs: Any, **keywords: Any) -> Any:
        """A layer's place in the graph, where a pair stands for one."""
        output = layer(*inputs, **keywords)
        return self.seconds[id(layer)](output) if id(layer) in self.seconds else output

    def parts(self, layer: Any) -> list[Any]:
        """A layer's place in a Sequential."""
        new = self.layer(layer)
        return [new, self.seconds[id(new)]] if id(new) in self.seconds else [new]
