"""Keras's layers over places (convolutions, pooling, padding) as modules of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tracker.frameworks.keras_parts import Apply, ChannelSecond, Maker, Pads, Weights, activation

KINDS: Sequence[Any] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MAXIMA: Sequence[Any] = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
MEANS: Sequence[Any] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


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
