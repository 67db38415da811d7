"""VDSR (Kim et al. 2016, "Accurate Image Super-Resolution Using Very Deep Convolutional Networks")."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tracker.anchors.base import Anchor
from tracker.anchors.files import read_weights
from tracker.anchors.images import luminance, rgb


class ConvReLU(nn.Module):
    """A 3x3 convolution without bias and its rectifier."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to the same shape."""
        return self.relu(self.conv(x))


class VDSRNetwork(nn.Module):
    """20 convolutions whose output, the residual, is added to the bicubic input."""

    def __init__(self, layers: int = 18, channels: int = 64) -> None:
        super().__init__()
        self.input = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.residual_layer = nn.Sequential(*(ConvReLU(channels) for _ in range(layers)))
        self.output = nn.Conv2d(channels, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Luminance (N, 1, H, W) in 0..1, upscaled bicubically, to the sharper one of the same shape."""
        return x + self.output(self.residual_layer(self.relu(self.input(x))))


class VDSR(Anchor):
    """VDSR with published weights (twtygqyy/pytorch-vdsr, MIT)."""

    weights_file: Path | None = None

    def build(self) -> nn.Module:
        """The network."""
        return VDSRNetwork()

    def weights(self) -> Mapping[str, Tensor]:
        """The tensors of `weights_file`."""
        return read_weights(
            self.weights_file,
            "anchor.weights_file",
            "the weights of VDSR, from github.com/twtygqyy/pytorch-vdsr",
        )

    def preprocess(self, sample: Any) -> Tensor:
        """The luminance of a bicubically upscaled image, shape (1, H, W)."""
        return luminance(rgb(sample))

    def preprocessing(self) -> str:
        """The conversion."""
        return "luminance of ITU-R BT.601 over 255, of the bicubically upscaled image"
