"""Edit ``prune``: convolutions and norms with fewer channels, and the choice of channels in front of a convolution.

AIMET's channel pruning (He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks") removes input
channels of convolutions, and with them the output channels of the layers before, as far as nothing else reads them.
Where something does (a residual connection), the convolution chooses its channels itself, by a `Select` before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tracker.errors import TrackerError
from tracker.structure.base import count, one_of, replace

KEYS = {"conv": {"in", "out", "groups", "select"}, "norm": {"channels", "expand", "of"}}


class Select(nn.Module):
    """Some channels of its input, in their order.

    The choice belongs to the structure, so the state dict does not have it.
    """

    channels: Tensor

    def __init__(self, channels: Iterable[int]) -> None:
        super().__init__()
        self.register_buffer("channels", torch.tensor(list(channels), dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels before, ...) to (N, channels chosen, ...)."""
        return x.index_select(1, self.channels)

    def extra_repr(self) -> str:
        """The choice, which is a part of the architecture's description."""
        return pack(self.channels.tolist())


class Expand(nn.Module):
    """The channels of its input at some places among channels that are zero."""

    channels: Tensor

    def __init__(self, channels: Iterable[int], total: int) -> None:
        super().__init__()
        self.total = total
        self.register_buffer("channels", torch.tensor(list(channels), dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, ...) to (N, total, ...)."""
        return x.new_zeros(len(x), self.total, *x.shape[2:]).index_copy(1, self.channels, x)

    def extra_repr(self) -> str:
        """The places, which are a part of the architecture's description."""
        return f"{pack(self.channels.tolist())} of {self.total}"


def pack(channels: Iterable[int]) -> str:
    """Channels as a hexadecimal number in which bit i stands for channel i."""
    return f"{sum(1 << channel for channel in channels):x}"


def unpack(value: Any, name: str, length: int, total: int) -> list[int]:
    """The channels that `pack` gave.

    Args:
        value: of an edit.
        name: of the layer, for the error message.
        length: how many there must be.
        total: how many there are to choose from.

    Raises:
        TrackerError: it is no such number.
    """
    fits = isinstance(value, str) and re.fullmatch("[0-9a-f]+", value) and len(value) <= total // 4 + 1
    mask = int(value, 16) if fits else 0
    if mask.bit_length() > total or mask.bit_count() != length:
        raise TrackerError(
            f"the bitstream's structure has {str(value)[:40]!r} for {name[:80]!r}: no choice of {length} of {total}"
        )
    return [channel for channel in range(total) if mask >> channel & 1]


def rebuild(model: nn.Module, layers: dict[str, Any]) -> nn.Module:
    """Make layers narrower, their weights not yet filled in.

    Args:
        model: changed in place.
        layers: by layer name, for a convolution its channels ``in`` and ``out``, its ``groups``, and the channels that
            it is to ``select``; for a norm its ``channels``, and their places (``expand``) among so many (``of``).
            What is not given stays as it is.

    Raises:
        TrackerError: a name is no such layer, or a value is out of range.
    """
    for name, change in layers.items():
        layer = one_of(model, name, (nn.Conv2d, _BatchNorm))
        known = KEYS["conv" if isinstance(layer, nn.Conv2d) else "norm"]
        if not isinstance(change, dict) or not change or not set(change) <= known:
            raise TrackerError(f"the bitstream's structure has {str(change)[:40]!r} for {name[:80]!r}: no such change")
        changed = _convolution(layer, name, change) if isinstance(layer, nn.Conv2d) else _norm(layer, name, change)
        if changed is not layer:
            replace(model, name, changed)
    return model


def _convolution(layer: nn.Conv2d, name: str, change: dict[str, Any]) -> nn.Module:
    """A convolution with other numbers of channels, after a selection where there is one."""
    before = layer.in_channels
    into = count(change.get("in", before), name, before)
    out = count(change.get("out", layer.out_channels), name, layer.out_channels)
    groups = count(change.get("groups", layer.groups), name, layer.groups)
    if into % groups or out % groups:
        raise TrackerError(
            f"the bitstream's structure has {groups} groups for {name[:80]!r}: not a divisor of channels"
        )
    layer.in_channels, layer.out_channels, layer.groups = into, out, groups
    _resize(layer, "weight", (out, into // groups, *layer.kernel_size))
    _resize(layer, "bias", (out,))
    if "select" not in change:
        return layer
    return nn.Sequential(Select(unpack(change["select"], name, into, before)), layer)


def _norm(layer: _BatchNorm, name: str, change: dict[str, Any]) -> nn.Module:
    """A norm with another number of channels, which then take their places among zeros where that is asked for."""
    before = layer.num_features
    layer.num_features = count(change.get("channels", before), name, before)
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        _resize(layer, tensor, (layer.num_features,))
    if "expand" not in change:
        return layer
    total = count(change.get("of", before), name, before)
    return nn.Sequential(layer, Expand(unpack(change["expand"], name, layer.num_features, total), total))


def _resize(layer: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """A parameter or buffer of another shape; where the layer has none, nothing."""
    parameter, buffer = layer._parameters.get(name), layer._buffers.get(name)
    if parameter is not None and parameter.shape != shape:
        made = torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
        layer._parameters[name] = nn.Parameter(made, parameter.requires_grad)
    elif buffer is not None and buffer.shape != shape:
        layer._buffers[name] = torch.empty(shape, dtype=buffer.dtype, device=buffer.device)


def describe(before: nn.Module, after: nn.Module) -> dict[str, Any]:
    """The edit's layers, from a model and what it has become.

    Args:
        before: unchanged.
        after: a changed copy, in which a layer may stand in a Sequential, with a module before it that keeps channels
            (and has them as ``keep_tensor``), or after it one that puts them back (and has ``indices`` and ``mask``).
    """
    changed = dict(after.named_modules())
    layers: dict[str, Any] = {}
    for name, old in before.named_modules():
        if not isinstance(old, nn.Conv2d | _BatchNorm):
            continue
        new: Any = changed[name]
        change: dict[str, Any] = {}
        if isinstance(new, nn.Sequential):
            first, second = list[Any](new)
            if isinstance(old, nn.Conv2d):
                new, change["select"] = second, pack(first.keep_tensor.tolist())
            else:
                new, change["expand"], change["of"] = first, pack(second.indices.tolist()), len(second.mask)
        keys = ("in_channels", "in"), ("out_channels", "out"), ("groups", "groups"), ("num_features", "channels")
        for attribute, key in keys:
            if getattr(old, attribute, None) != getattr(new, attribute, None):
                change[key] = getattr(new, attribute)
        if change:
            layers[name] = change
    return layers
