"""Ways to send a checkpoint to a receiver that has the one before, or nearly so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tracker.codecs.base import Coder, Context
from tracker.codecs.records import TensorRecord

if TYPE_CHECKING:
    from tracker.update.state import State


@dataclass(frozen=True)
class Mode:
    """One of them.

    Attributes:
        name: in the configuration.
        adds: whether a receiver adds what is decoded to what it has.
        temporal: whether the coder may use what it coded in the update before, at the same place of a tensor.
    """

    name: str
    adds: bool = False
    temporal: bool = False

    def given(self, coded: Mapping[str, Tensor], state: State, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a coder gets.

        Args:
            coded: the part of the checkpoint that is for it.
            state: the receiver's.
            before: the checkpoint before.
        """
        if not self.adds:
            return {name: tensor for name, tensor in coded.items() if not same(tensor, before.get(name))}
        found = {}
        for name, tensor in coded.items():
            has = state.tensors.get(name)
            if has is None or has.shape != tensor.shape:
                found[name] = tensor
            elif not same(tensor, has):
                found[name] = tensor.float() - has.float()
        return found

    def encode(
        self, coder: Coder, given: Mapping[str, Tensor], folder: Path, context: Context, state: State
    ) -> list[TensorRecord]:
        """The coder's files."""
        if not self.adds:
            return coder.encode(given, folder, None, context)
        return coder.encode_difference(given, folder, context, state.carried, self.temporal)


WHOLE = "whole"
MODES = {
    mode.name: mode
    for mode in (Mode("changed"), Mode("difference", adds=True), Mode("context", adds=True, temporal=True))
}


def same(tensor: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors are equal, to the bit where they are NaN."""
    if other is None or tensor.shape != other.shape or tensor.dtype != other.dtype:
        return False
    return bool(torch.equal(tensor, other) or (tensor.isnan() & other.isnan() | (tensor == other)).all())
