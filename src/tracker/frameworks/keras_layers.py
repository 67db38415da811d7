"""Keras's layers as modules of PyTorch, with the channel last outside and second within."""

from __future__ import annotations

import functools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tracker.frameworks.keras import load


class Weights(ABC):
    """Where a layer's tensors come from."""

    @abstractmethod
    def parameter(self, variable: Any) -> nn.Parameter:
        """A variable as a parameter."""

    @abstractmethod
    def buffer(self, variable: Any) -> Tensor:
        """A variable as a buffer."""

    @abstractmethod
    def foreign(self, item: Any) -> nn.Module:
        """Whatever Keras calls, run on TensorFlow."""


Maker = Callable[[Any, Weights], nn.Module | None]
Pads = Callable[[Sequence[int]], list[int]]  # from the places' lengths, as `F.pad` takes them


KINDS: Sequence[Any] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MAXIMA: Sequence[Any] = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
MEANS: Sequence[Any] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        """What the function gives."""
        return self.function(*inputs)


class ChannelSecond(nn.Module):
    """A module with the channel second, for tensors that have it last; edges are padded as TensorFlow does."""

    def __init__(self, inner: nn.Module, pads: Pads | None = None, value: float = 0.0) -> None:
        super().__init__()
        self.inner, self.pads, self.value = inner, pads, value

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape (batch, places..., channels), before and after."""
        moved = inputs.movedim(-1, 1)
        if self.pads is not None:
            moved = F.pad(moved, self.pads(moved.shape[2:]), value=self.value)
        found: Tensor = self.inner(moved)
        return found.movedim(1, -1)


class Affine(nn.Module):
    """Part of a BatchNorm's scale and shift, where it has not both."""

    def __init__(self, scale: nn.Parameter | None, shift: nn.Parameter | None) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape (..., channels)."""
        scaled = inputs if self.scale is None else inputs * self.scale
        return scaled if self.shift is None else scaled + self.shift


@functools.cache
def makers() -> Mapping[type, Maker]:
    """What makes a module of a layer or an operation, by its class; it gives None for options that PyTorch lacks.

    A class that is derived from one of these is not among them: its code may be another.
    """
    from keras.src.ops import numpy as operations

    layers = load().layers
    by_name: dict[str, Maker] = {
        "Dense": dense,
        "BatchNormalization": batch_norm,
        "LayerNormalization": layer_norm,
        "Embedding": embedding,
        "Activation": lambda layer, own: activation(layer.activation, own),
        "ReLU": relu,
        "LeakyReLU": lambda layer, _: nn.LeakyReLU(layer.negative_slope),
        "Softmax": lambda layer, _: nn.Softmax(layer.axis) if isinstance(layer.axis, int) else None,
        "Flatten": lambda layer, _: nn.Flatten() if layer.data_format == "channels_last" else None,
        "Reshape": lambda layer, _: Apply(lambda given: given.reshape(len(given), *layer.target_shape)),
        "Permute": lambda layer, _: Apply(lambda given: given.permute(0, *layer.dims)),
        "Rescaling": rescaling,
        "UpSampling2D": up_sampling,
        "Concatenate": lambda layer, _: Apply(lambda given: torch.cat(list(given), layer.axis)),
        "Add": merging(torch.add),
        "Subtract": merging(torch.sub),
        "Multiply": merging(torch.mul),
        "Maximum": merging(torch.maximum),
        "Minimum": merging(torch.minimum),
    }
    for name in ("Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise", "ActivityRegularization", "Identity"):
        by_name[name] = nothing
    for name in ("Conv{}D", "DepthwiseConv{}D", "SeparableConv{}D"):
        by_name |= dict.fromkeys(_sized(name), separable if name.startswith("Separable") else convolution)
    by_name |= dict.fromkeys((*_sized("MaxPooling{}D"), *_sized("AveragePooling{}D")), pooling)
    by_name |= dict.fromkeys(_sized("GlobalAveragePooling{}D"), global_pooling(torch.mean))
    by_name |= dict.fromkeys(_sized("GlobalMaxPooling{}D"), global_pooling(torch.amax))
    by_name |= dict.fromkeys(_sized("ZeroPadding{}D"), zero_padding)
    by_name |= dict.fromkeys(_sized("SpatialDropout{}D"), nothing)
    found = {getattr(layers, name): maker for name, maker in by_name.items() if hasattr(layers, name)}
    return found | {
        operations.Add: arithmetic(operator.add),
        operations.Subtract: arithmetic(operator.sub),
        operations.Multiply: arithmetic(operator.mul),
        operations.TrueDivide: arithmetic(operator.truediv),
    }


def _sized(name: str) -> list[str]:
    """A layer's names for one, two and three dimensions; not all of them need be there."""
    return [name.format(dimensions) for dimensions in (1, 2, 3)]


