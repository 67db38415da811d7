"""Spatial SVD: a convolution of k x l as one of k x 1 and one of 1 x l, with as many channels between as the rank.

Jaderberg et al. 2014, "Speeding up Convolutional Neural Networks with Low Rank Expansions" (BMVC), section 2, scheme 2.
The layer becomes a Sequential of the two, as AIMET does it: strides and padding are shared out by direction, and the
second has the bias.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from tracker.errors import TrackerError
from tracker.structure.base import split_layers


def rebuild(model: nn.Module, layers: dict[str, Any]) -> nn.Module:
    """Replace convolutions by pairs of them, their weights not yet filled in.

    Args:
        model: changed in place.
        layers: ranks by layer name.

    Returns:
        The model; another one where the model itself is the layer.

    Raises:
        TrackerError: a name is no such layer, or a rank is none that it can have.
    """
    return split_layers(model, layers, nn.Conv2d, largest_rank, split)


def largest_rank(layer: nn.Module, name: str) -> int:
    """The rank of a convolution's weight, as a matrix of (in channels, height) by (out channels, width).

    Raises:
        TrackerError: the layer is none that can be split so.
    """
    if (
        not isinstance(layer, nn.Conv2d)
        or layer.groups != 1
        or layer.dilation != (1, 1)
        or isinstance(layer.padding, str)
        or (layer.padding_mode != "zeros" and any(layer.padding))
    ):
        raise TrackerError(
            f"the bitstream's structure does not fit the architecture: {name[:80]!r} is no convolution that spatial "
            "SVD can split; is this the anchor that it was made of?"
        )
    height, width = layer.kernel_size
    return min(layer.in_channels * height, layer.out_channels * width)


def split(layer: nn.Conv2d, rank: int) -> nn.Sequential:
    """The two convolutions."""
    assert not isinstance(layer.padding, str)
    place: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    (height, width), stride, padding = layer.kernel_size, layer.stride, layer.padding
    first = nn.Conv2d(
        layer.in_channels, rank, (height, 1), stride=(stride[0], 1), padding=(padding[0], 0), bias=False, **place
    )
    second = nn.Conv2d(
        rank,
        layer.out_channels,
        (1, width),
        stride=(1, stride[1]),
        padding=(0, padding[1]),
        bias=layer.bias is not None,
        **place,
    )
    return nn.Sequential(first, second).train(layer.training)
