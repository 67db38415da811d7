"""A denoiser with skip connections, trained on photographs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tracker.anchors import Anchor
from tracker.cache import cached_tensors
from tracker.data import Data
from tracker.data.base import Decoded, Samples, Split, arrays_digest
from tracker.tasks.super_resolution import SuperResolution
from untuned.photographs import PATCH, Part, blocks, drawn
from untuned.training import trained


class Noisy(Data):
    """Grey blocks of photographs with Gaussian noise, and without."""

    name: str = "noisy"
    deviation: float = Field(default=0.1, gt=0, description="of the noise, where white is 1")

    def samples(self, split: Split) -> Samples:
        """(block with noise (1, 64, 64), block)."""
        return self._samples(split)

    def training(self) -> Samples:
        """Of the blocks that the anchor has learned."""
        return self._samples("training")

    def digest(self, split: Split) -> str:
        """Over the blocks; the noise follows from the configuration."""
        return arrays_digest(*blocks(split))

    def _samples(self, part: Part) -> Samples:
        clean = grey(blocks(part)[0])
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(len(part)))
        return Decoded(range(len(clean)), lambda i: (clean[i] + self.deviation * noise[i], clean[i]))


class Denoising(SuperResolution):
    """PSNR and SSIM as for super-resolution, of images that are grey already."""

    name: str = "denoising"

    def target(self, sample: Tensor) -> Tensor:
        """The block."""
        return sample


class Network(nn.Module):
    """Two steps down, two up, without normalisation; the output is the input less the noise that is found."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (width, 2 * width, 4 * width)
        self.first = stage(1, sizes[0])
        self.second = stage(sizes[0], sizes[1])
        self.lowest = stage(sizes[1], sizes[2])
        self.up_second = nn.ConvTranspose2d(sizes[2], sizes[1], 2, stride=2)
        self.join_second = stage(2 * sizes[1], sizes[1])
        self.up_first = nn.ConvTranspose2d(sizes[1], sizes[0], 2, stride=2)
        self.join_first = stage(2 * sizes[0], sizes[0])
        self.noise = nn.Conv2d(sizes[0], 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, H, W), sides a multiple of 4, to the same."""
        first = self.first(image)
        second = self.second(F.avg_pool2d(first, 2))
        lowest = self.lowest(F.avg_pool2d(second, 2))
        second = self.join_second(torch.cat([self.up_second(lowest), second], dim=1))
        first = self.join_first(torch.cat([self.up_first(second), first], dim=1))
        return image - self.noise(first)


class Denoiser(Anchor):
    """The network, trained on patches with new noise each time."""

    width: int = Field(default=24, ge=1)
    deviation: float = Field(default=0.1, gt=0, description="as data.deviation")
    steps: int = Field(default=1500, ge=10)
    batch: int = Field(default=16, ge=1)
    rate: float = Field(default=2e-3, gt=0)
    seed: int = Field(default=0, ge=0)

    def build(self) -> nn.Module:
        """(N, 1, H, W) to the same."""
        return Network(self.width)

    def weights(self) -> Mapping[str, Tensor]:
        """From the cache, or after training (a minute or two)."""
        fields = (self.width, self.deviation, self.steps, self.batch, self.rate, self.seed)
        return cached_tensors("untuned-denoiser-" + "-".join(map(str, fields)), self._train)

    def _train(self) -> Mapping[str, Tensor]:
        images, _ = blocks("training")

        def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
            clean = grey(drawn(images, generator, self.batch)[0])
            noise = torch.randn(self.batch, 1, PATCH, PATCH, generator=generator)
            return (model(clean + self.deviation * noise) - clean).abs().mean()

        return trained(self.build, loss, steps=self.steps, rate=self.rate, seed=self.seed, name=self.name)


def stage(into: int, out: int) -> nn.Module:
    """Two convolutions."""
    first, second = nn.Conv2d(into, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
    return nn.Sequential(first, nn.LeakyReLU(0.1), second, nn.LeakyReLU(0.1))


def grey(images: Tensor) -> Tensor:
    """The mean of the colours: (N, 1, H, W) in 0..1, of 0..255 or 0..1."""
    found = images.float().mean(1, keepdim=True)
    return found / 255 if images.dtype == torch.uint8 else found