def nothing(layer: Any, own: Weights) -> nn.Module:
    """A layer that only training knows."""
    return nn.Identity()


def activation(function: Any, own: Weights) -> nn.Module:
    """An activation; one that is not Keras's own, or that PyTorch lacks, runs on TensorFlow."""
    known = load().activations
    table: list[tuple[Any, Callable[[Tensor], Tensor]]] = [
        (known.relu, F.relu),
        (known.relu6, F.relu6),
        (known.leaky_relu, functools.partial(F.leaky_relu, negative_slope=0.2)),
        (known.sigmoid, torch.sigmoid),
        (known.hard_sigmoid, F.hardsigmoid),
        (known.tanh, torch.tanh),
        (known.softmax, functools.partial(F.softmax, dim=-1)),
        (known.log_softmax, functools.partial(F.log_softmax, dim=-1)),
        (known.softplus, F.softplus),
        (known.silu, F.silu),
        (known.hard_silu, F.hardswish),
        (known.gelu, F.gelu),
        (known.elu, F.elu),
        (known.selu, F.selu),
        (known.mish, F.mish),
        (known.exponential, torch.exp),
    ]
    if function is None or function is known.linear:
        return nn.Identity()
    return next((Apply(own_) for theirs, own_ in table if theirs is function), None) or own.foreign(function)


def relu(layer: Any, own: Weights) -> nn.Module | None:
    """With a slope below zero and a largest value."""
    if layer.threshold:
        return None
    slope, most = float(layer.negative_slope or 0), layer.max_value
    return Apply(lambda given: F.leaky_relu(given, slope).clamp(max=most) if most else F.leaky_relu(given, slope))


def dense(layer: Any, own: Weights) -> nn.Module:
    """A linear layer, on the last dimension."""
    made = nn.Linear(1, 1, bias=layer.use_bias, device="meta")
    _fill(made, layer.kernel, layer.bias if layer.use_bias else None, own)
    made.out_features, made.in_features = made.weight.shape
    return nn.Sequential(made, activation(layer.activation, own))


def convolution(layer: Any, own: Weights) -> nn.Module | None:
    """A convolution, also a depthwise one, whose groups are the channels that it gets."""
    if layer.data_format != "channels_last":
        return None
    depthwise = type(layer).__name__.startswith("Depthwise")
    groups = layer.kernel.shape[-2] if depthwise else layer.groups
    bias = layer.bias if layer.use_bias else None
    return nn.Sequential(_convolution(layer, layer.kernel, bias, groups, own), activation(layer.activation, own))


def separable(layer: Any, own: Weights) -> nn.Module | None:
    """A depthwise convolution, and one of 1x1."""
    if layer.data_format != "channels_last":
        return None
    first = _convolution(layer, layer.depthwise_kernel, None, layer.depthwise_kernel.shape[-2], own)
    second = KINDS[layer.rank - 1](1, 1, 1, bias=layer.use_bias, device="meta")
    _fill(second, layer.pointwise_kernel, layer.bias if layer.use_bias else None, own)
    return nn.Sequential(first, ChannelSecond(second), activation(layer.activation, own))


def _convolution(layer: Any, kernel: Any, bias: Any, groups: int, own: Weights) -> nn.Module:
    """A layer's convolution with a kernel; padding that is the same on both sides is left to PyTorch."""
    size, stride, dilation = (
        tuple(given if isinstance(given, tuple | list) else [given] * layer.rank)
        for given in (layer.kernel_size, layer.strides, layer.dilation_rate)
    )
    pads, padding = _pads(layer.padding, size, stride, dilation)
    made = KINDS[layer.rank - 1](
        groups, groups, size, stride, padding, dilation, groups, bias=bias is not None, device="meta"
    )
    _fill(made, kernel, bias, own)
    return ChannelSecond(made, pads)


def _fill(made: Any, kernel: Any, bias: Any, own: Weights) -> None:
    made.weight = own.parameter(kernel)
    if bias is not None:
        made.bias = own.parameter(bias)
    if not isinstance(made, nn.Linear):
        made.out_channels, made.in_channels = len(made.weight), made.weight.shape[1] * made.groups


