"""A network with the weights that the coder will make of it."""

from __future__ import annotations

import copy

from torch import nn

from tracker.bitstream.state import coded_part
from tracker.codecs.base import Context
from tracker.frameworks.pytorch import state_tensors


def approximated(model: nn.Module, context: Context, vectors: bool = True) -> nn.Module:
    """A copy of the model, on the CPU as it is, with the values that the coder will make.

    Args:
        model: left as it is.
        context: with the coder, and what stages before chose.
        vectors: whether norms and biases are changed as well, or stay as they are.
    """
    twin = copy.deepcopy(model)
    if context.coder is None:
        return twin
    coded = context.coder.approximate(coded_part(context.state(twin)), twin, context) or {}
    tensors = state_tensors(twin)
    for name, values in coded.items():
        if vectors or tensors[name].ndim > 1:
            tensors[name].copy_(values)
    return twin
