"""Images as tensors, for the preprocessing of anchors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def rgb(image: Any) -> Tensor:
    """A PIL image or a uint8 or float tensor as RGB in 0..1, shape (3, H, W), float32."""
    if isinstance(image, Tensor):
        return image.float() / 255 if image.dtype == torch.uint8 else image.float()
    array = np.array(image.convert("RGB"))  # a copy: the array of a PIL image cannot be written to
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


def normalised(image: Any, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """RGB in 0..1, less the mean, over the deviation, channel by channel; shape (3, H, W), float32."""
    tensor = rgb(image)
    return (tensor - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


def luminance(image: Tensor) -> Tensor:
    """Y of ITU-R BT.601 with its studio range (16 to 235 of 255), as super-resolution is measured by convention.

    Args:
        image: RGB in 0..1, shape (..., 3, H, W).

    Returns:
        Y over 255, shape (..., 1, H, W).
    """
    r, g, b = image.unbind(dim=-3)
    return ((65.481 * r + 128.553 * g + 24.966 * b + 16.0) / 255.0).unsqueeze(-3)
