"""What the anchors of Keras share: their framework, how inputs are laid out, and how a model is run."""

from __future__ import annotations

import contextlib
import random
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from tracker.anchors.base import Anchor, output_tensor
from tracker.frameworks.keras import FRAMEWORK, load

if TYPE_CHECKING:
    from collections.abc import Mapping

_compiled: weakref.WeakKeyDictionary[Any, Callable[[Any], Any]] = weakref.WeakKeyDictionary()


class KerasAnchor(Anchor):
    """The base of anchors whose model is a keras.Model.

    Batches are torch tensors, as for every framework; a model gets them as TensorFlow's, in the layout that
    `preprocess` gave them, and its output becomes a torch tensor again.
    """

    framework: ClassVar[str] = "keras"

    def predict(self, model: Any, inputs: Any) -> Tensor:
        """The output for a batch, in evaluation mode; probabilities where the model ends in a softmax.

        A dict of several outputs is scored by ``logits`` or ``out``, a list by its first. The model may also be one of
        PyTorch that computes the same (`tracker.frameworks.keras_torch`).
        """
        found = model(inputs) if isinstance(model, nn.Module) else self._run(model, inputs)
        if isinstance(found, dict) and len(found) == 1:
            (found,) = found.values()
        return output_tensor(found)

    def _run(self, model: Any, inputs: Any) -> Any:
        """What a Keras model gives, as torch tensors."""
        import tensorflow as tf

        device = _device(inputs)
        with tf.device("/CPU:0") if device.type == "cpu" else contextlib.nullcontext():
            given = _mapped(inputs, lambda tensor: tf.convert_to_tensor(tensor.cpu().numpy()))
            try:
                output = _function(model)(given)
            except Exception as error:  # TensorFlow has its own, and puts the traceback into the message
                raise ValueError(_reason(error)) from error
        return _mapped(output, lambda tensor: _tensor(tensor).to(device))

    def _state(self, model: Any) -> Mapping[str, Tensor]:
        """A filled model's weights, as `weights` gives them."""
        return FRAMEWORK.state(model, ())


def channels_last(sample: Tensor) -> Tensor:
    """A sample with its first dimension, the channel, last, as Keras's layers take it on a CPU."""
    return sample.movedim(0, -1).contiguous() if sample.ndim > 2 else sample


def channels_first(output: Tensor) -> Tensor:
    """A batch of images (N, H, W, C) as (N, C, H, W), as tasks on images take it; other outputs as they are."""
    return output.movedim(-1, 1).contiguous() if output.ndim > 3 else output


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block Keras's initialisers draw the same values every time.

    They take their seeds from Python's own generator, which is put back afterwards.
    """
    kept = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(kept)


def _function(model: Any) -> Callable[[Any], Any]:
    """The model as a TensorFlow function, traced once for each kind of input."""
    function = _compiled.get(model)
    if function is None:
        load()
        import tensorflow as tf

        reference = weakref.ref(model)  # or the function would keep the model, and the model the function

        def forward(inputs: Any) -> Any:
            kept: Any = reference()
            return kept(inputs, training=False)

        function = tf.function(forward, reduce_retracing=True)
        _compiled[model] = function
    return function


def traced_shapes(model: Any, run: Callable[[], Any]) -> dict[int, tuple[int, ...]]:
    """The shapes of what a model's layers give, by the layer's id; of a layer that is called twice the last.

    Args:
        model: to look at.
        run: runs it on one batch.
    """
    shapes: dict[int, tuple[int, ...]] = {}

    def watch(layer: Any) -> None:
        call = layer.call

        def watched(*inputs: Any, **keywords: Any) -> Any:
            output = call(*inputs, **keywords)
            if hasattr(output, "shape"):
                shapes[id(layer)] = tuple(int(size or 1) for size in output.shape)
            return output

        layer.call = watched

    layers = [layer for layer in model._flatten_layers(include_self=False) if "call" not in vars(layer)]
    _compiled.pop(model, None)  # a function that was traced before would not call the layers again
    for layer in layers:
        watch(layer)
    try:
        run()
    finally:
        for layer in layers:
            del layer.call
        _compiled.pop(model, None)
    return shapes


def _reason(error: BaseException) -> str:
    """What is wrong, from a message of TensorFlow's that begins with its traceback."""
    text = str(error)
    for mark in ("Error: ", "Exception: "):
        text = text.rsplit(mark, 1)[-1]
    return " ".join(text.split())


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A structure of tensors with each of them changed."""
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_mapped(item, change) for item in value]
    return change(value)


def _device(inputs: Any) -> torch.device:
    """Where the batch is."""
    while isinstance(inputs, dict | tuple | list):
        inputs = next(iter(inputs.values() if isinstance(inputs, dict) else inputs))
    return inputs.device if isinstance(inputs, Tensor) else torch.device("cpu")


def _tensor(output: Any) -> Tensor:
    """An output of TensorFlow; those of half precision become float32, which tasks compute in."""
    import numpy as np
    import tensorflow as tf

    if output.dtype in (tf.bfloat16, tf.float16):
        output = tf.cast(output, tf.float32)
    return torch.from_numpy(np.array(output))
