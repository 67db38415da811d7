"""Keras weights with their output channel first, as ISO/IEC 15938-17 and its encoders expect them, and back.

Keras keeps a kernel's output channel last: (height, width, input, output). Each layout here is a pair of shapes and
permutations, so that every value is moved and none is changed. The result has PyTorch's shape for the same layer
(transposed convolutions but for the order of their first two dimensions, where PyTorch has the input channel first).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Layout(NamedTuple):
    """A bijection between a variable's values and a tensor.

    Attributes:
        order: the variable's dimensions in the order of the tensor's.
        merge: the first two of them become one, and a dimension of 1 follows (depthwise kernels).
    """

    order: tuple[int, ...]
    merge: bool = False

    def to_tensor(self, values: Tensor) -> Tensor:
        """A variable's values as the tensor."""
        moved = values.permute(self.order).contiguous()
        return moved.reshape(-1, 1, *moved.shape[2:]) if self.merge else moved

    def to_variable(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tensor as values of a variable.

        Args:
            tensor: in this layout.
            shape: the variable's.
        """
        moved = tensor.reshape([shape[dimension] for dimension in self.order])
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return moved.permute(back).contiguous()

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's shape, from the variable's."""
        moved = tuple(shape[dimension] for dimension in self.order)
        return (moved[0] * moved[1], 1, *moved[2:]) if self.merge else moved


def layout(layer: Any, name: str, dimensions: int) -> Layout:
    """The layout of a layer's variable; that of the variable itself where nothing is known of the layer.

    Args:
        layer: owns the variable.
        name: the variable's in the layer, such as ``kernel``.
        dimensions: the variable's.
    """
    same = Layout(tuple(range(dimensions)))
    for kinds, names, make in _table():
        if isinstance(layer, kinds) and name in names:
            return (make(layer, dimensions) if dimensions > 1 else None) or same
    return same


def _matrix(_: Any, dimensions: int) -> Layout | None:
    """(input, output)."""
    return Layout((1, 0)) if dimensions == 2 else None


def _convolution(_: Any, dimensions: int) -> Layout | None:
    """(spatial..., input, output)."""
    return Layout((dimensions - 1, dimensions - 2, *range(dimensions - 2))) if dimensions > 2 else None


def _transposed(_: Any, dimensions: int) -> Layout | None:
    """(spatial..., output, input)."""
    return Layout((dimensions - 2, dimensions - 1, *range(dimensions - 2))) if dimensions > 2 else None


def _depthwise(_: Any, dimensions: int) -> Layout | None:
    """(spatial..., input, multiplier): output channels are all pairs of the last two."""
    order = (dimensions - 2, dimensions - 1, *range(dimensions - 2))
    return Layout(order, merge=True) if dimensions > 2 else None


def _einsum(layer: Any, dimensions: int) -> Layout | None:
    """By the equation ``input,kernel->output``: first those dimensions of the kernel that the input has not."""
    left, _, _ = layer.equation.replace(" ", "").partition("->")
    inputs, _, kernel = left.partition(",")
    if len(kernel) != dimensions or "." in kernel:
        return None
    new = [place for place, label in enumerate(kernel) if label not in inputs]
    return Layout((*new, *(place for place in range(dimensions) if place not in new)))


Row = tuple[tuple[type, ...], frozenset[str], Callable[[Any, int], Layout | None]]


def _table() -> list[Row]:
    """Layers, names of their variables, and the layout; the first row that fits counts."""
    from keras import layers
    from keras.src.layers.rnn.conv_lstm import ConvLSTMCell

    kernel = frozenset({"kernel"})
    return [
        (
            (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
            kernel,
            _transposed,
        ),
        ((layers.DepthwiseConv1D, layers.DepthwiseConv2D), kernel, _depthwise),
        ((layers.SeparableConv1D, layers.SeparableConv2D), frozenset({"depthwise_kernel"}), _depthwise),
        ((layers.SeparableConv1D, layers.SeparableConv2D), frozenset({"pointwise_kernel"}), _convolution),
        ((layers.Conv1D, layers.Conv2D, layers.Conv3D), kernel, _convolution),
        ((ConvLSTMCell,), frozenset({"kernel", "recurrent_kernel"}), _convolution),
        ((layers.EinsumDense,), kernel, _einsum),
        ((layers.Dense,), kernel, _matrix),
        (
            (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell),
            frozenset({"kernel", "recurrent_kernel"}),
            _matrix,
        ),
    ]