def _pads(
    kind: str, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[Pads | None, tuple[int, ...]]:
    """How TensorFlow pads: what is done before a layer, and what the layer does on both sides."""
    none = (0,) * len(size)
    reach = [step * (length - 1) for length, step in zip(size, dilation, strict=True)]
    if kind == "valid":
        return None, none
    if kind == "causal":
        return (lambda _: [reach[0], 0]), none
    if set(stride) == {1} and not any(total % 2 for total in reach):
        return None, tuple(total // 2 for total in reach)

    def same(lengths: Sequence[int]) -> list[int]:
        found: list[int] = []
        for length, step, total in reversed(list(zip(lengths, stride, reach, strict=True))):
            missing = max((-(-length // step) - 1) * step + total + 1 - length, 0)
            found += [missing // 2, missing - missing // 2]
        return found

    return same, none


def batch_norm(layer: Any, own: Weights) -> nn.Module | None:
    """With Keras's epsilon; scale and shift are its own where it has both."""
    dimensions = layer.input_spec.ndim
    if layer.axis not in (-1, dimensions - 1) or dimensions > 5 or getattr(layer, "renorm", False):
        return None
    both = layer.scale and layer.center
    made = NORMS[dimensions](layer.moving_mean.shape[0], eps=layer.epsilon, affine=both, device="meta")
    made.running_mean, made.running_var = own.buffer(layer.moving_mean), own.buffer(layer.moving_variance)
    made.num_batches_tracked = None
    if both:
        made.weight, made.bias = own.parameter(layer.gamma), own.parameter(layer.beta)
    moved = ChannelSecond(made) if dimensions > 2 else made
    if both or not (layer.scale or layer.center):
        return moved
    scale = own.parameter(layer.gamma) if layer.scale else None
    return nn.Sequential(moved, Affine(scale, own.parameter(layer.beta) if layer.center else None))


def layer_norm(layer: Any, own: Weights) -> nn.Module | None:
    """Over the last dimension."""
    vector = layer.gamma if layer.scale else layer.beta if layer.center else None
    if list(layer.axis) != [-1] or layer.rms_scaling or vector is None:
        return None
    made: Any = nn.LayerNorm(vector.shape[0], eps=layer.epsilon, device="meta")
    made.weight = own.parameter(layer.gamma) if layer.scale else None
    made.bias = own.parameter(layer.beta) if layer.center else None
    return made


def embedding(layer: Any, own: Weights) -> nn.Module:
    """A row for each index."""
    made = nn.Embedding(1, 1, device="meta")
    made.weight = own.parameter(layer.embeddings)
    made.num_embeddings, made.embedding_dim = made.weight.shape
    return nn.Sequential(Apply(lambda indices: indices.long()), made)


def rescaling(layer: Any, own: Weights) -> nn.Module | None:
    """By one scale and one offset."""
    if not all(isinstance(value, int | float) for value in (layer.scale, layer.offset)):
        return None
    return Apply(lambda given: given * layer.scale + layer.offset)


def up_sampling(layer: Any, own: Weights) -> nn.Module | None:
    """By repetition."""
    if layer.interpolation != "nearest" or layer.data_format != "channels_last":
        return None
    return ChannelSecond(nn.Upsample(scale_factor=tuple(map(float, layer.size)), mode="nearest"))


def pooling(layer: Any, own: Weights) -> nn.Module | None:
    """The largest, or the mean without what is padded."""
    if layer.data_format != "channels_last":
        return None
    size, stride = tuple(layer.pool_size), tuple(layer.strides)
    rank = len(size)
    pads, padding = _pads(layer.padding, size, stride, (1,) * rank)
    if type(layer).__name__.startswith("Max"):
        return ChannelSecond(MAXIMA[rank - 1](size, stride, padding), pads, -math.inf)
    # Where PyTorch itself does not pad, it does not know what to leave out of the mean.
    return None if pads is not None else ChannelSecond(MEANS[rank - 1](size, stride, padding, count_include_pad=False))


def global_pooling(function: Callable[..., Tensor]) -> Maker:
    """Over all places."""

    def make(layer: Any, own: Weights) -> nn.Module | None:
        if layer.data_format != "channels_last":
            return None
        return Apply(lambda given: function(given, dim=tuple(range(1, given.ndim - 1)), keepdim=layer.keepdims))

    return make


def zero_padding(layer: Any, own: Weights) -> nn.Module | None:
    """At the edges of all places."""
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return None
    edges = [layer.padding] if isinstance(layer.padding[0], int) else layer.padding
    sides = [0, 0, *(side for pair in reversed(list(edges)) for side in pair)]
    return Apply(lambda given: F.pad(given, sides))


def arithmetic(function: Callable[[Any, Any], Tensor]) -> Maker:
    """Of two tensors, or of a tensor and a number: what ``x + y`` is in a graph."""
    return lambda _, __: Apply(function)


def merging(function: Callable[[Tensor, Tensor], Tensor]) -> Maker:
    """Of a list of tensors, from the first to the last."""
    return lambda _, __: Apply(lambda given: functools.reduce(function, given))
