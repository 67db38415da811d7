"""Spatial SVD of Keras convolutions: k x l as k x 1 and 1 x l, with as many channels between as the rank.

Jaderberg et al. 2014, "Speeding up Convolutional Neural Networks with Low Rank Expansions" (BMVC), section 2, scheme 2.
Strides and dilation are shared out by direction; TensorFlow pads each direction by itself, so ``same`` stays exact. The
second has the bias and the activation.
"""

from __future__ import annotations

from typing import Any

from tracker.structure.keras_pair import KerasPair


class SpatialSvd(KerasPair):
    """A convolution of one group by its rows and columns."""

    def kinds(self) -> tuple[type, ...]:
        """Two-dimensional convolutions."""
        from keras import layers

        return (layers.Conv2D,)

    def largest_rank(self, layer: Any) -> int:
        """The rank of the kernel as a matrix of (in channels, height) by (out channels, width)."""
        height, width, into, out = layer.kernel.shape
        return int(min(into * height, out * width))

    def split(self, layer: Any, rank: int, name: str) -> tuple[Any, Any]:
        """The two convolutions."""
        from keras import layers

        (height, width), stride, dilation = layer.kernel_size, layer.strides, layer.dilation_rate
        common = {"padding": layer.padding, "data_format": layer.data_format, "dtype": layer.dtype_policy}
        first = layers.Conv2D(
            rank,
            (height, 1),
            strides=(stride[0], 1),
            dilation_rate=(dilation[0], 1),
            use_bias=False,
            name=f"{name}.0",
            **common,
        )
        second = layers.Conv2D(
            layer.filters,
            (1, width),
            strides=(1, stride[1]),
            dilation_rate=(1, dilation[1]),
            use_bias=layer.use_bias,
            activation=layer.activation,
            name=f"{name}.1",
            **common,
        )
        return first, second


PAIR = SpatialSvd()
rebuild = PAIR.rebuild
