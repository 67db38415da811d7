"""ResNet for CIFAR-10 (He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from tracker.anchors.base import Anchor
from tracker.anchors.files import read_weights
from tracker.anchors.images import normalised


class Block(nn.Module):
    """Two 3x3 convolutions with a parameter-free shortcut (option A of the paper).

    Where the resolution halves, the shortcut takes every second pixel and pads the new channels with zeros, half of
    them on each side.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.stride = stride
        self.padding = (channels - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) to (N, channels, H / stride, W / stride)."""
        shortcut = x
        if self.stride > 1 or self.padding:
            subsampled = x[:, :, :: self.stride, :: self.stride]
            shortcut = F.pad(subsampled, (0, 0, 0, 0, self.padding, self.padding))
        x = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(nn.Module):
    """Three stages of n blocks with 16, 32 and 64 channels; 6 n + 2 layers."""

    def __init__(self, n: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(16, 16, n, stride=1)
        self.layer2 = self._stage(16, 32, n, stride=2)
        self.layer3 = self._stage(32, 64, n, stride=2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(channels_in: int, channels: int, n: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            Block(channels_in, channels, stride), *(Block(channels, channels, 1) for _ in range(n - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) to logits (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


class ResNetCifar(Anchor):
    """A CIFAR-10 ResNet with published weights (akamaster/pytorch_resnet_cifar10, BSD-2-Clause)."""

    depth: Literal[20, 32, 44, 56, 110]
    weights_file: Path | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def build(self) -> nn.Module:
        """The network of the given depth."""
        return CifarResNet((self.depth - 2) // 6)

    def weights(self) -> Mapping[str, Tensor]:
        """The tensors of `weights_file`."""
        return read_weights(
            self.weights_file,
            "anchor.weights_file",
            f"the weights of ResNet-{self.depth} for CIFAR-10, from github.com/akamaster/pytorch_resnet_cifar10",
        )

    def preprocess(self, sample: Any) -> Tensor:
        """A 32x32 image as a normalised tensor (3, 32, 32)."""
        return normalised(sample, self.mean, self.deviation)

    def preprocessing(self) -> str:
        """Mean and deviation."""
        return f"rgb/255, mean {self.mean}, deviation {self.deviation}"
