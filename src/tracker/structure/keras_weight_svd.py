"""Weight SVD of Keras layers: a 1x1 convolution (or a dense layer) to as many channels as the rank, and the layer.

Zhang et al. 2016, "Accelerating Very Deep Convolutional Networks for Classification and Detection" (IEEE TPAMI 38(10)),
describe the pair. The second has stride, padding, dilation, the bias and the activation.
"""

from __future__ import annotations

from typing import Any

from tracker.structure.keras_pair import KerasPair


class WeightSvd(KerasPair):
    """A convolution of one group, or a dense layer, by its input channels."""

    def kinds(self) -> tuple[type, ...]:
        """Two-dimensional convolutions and dense layers."""
        from keras import layers

        return (layers.Conv2D, layers.Dense)

    def largest_rank(self, layer: Any) -> int:
        """The rank of the kernel as a matrix of in channels by everything else."""
        *spatial, into, out = layer.kernel.shape
        for side in spatial:
            out *= side
        return int(min(into, out))

    def split(self, layer: Any, rank: int, name: str) -> tuple[Any, Any]:
        """The two layers."""
        from keras import layers

        last: dict[str, Any] = {"use_bias": layer.use_bias, "activation": layer.activation, "name": f"{name}.1"}
        if isinstance(layer, layers.Dense):
            return (
                layers.Dense(rank, use_bias=False, name=f"{name}.0", dtype=layer.dtype_policy),
                layers.Dense(layer.units, dtype=layer.dtype_policy, **last),
            )
        common = {"data_format": layer.data_format, "dtype": layer.dtype_policy}
        second = layers.Conv2D(
            layer.filters,
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            dilation_rate=layer.dilation_rate,
            **last,
            **common,
        )
        return layers.Conv2D(rank, 1, use_bias=False, name=f"{name}.0", **common), second


PAIR = WeightSvd()
rebuild = PAIR.rebuild
