"""Images that are a little different each time, so that few of them last for long."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def moved(images: Tensor, shift: float, flipped: bool, generator: torch.Generator) -> Tensor:
    """Images, shifted together by a few pixels, and half of them mirrored.

    Args:
        images: shape (n, channels, height, width).
        shift: the largest, as a share of a side; what comes in from outside are the pixels at the edge.
        flipped: whether they are mirrored.
        generator: of the random numbers.
    """
    if flipped:
        chosen = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(chosen.to(images.device)[:, None, None, None], images.flip(3), images)
    reach = [int(length * shift) for length in images.shape[2:]]
    top, left = (int(torch.randint(2 * most + 1, (1,), generator=generator)) for most in reach)
    height, width = images.shape[2:]
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    found = padded[:, :, top : top + height, left : left + width]
    return found.contiguous(memory_format=torch.channels_last)
