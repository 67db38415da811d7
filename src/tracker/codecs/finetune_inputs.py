"""What a model is trained on after compression: the training split's inputs, shuffled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from tracker.codecs.base import Context
from tracker.errors import TrackerError
from tracker.nested import cloned, tensor_bytes

KEPT_BYTES = 512 * 2**20  # of training inputs; more of them are decoded again in every epoch
STEPS, SIZES = 64, (4, 32)  # wanted in an epoch, and the smallest and largest batch for it
SIDE = 64  # of squares cut from large images


class Inputs:
    """The training split's inputs, batch by batch, in another order in each epoch where they fit into memory.

    Inputs that are single tensors are trained on `size` at a time; others in the task's own batches.

    Attributes:
        size: samples, or squares of them, in a batch.
        batches: in an epoch.
    """

    def __init__(self, context: Context, size: int | None, crop: int | None, generator: torch.Generator) -> None:
        """Read the inputs once.

        Args:
            context: with the training split.
            size: of a batch; None to have `STEPS` batches in an epoch, as far as `SIZES` allows.
            crop: the side of random squares to cut.
            generator: of the order and the squares.
        """
        self.context, self.crop, self.generator = context, crop, generator
        self.kept: list[Any] | None = None
        self.joined: Tensor | None = None
        self._read(size)

    def _read(self, wanted: int | None) -> None:
        """Count the inputs, and keep them where they fit."""
        kept, size, batches, samples = [], 0, 0, 0
        for inputs in self.context.training():
            if isinstance(inputs, Tensor):
                samples += len(inputs) * self._squares(inputs)
            else:
                batches += 1
            size += tensor_bytes(inputs)
            if size <= KEPT_BYTES:
                kept.append(inputs)
            else:
                kept = []
        self.size = wanted or min(max(samples // STEPS, SIZES[0]), SIZES[1])
        self.batches = batches - (-samples // self.size)
        if size <= KEPT_BYTES:
            self.kept = kept
            if all(isinstance(inputs, Tensor) for inputs in kept) and len({inputs.shape[1:] for inputs in kept}) == 1:
                self.joined = torch.cat(kept)

    def epoch(self) -> Iterator[tuple[Any, Tensor | None]]:
        """All batches once, each with the places of its samples in `whole`, where there are such."""
        if self.whole is not None:
            for places in torch.randperm(len(self.whole), generator=self.generator).split(self.size):
                yield self.whole[places], places
            return
        for inputs in self._cropped() if self.crop else self._shuffled():
            if isinstance(inputs, Tensor):
                yield from ((part, None) for part in inputs.split(self.size))
            else:
                yield inputs, None

    @property
    def whole(self) -> Tensor | None:
        """All inputs as one tensor, where they fit and every epoch has the same."""
        return None if self.crop else self.joined

    def _shuffled(self) -> Iterable[Any]:
        """The task's batches, in any order where they fit into memory."""
        if self.kept is None:
            return self.context.training()
        order = torch.randperm(len(self.kept), generator=self.generator).tolist()
        return (cloned(self.kept[index]) for index in order)

    def _squares(self, inputs: Tensor) -> int:
        """How many squares of the side `crop` cover as much as an image does."""
        return square_count(inputs, self.crop) if self.crop and inputs.ndim == 4 else 1

    def _cropped(self) -> Iterator[Tensor]:
        """Random squares of all images, those of several images in one batch."""
        assert self.crop is not None
        waiting: list[Tensor] = []
        for inputs in self._shuffled():
            if not isinstance(inputs, Tensor) or inputs.ndim != 4:
                raise TrackerError("crop is for models whose input is one tensor (batch, channels, height, width)")
            for _ in range(square_count(inputs, self.crop)):
                square = random_square(inputs, self.crop, self.generator)
                if waiting and (square.shape[1:] != waiting[0].shape[1:] or sum(map(len, waiting)) >= self.size):
                    yield torch.cat(waiting)
                    waiting = []
                waiting.append(square)
        if waiting:
            yield torch.cat(waiting)


def square_count(images: Tensor, crop: int) -> int:
    """How many squares of a side cover as much as one of the images (N, channels, height, width) does."""
    height, width = images.shape[2:]
    return max(height // crop, 1) * max(width // crop, 1)


def random_square(images: Tensor, crop: int, generator: torch.Generator) -> Tensor:
    """The same square of all images (N, channels, height, width), at a random place, as far as they are that large."""
    height, width = (min(crop, length) for length in images.shape[2:])
    top, left = (
        int(torch.randint(length - size + 1, (1,), generator=generator))
        for length, size in zip(images.shape[2:], (height, width), strict=True)
    )
    return images[:, :, top : top + height, left : left + width]


def side(predict: Callable[[Any, Any], Tensor], model: Any, inputs: Any) -> int | None:
    """The side of the squares on which a model can be trained in place of whole images.

    Args:
        predict: the anchor's.
        model: whose input is probed.
        inputs: one batch.

    Returns:
        `SIDE`, where images are large and the output's size follows the input's, as with super-resolution; or None.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or min(inputs.shape[2:]) < 2 * SIDE:
        return None
    try:
        with torch.no_grad():
            small, large = (predict(model, inputs[:1, :, :length, :length].clone()) for length in (SIDE, 2 * SIDE))
    except Exception:  # a model's own code raises what it likes for an input of another size
        return None
    follows = small.ndim == 4 and [2 * length for length in small.shape[2:]] == list(large.shape[2:])
    return SIDE if follows and min(small.shape[2:]) > 1 else None
