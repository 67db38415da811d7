"""What modules of PyTorch that stand for Keras's layers are made of."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tracker.frameworks.keras import load


class Weights(ABC):
    """Where a layer's tensors come from."""

    @abstractmethod
    def parameter(self, variable: Any) -> nn.Parameter:
        """A variable as a parameter."""

    @abstractmethod
    def buffer(self, variable: Any) -> Tensor:
        """A variable as a buffer."""

    @abstractmethod
    def foreign(self, item: Any) -> nn.Module:
        """Whatever Keras calls, run on TensorFlow."""


Maker = Callable[[Any, Weights], nn.Module | None]
Pads = Callable[[Sequence[int]], list[int]]  # from the places' lengths, as `F.pad` takes them


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        """What the function gives."""
        return self.function(*inputs)


class ChannelSecond(nn.Module):
    """A module with the channel second, for tensors that have it last; edges are padded as TensorFlow does."""

    def __init__(self, inner: nn.Module, pads: Pads | None = None, value: float = 0.0) -> None:
        super().__init__()
        self.inner, self.pads, self.value = inner, pads, value

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape (batch, places..., channels), before and after."""
        moved = inputs.movedim(-1, 1)
        if self.pads is not None:
            moved = F.pad(moved, self.pads(moved.shape[2:]), value=self.value)
        found: Tensor = self.inner(moved)
        return found.movedim(1, -1)


def activation(function: Any, own: Weights) -> nn.Module:
    """An activation; one that is not Keras's own, or that PyTorch lacks, runs on TensorFlow."""
    known = load().activations
    table: list[tuple[Any, Callable[[Tensor], Tensor]]] = [
        (known.relu, F.relu),
        (known.relu6, F.relu6),
        (known.leaky_relu, functools.partial(F.leaky_relu, negative_slope=0.2)),
        (known.sigmoid, torch.sigmoid),
        (known.hard_sigmoid, F.hardsigmoid),
        (known.tanh, torch.tanh),
        (known.softmax, functools.partial(F.softmax, dim=-1)),
        (known.log_softmax, functools.partial(F.log_softmax, dim=-1)),
        (known.softplus, F.softplus),
        (known.silu, F.silu),
        (known.hard_silu, F.hardswish),
        (known.gelu, F.gelu),
        (known.elu, F.elu),
        (known.selu, F.selu),
        (known.mish, F.mish),
        (known.exponential, torch.exp),
    ]
    if function is None or function is known.linear:
        return nn.Identity()
    found = next((here for theirs, here in table if theirs is function), None)
    return own.foreign(function) if found is None else Apply(found)
