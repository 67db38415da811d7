"""Keras models in PyTorch, weight for weight, for work that looks into PyTorch's layers or trains them.

Layers that PyTorch has are its own there, with hooks and gradients, and the rest runs on TensorFlow
(`keras_foreign`). Weights have the shapes that tracker gives them, see `keras_layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tracker.frameworks.keras import checked, entries, is_functional, load, read
from tracker.frameworks.keras_foreign import Foreign, Shared
from tracker.frameworks.keras_layers import makers
from tracker.frameworks.keras_parts import Weights


class Twin(nn.Module):
    """A Keras model's computation on PyTorch's tensors, in Keras's layout (channels last).

    Attributes:
        names: of its tensors in the Keras model's state, by their own names here, in the order of that state.
    """

    names: Mapping[str, str]

    def __init__(self, model: Any, apart: bool = True) -> None:
        """Rebuild a model.

        Args:
            model: of Keras, with weights; not changed. Its graph is kept, which calls the modules, and layers that
                PyTorch lacks; its weights are copied.
            apart: whether each layer becomes a module; otherwise the model as a whole runs on TensorFlow.
        """
        super().__init__()
        builder = Builder(checked(model))
        self.whole = builder.module(model) if apart else builder.foreign(model)
        for number, variable in enumerate(builder.unused()):
            self.register_buffer(f"unused{number}", builder.buffer(variable))
        names = {id(tensor): name for name, tensor in builder.tensors.items()}
        tensors = [*self.named_parameters(), *self.named_buffers()]
        own = {names[id(tensor)]: name for name, tensor in tensors if id(tensor) in names}
        self.names = {own[name]: name for name in builder.entries}

    def forward(self, inputs: Any) -> Any:
        """What the Keras model gives, in evaluation mode."""
        return self.whole(inputs)

    def state(self) -> dict[str, Tensor]:
        """Its tensors by their names here, in the order of the Keras model's state; they share memory with it."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {name: tensors[name].detach() for name in self.names}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the state of a Keras model of the same architecture."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[self.names[name]])

    def give(self) -> dict[str, Tensor]:
        """The state of a Keras model."""
        return {self.names[name]: tensor for name, tensor in self.state().items()}


class Builder(Weights):
    """What one rebuilding has made so far: layers and weights that are used twice are made once.

    Attributes:
        entries: the model's weights.
        tensors: what they are here, by the same names.
    """

    def __init__(self, model: Any) -> None:
        self.entries = entries(model)
        self.tensors: dict[str, Tensor] = {}
        self.made: dict[int, nn.Module] = {}
        self._by_id = {id(entry.variable): name for name, entry in self.entries.items()}

    def parameter(self, variable: Any) -> nn.Parameter:
        """A variable as a parameter."""
        return self._tensor(variable, nn.Parameter)

    def buffer(self, variable: Any) -> Tensor:
        """A variable as a buffer."""
        return self._tensor(variable, lambda values: values)

    def unused(self) -> list[Any]:
        """The variables that nothing here has taken: integers, and those of layers that the graph does not call."""
        return [entry.variable for name, entry in self.entries.items() if name not in self.tensors]

    def module(self, item: Any) -> nn.Module:
        """A model, a layer or an operation."""
        if id(item) not in self.made:
            graph = graph_of(item) if _called_with_tensors(item) else None
            self.made[id(item)] = Graph(graph, self) if graph is not None else self._layer(item)
        return self.made[id(item)]

    def foreign(self, item: Any) -> Foreign:
        """Anything, run on TensorFlow; what Keras trains in it are parameters, even where they are frozen."""
        layers = item._flatten_layers() if hasattr(item, "_flatten_layers") else ()
        trained = {id(variable) for layer in layers for variable in layer._trainable_variables}
        own = [self.entries[self._by_id[id(variable)]] for variable in getattr(item, "weights", ())]
        own = [entry for entry in own if "float" in entry.variable.dtype]
        tensors = [
            self.parameter(entry.variable) if id(entry.variable) in trained else self.buffer(entry.variable)
            for entry in own
        ]
        return Foreign(item, own, tensors)

    def _tensor(self, variable: Any, made: Callable[[Tensor], Any]) -> Any:
        name = self._by_id[id(variable)]
        if name not in self.tensors:
            self.tensors[name] = made(self.entries[name].layout.to_tensor(read(variable)))
        return self.tensors[name]

    def _layer(self, item: Any) -> nn.Module:
        plain = getattr(item, "compute_dtype", "float32") == "float32" and _called_with_tensors(item)
        changed = getattr(item, "quantization_mode", None) or getattr(item, "lora_enabled", False)
        maker = makers().get(type(item)) if plain and not changed else None
        made = maker(item, self) if maker is not None else None
        return made if made is not None else self.foreign(item)


class Graph(nn.Module):
    """A graph of layers; Keras's own code goes through it."""

    def __init__(self, graph: Any, builder: Builder) -> None:
        super().__init__()
        self.graph = Shared(graph)
        operations = [
            operation for operation in graph.operations if not isinstance(operation, load().layers.InputLayer)
        ]
        self.layers = nn.ModuleList(builder.module(operation) for operation in operations)
        self.places = {id(operation): place for place, operation in enumerate(operations)}

    def forward(self, inputs: Any) -> Any:
        """The outputs, in the structure that the graph has."""
        graph = self.graph.item
        by_name = isinstance(inputs, dict) and not isinstance(graph._inputs_struct, dict)
        flat = [inputs[one.name] for one in graph.inputs] if by_name else load().tree.flatten(inputs)
        given = [_fitting(tensor, one) for tensor, one in zip(flat, graph.inputs, strict=True)]
        return _single(graph._run_through_graph(given, self._call))

    def _call(self, operation: Any) -> Callable[..., Any]:
        """What stands for an operation; of keywords, only what runs on TensorFlow has other than their defaults."""
        module = self.layers[self.places[id(operation)]]
        return module if isinstance(module, Foreign) else lambda *inputs, **_: module(*inputs)


def graph_of(item: Any) -> Any:
    """The graph of a model that is nothing but that; None for what is more, or whose tensors carry masks."""
    keras = load()
    if type(item) is keras.Sequential:
        item = item._functional
    if not is_functional(item):
        return None
    masking = (keras.layers.Masking, keras.layers.Embedding)
    masks = any(isinstance(one, masking) and getattr(one, "mask_zero", True) for one in item.operations)
    return None if masks else item


def _called_with_tensors(item: Any) -> bool:
    """Whether a graph calls a layer with nothing but tensors: no masks, no ``training=True``."""
    calls = [node.arguments for node in item._inbound_nodes]
    return all(value is None or value is False for call in calls for value in call.kwargs.values())


def _fitting(tensor: Any, wanted: Any) -> Any:
    """An input as a graph takes it: Keras adds or takes away a last dimension of 1, and casts."""
    if tensor.ndim == len(wanted.shape) + 1 and tensor.shape[-1] == 1:
        tensor = tensor.squeeze(-1)
    elif tensor.ndim == len(wanted.shape) - 1 and wanted.shape[-1] == 1:
        tensor = tensor.unsqueeze(-1)
    if "float" in wanted.dtype and tensor.is_floating_point():
        return tensor
    return tensor.to(getattr(torch, wanted.dtype))


def _single(outputs: Any) -> Any:
    return outputs[0] if isinstance(outputs, list | tuple) and len(outputs) == 1 else outputs
