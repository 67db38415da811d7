"""Patches of the photographs that scikit-image and scikit-learn ship: from which one is a patch?"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tracker.data import Data
from tracker.data.base import Decoded, Samples, Split, arrays_digest

NAMES = (
    *("astronaut", "brick", "camera", "cell", "chelsea", "clock", "coffee", "coins", "grass", "gravel"),
    *("hubble_deep_field", "immunohistochemistry", "moon", "page", "retina", "rocket", "text"),
    *("china", "flower"),
)
BLOCK, PATCH, STRIDE = 64, 32, 16
MEASURED = ("search", "report", "all")  # whose patches do not overlap, or they would seem to tell more than they do
BLOCKS = 64  # of a photograph, at most
SHARES = {"training": 0.45, "calibration": 0.1, "search": 0.225, "report": 0.225}
Part = Split | Literal["training"]


class Photographs(Data):
    """Patches of 32x32, four of each block of 64x64, nine to learn from; no block is in two splits."""

    name: str = "photographs"

    def samples(self, split: Split) -> Samples:
        """(patch (3, 32, 32) in 0..1, index of the photograph)."""
        patches, classes = self.patches(split)
        return Decoded(range(len(patches)), lambda i: (patches[i].float() / 255, int(classes[i])))

    def training(self) -> Samples:
        """Of the blocks that the anchors have learned."""
        patches, classes = self.patches("training")
        return Decoded(range(len(patches)), lambda i: (patches[i].float() / 255, int(classes[i])))

    def patches(self, part: Part) -> tuple[Tensor, Tensor]:
        """Patches (N, 3, 32, 32) uint8 and classes (N,)."""
        found, classes = blocks(part)
        stride = PATCH if part in MEASURED else STRIDE
        windows = found.unfold(2, PATCH, stride).unfold(3, PATCH, stride).permute(0, 2, 3, 1, 4, 5)
        count = windows.shape[1] * windows.shape[2]
        return windows.reshape(-1, 3, PATCH, PATCH), classes.repeat_interleave(count)

    def digest(self, split: Split) -> str:
        """Over the patches."""
        return arrays_digest(*self.patches(split))

    def class_names(self) -> Sequence[str]:
        """Of the photographs."""
        return NAMES


def blocks(part: Part) -> tuple[Tensor, Tensor]:
    """Blocks of a split: (N, 3, 64, 64) uint8, and classes (N,)."""
    if part == "all":
        both = blocks("search"), blocks("report")
        return torch.cat([images for images, _ in both]), torch.cat([classes for _, classes in both])
    before = list(SHARES)[: list(SHARES).index(part)]
    begin = sum(SHARES[name] for name in before)
    images, classes = [], []
    for label, photograph in enumerate(_cut()):
        first, last = round(begin * len(photograph)), round((begin + SHARES[part]) * len(photograph))
        images.append(photograph[first:last])
        classes.append(torch.full((last - first,), label))
    return torch.cat(images), torch.cat(classes)


def drawn(images: Tensor, generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Patches for training, at any place of random blocks, half of them mirrored.

    Args:
        images: as `blocks` gives them.
        generator: of what is drawn.
        count: of patches.

    Returns:
        Patches (count, 3, 32, 32) in 0..1, and the index of each one's block.
    """
    chosen = torch.randint(len(images), (count,), generator=generator)
    places = torch.randint(BLOCK - PATCH + 1, (count, 2), generator=generator).tolist()
    patches = [images[i, :, y : y + PATCH, x : x + PATCH] for i, (y, x) in zip(chosen, places, strict=True)]
    found = torch.stack(patches).float() / 255
    mirrored = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, found.flip(3), found), chosen


@functools.cache
def _cut() -> list[Tensor]:
    """Blocks of each photograph in a mixed order, the same every time."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    found = []
    for label, name in enumerate(NAMES):
        array = load_sample_image(f"{name}.jpg") if name in ("china", "flower") else getattr(data, name)()
        image = torch.from_numpy(np.array(array))
        image = image[..., None].expand(-1, -1, 3) if image.ndim == 2 else image[..., :3]
        tiles = image.permute(2, 0, 1).unfold(1, BLOCK, BLOCK).unfold(2, BLOCK, BLOCK)
        tiles = tiles.permute(1, 2, 0, 3, 4).reshape(-1, 3, BLOCK, BLOCK)
        order = torch.randperm(len(tiles), generator=torch.Generator().manual_seed(label))
        found.append(tiles[order[:BLOCKS]].contiguous())
    return found
