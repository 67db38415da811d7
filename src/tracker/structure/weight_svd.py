"""Weight SVD: a layer as a 1x1 convolution (or linear layer) to as many channels as the rank, and the layer from there.

Zhang et al. 2016, "Accelerating Very Deep Convolutional Networks for Classification and Detection" (IEEE TPAMI 38(10)),
describe the pair. The layer becomes a Sequential of the two, as AIMET does it: the second has stride, padding,
dilation and the bias; where there is a bias, the first has one too, of zeros.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from tracker.errors import TrackerError
from tracker.structure.base import split_layers


def rebuild(model: nn.Module, layers: dict[str, Any]) -> nn.Module:
    """Replace layers by pairs of them, their weights not yet filled in.

    Args:
        model: changed in place.
        layers: ranks by layer name.

    Returns:
        The model; another one where the model itself is the layer.

    Raises:
        TrackerError: a name is no such layer, or a rank is none that it can have.
    """
    return split_layers(model, layers, (nn.Conv2d, nn.Linear), largest_rank, split)


def largest_rank(layer: nn.Module, name: str) -> int:
    """The rank of a layer's weight, as a matrix of in channels by everything else.

    Raises:
        TrackerError: the layer is none that can be split so.
    """
    if isinstance(layer, nn.Linear):
        return min(layer.in_features, layer.out_features)
    if (
        not isinstance(layer, nn.Conv2d)
        or layer.groups != 1
        or (layer.padding_mode != "zeros" and (isinstance(layer.padding, str) or any(layer.padding)))
    ):
        raise TrackerError(
            f"the bitstream's structure does not fit the architecture: {name[:80]!r} is no layer that weight SVD can "
            "split; is this the anchor that it was made of?"
        )
    height, width = layer.kernel_size
    return min(layer.in_channels, layer.out_channels * height * width)


def split(layer: nn.Conv2d | nn.Linear, rank: int) -> nn.Sequential:
    """The two layers."""
    keywords: dict[str, Any] = {
        "bias": layer.bias is not None,
        "device": layer.weight.device,
        "dtype": layer.weight.dtype,
    }
    if isinstance(layer, nn.Linear):
        pair = nn.Linear(layer.in_features, rank, **keywords), nn.Linear(rank, layer.out_features, **keywords)
        return nn.Sequential(*pair).train(layer.training)
    dilation = layer.dilation[0], layer.dilation[1]
    first = nn.Conv2d(layer.in_channels, rank, 1, dilation=dilation, **keywords)
    second = nn.Conv2d(
        rank,
        layer.out_channels,
        (layer.kernel_size[0], layer.kernel_size[1]),
        stride=(layer.stride[0], layer.stride[1]),
        padding=layer.padding if isinstance(layer.padding, str) else (layer.padding[0], layer.padding[1]),
        dilation=dilation,
        **keywords,
    )
    return nn.Sequential(first, second).train(layer.training)
