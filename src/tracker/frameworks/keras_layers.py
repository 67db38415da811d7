"""Keras's layers as modules of PyTorch, by their class: what there is, and those that know of no places."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tracker.frameworks.keras import load
from tracker.frameworks.keras_parts import Apply, ChannelSecond, Maker, Weights, activation
from tracker.frameworks.keras_spatial import (
    convolution,
    global_pooling,
    pooling,
    separable,
    up_sampling,
    zero_padding,
)

NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


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


def relu(layer: Any, own: Weights) -> nn.Module | None:
    """With a slope below zero and a largest value."""
    if layer.threshold:
        return None
    slope, most = float(layer.negative_slope or 0), layer.max_value
    return Apply(lambda given: F.leaky_relu(given, slope).clamp(max=most) if most else F.leaky_relu(given, slope))


def dense(layer: Any, own: Weights) -> nn.Module:
    """A linear layer, on the last dimension."""
    made = nn.Linear(1, 1, bias=layer.use_bias, device="meta")
    made.weight = own.parameter(layer.kernel)
    if layer.use_bias:
        made.bias = own.parameter(layer.bias)
    made.out_features, made.in_features = made.weight.shape
    return nn.Sequential(made, activation(layer.activation, own))


class Affine(nn.Module):
    """Part of a BatchNorm's scale and shift, where it has not both."""

    def __init__(self, scale: nn.Parameter | None, shift: nn.Parameter | None) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape (..., channels)."""
        scaled = inputs if self.scale is None else inputs * self.scale
        return scaled if self.shift is None else scaled + self.shift


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


def arithmetic(function: Callable[[Any, Any], Tensor]) -> Maker:
    """Of two tensors, or of a tensor and a number: what ``x + y`` is in a graph."""
    return lambda _, __: Apply(function)


def merging(function: Callable[[Tensor, Tensor], Tensor]) -> Maker:
    """Of a list of tensors, from the first to the last."""
    return lambda _, __: Apply(lambda given: functools.reduce(function, given))
