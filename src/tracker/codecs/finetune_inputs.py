"""What a model is trained on after compression: the training split's inputs, shuffled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from tracker.codecs.base import Context
from tracker.errors import TrackerError
from tracker.evaluation import cloned, tensor_bytes

KEPT_BYTES = 512 * 2**20  # of training inputs; more of them are decoded again in every epoch


class Inputs:
    """The training split's inputs, batch by batch, in another order in each epoch where they fit into memory."""

    def __init__(self, context: Context, crop: int | None, generator: torch.Generator) -> None:
        self.context, self.crop, self.generator = context, crop, generator
        self.kept: list[Any] | None = None
        self.joined: Tensor | None = None
        self.batches, self.size = 0, 1
        self._read()

    def _read(self) -> None:
        """Count the batches, and keep them where they fit."""
        kept, size = [], 0
        for inputs in self.context.training():
            self.batches += 1
            size += tensor_bytes(inputs)
            if size <= KEPT_BYTES:
                kept.append(inputs)
            else:
                kept = []
        if size > KEPT_BYTES:
            return
        self.kept = kept
        if all(isinstance(inputs, Tensor) for inputs in kept) and len({inputs.shape[1:] for inputs in kept}) == 1:
            self.joined, self.size = torch.cat(kept), len(kept[0])

    def epoch(self) -> Iterator[tuple[Any, Tensor | None]]:
        """All batches once, each with the places of its samples in `whole`, where there are such."""
        if self.whole is None:
            yield from ((self._cropped(inputs) if self.crop else inputs, None) for inputs in self._shuffled())
            return
        for places in torch.randperm(len(self.whole), generator=self.generator).split(self.size):
            yield self.whole[places], places

    @property
    def whole(self) -> Tensor | None:
        """All inputs as one tensor, where they fit and every epoch has the same."""
        return None if self.crop else self.joined

    def _shuffled(self) -> Iterable[Any]:
        if self.kept is None:
            return self.context.training()
        if self.joined is None:
            order = torch.randperm(len(self.kept), generator=self.generator).tolist()
            return (cloned(self.kept[index]) for index in order)
        return (
            self.joined[part] for part in torch.randperm(len(self.joined), generator=self.generator).split(self.size)
        )

    def _cropped(self, inputs: Any) -> Tensor:
        """A random square of each image, of one batch at the same place."""
        if not isinstance(inputs, Tensor) or inputs.ndim != 4:
            raise TrackerError(
                "finetune's crop is for models whose input is one tensor (batch, channels, height, width)"
            )
        starts = []
        for length in inputs.shape[2:]:
            last = max(length - int(self.crop or 1), 0)
            starts.append(int(torch.randint(last + 1, (1,), generator=self.generator)))
        top, left = starts
        return inputs[:, :, top : top + int(self.crop or 1), left : left + int(self.crop or 1)]
