"""Edit ``fold_norm``: a BatchNorm whose work the layer beside it does now, with its weight and bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tracker.errors import TrackerError
from tracker.structure.base import one_of

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def rebuild(model: nn.Module, layers: dict[str, Any]) -> nn.Module:
    """Leave folded BatchNorms out, and give the layers that took their work over a bias.

    Args:
        model: changed in place.
        layers: by the BatchNorm's name, ``{"into": NAME}``: the layer that it was folded into.

    Raises:
        TrackerError: one of the layers is not there, or not of its kind.
    """
    for name, change in layers.items():
        if not isinstance(change, dict) or set(change) != {"into"} or not isinstance(change["into"], str):
            raise TrackerError(f"the bitstream's structure does not say what {name[:80]!r} was folded into")
        norm, layer = one_of(model, name, NORMS), one_of(model, change["into"], LAYERS)
        if layer.bias is None:
            channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            layer.bias = nn.Parameter(
                torch.zeros(channels, dtype=layer.weight.dtype, device=layer.weight.device),
                requires_grad=layer.weight.requires_grad,
            )
        without(model, norm)
    return model


def without(model: nn.Module, left_out: nn.Module) -> None:
    """Put an identity in every place of a module."""
    identity = nn.Identity()
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is left_out:
                parent._modules[name] = identity
