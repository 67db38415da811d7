"""Images in the layout in which processors convolve fastest, for the models that take it.

With channels last (https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html) PyTorch's convolutions
reorder nothing on their way. Outputs are the same but for the order of sums. `benchmarks/layout.py` measures the gain.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tracker.nested import cloned, mapped

if TYPE_CHECKING:
    from tracker.anchors.base import Anchor

log = logging.getLogger(__name__)
SAME = 1e-4  # of the largest output: within that, outputs differ by the order of sums only


def channels_last(value: Any) -> Any:
    """A batch of images on the CPU in that layout; anything else, and images of one channel or place, as it is."""
    if isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point() and value.device.type == "cpu":
        return value.contiguous(memory_format=torch.channels_last)
    return value


def predict(anchor: Anchor, model: Any, inputs: Any) -> Tensor:
    """What `Anchor.predict` gives, in the layout that `settle` found to be right.

    Args:
        anchor: knows how to run the model.
        model: of the anchor.
        inputs: as `Anchor.predict` takes them.
    """
    if anchor.images_channels_last and not torch.jit.is_tracing():
        inputs = mapped(inputs, channels_last)
    return anchor.predict(model, inputs)


def settle(anchor: Anchor, model: Any, inputs: Any) -> None:
    """Find out whether an anchor's PyTorch models take images with channels last: whether they run, and give the same.

    Some do not: what a convolution gives is in the same layout then, and cannot be flattened by ``view``.

    Args:
        anchor: remembers it.
        model: its own, on the CPU, in evaluation mode.
        inputs: a batch, as `Anchor.predict` takes it.
    """
    anchor.remember_layout(False)
    if not _images(inputs):
        return
    try:
        with torch.inference_mode():
            wanted = anchor.predict(model, cloned(inputs)).float()
            found = anchor.predict(model, mapped(cloned(inputs), channels_last)).float()
        same = wanted.shape == found.shape and bool((wanted - found).abs().max() <= SAME * wanted.abs().max())
    except Exception as error:  # a model's own code raises what it likes; where it is the inputs', evaluation tells it
        log.debug("images keep their layout: %s", error)
        return
    anchor.remember_layout(same)


def _images(value: Any) -> bool:
    """Whether there is anything for which the layout makes a difference."""
    if isinstance(value, dict | tuple | list):
        return any(map(_images, value.values() if isinstance(value, dict) else value))
    return channels_last(value) is not value
