"""A network with the weights that the coder will make of it."""

from __future__ import annotations

import copy

from torch import nn

from tracker.bitstream.state import coded_part
from tracker.codecs.base import Context
from tracker.frameworks.pytorch import state_tensors


def approximated(model: nn.Module, context: Context) -> nn.Module:
    """A copy of the model, on the CPU as it is, with the weights that the coder will make.

    Norms and biases stay as they are: they are coded finely.
    """
    twin = copy.deepcopy(model)
    if context.coder is None:
        return twin
    coded = context.coder.approximate(coded_part(context.state(twin)), twin, context) or {}
    tensors = state_tensors(twin)
    for name, values in coded.items():
        if tensors[name].ndim > 1:
            tensors[name].copy_(values)
    return twin
