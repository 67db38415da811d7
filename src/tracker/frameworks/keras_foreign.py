"""Whatever runs on TensorFlow as a module of PyTorch, through which gradients pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tracker.frameworks.keras import Entry, load


class Shared:
    """Something of Keras's, which copies of a module have in common: it is run with the module's own weights."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __deepcopy__(self, memo: Any) -> Shared:
        return self


class Foreign(nn.Module):
    """A layer, a model or an operation of Keras, in evaluation mode; its weights are parameters here.

    TensorFlow computes the outputs, and in the backward pass once more with their gradients.
    """

    def __init__(self, item: Any, weights: Sequence[Entry], tensors: Sequence[Tensor]) -> None:
        """Nothing is run yet.

        Args:
            item: what is called.
            weights: its variables that are floating point.
            tensors: parameters and buffers that stand for them, in the layouts of the entries.
        """
        super().__init__()
        self.runner = Shared(_Runner(item, [entry.variable for entry in weights]))
        self.layouts = [(entry.layout, tuple(entry.variable.shape)) for entry in weights]
        for number, tensor in enumerate(tensors):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(f"weight{number}", tensor)
            else:
                self.register_buffer(f"weight{number}", tensor)

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """What the item gives: the same structure, of PyTorch's tensors."""
        tree = load().tree
        leaves = tree.flatten((args, keywords))
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        # Not the tensors: a kind of call would keep those of the first, and their graph.
        plan = Plan(tree.map_structure(lambda _: 0, (args, keywords)), constants, places)
        values = [
            layout.to_variable(getattr(self, f"weight{number}"), shape)
            for number, (layout, shape) in enumerate(self.layouts)
        ]
        call = self.runner.item.call(plan)
        given = [*values, *(leaves[place] for place in places)]
        # Outside of the function, so that gradients have the types that tensors have here.
        found = _Run.apply(call, *(tensor.float() if tensor.is_floating_point() else tensor for tensor in given))
        return tree.pack_sequence_as(call.structure, list(found))


class Plan(NamedTuple):
    """How a call's arguments are put together.

    Attributes:
        structure: of positional and keyword arguments.
        constants: all leaves; None where a tensor stands.
        places: of the tensors.
    """

    structure: Any
    constants: list[Any]
    places: list[int]


class _Runner:
    """A Keras item, called with other values for its variables; compiled for each kind of call."""

    def __init__(self, item: Any, variables: list[Any]) -> None:
        self.item, self.variables = item, variables
        self.calls: dict[str, _Call] = {}

    def call(self, plan: Plan) -> _Call:
        key = repr((plan.constants, plan.places))
        if key not in self.calls:
            self.calls[key] = _Call(self, plan)
        return self.calls[key]


class _Call:
    """One kind of call.

    Attributes:
        structure: of what it gives; known after the first.
    """

    def __init__(self, runner: _Runner, plan: Plan) -> None:
        self.runner, self.plan = runner, plan
        self.structure: Any = None

    def outputs(self, given: list[Any]) -> list[Any]:
        """What the item gives, flat; `given` are TensorFlow's, weights first."""
        keras, count = load(), len(self.runner.variables)
        leaves = list(self.plan.constants)
        for place, tensor in zip(self.plan.places, given[count:], strict=True):
            leaves[place] = tensor
        args, keywords = keras.tree.pack_sequence_as(self.plan.structure, leaves)
        if getattr(self.runner.item, "_call_has_training_arg", False):
            keywords = {**keywords, "training": bool(keywords.get("training"))}
        values = zip(self.runner.variables, given[:count], strict=True)
        with keras.StatelessScope(state_mapping=list(values)):
            found = self.runner.item(*args, **keywords)
        self.structure = keras.tree.map_structure(lambda _: 0, found)  # not the tensors: they would keep their graph
        return list(keras.tree.flatten(found))

    @functools.cached_property
    def forward(self) -> Callable[[list[Any]], list[Any]]:
        """`outputs`, compiled."""
        import tensorflow as tf

        return tf.function(self.outputs, reduce_retracing=True, autograph=False)

    @functools.cached_property
    def backward(self) -> Callable[[list[Any], list[Any]], list[Any]]:
        """The gradients by what is given and is floating point, from those of outputs that are; compiled."""
        import tensorflow as tf

        def gradients(given: list[Any], above: list[Any]) -> list[Any]:
            inner = [tensor for tensor in given if tensor.dtype.is_floating]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(inner)
                found = [output for output in self.outputs(given) if output.dtype.is_floating]
            above = [tf.cast(one, output.dtype) for one, output in zip(above, found, strict=True)]
            return list(tape.gradient(found, inner, output_gradients=above, unconnected_gradients="zero"))

        return tf.function(gradients, reduce_retracing=True, autograph=False)


class _Run(torch.autograd.Function):
    """A call on TensorFlow."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *given: Tensor) -> tuple[Tensor, ...]:
        """Flat outputs, on the device of what is given."""
        ctx.call = call
        ctx.save_for_backward(*given)
        device = given[0].device if given else torch.device("cpu")
        found = tuple(_to_torch(output).to(device) for output in call.forward(_to_tensorflow(given)))
        ctx.mark_non_differentiable(*(output for output in found if not output.is_floating_point()))
        return found

    @staticmethod
    def backward(ctx: Any, *above: Any) -> Any:
        """Gradients by what is given."""
        given = ctx.saved_tensors
        wanted = [gradient for gradient in above if gradient is not None and gradient.is_floating_point()]
        found = iter(ctx.call.backward(_to_tensorflow(given), _to_tensorflow(wanted)))
        return None, *(
            _to_torch(next(found)).to(tensor.device) if tensor.is_floating_point() else None for tensor in given
        )


def _to_tensorflow(tensors: Sequence[Tensor]) -> list[Any]:
    import tensorflow as tf

    return [tf.convert_to_tensor(tensor.detach().cpu().contiguous().numpy()) for tensor in tensors]


def _to_torch(output: Any) -> Tensor:
    import numpy as np
    import tensorflow as tf

    output = tf.convert_to_tensor(output)
    return torch.from_numpy(np.array(tf.cast(output, tf.float32) if output.dtype.is_floating else output))
