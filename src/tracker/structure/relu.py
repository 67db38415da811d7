"""Edit ``relu``: activations with an upper limit (ReLU6) that lost it, for cross-layer equalisation."""

from __future__ import annotations

from typing import Any

from torch import nn

from tracker.errors import TrackerError
from tracker.structure.base import one_of


def rebuild(model: nn.Module, layers: dict[str, Any]) -> nn.Module:
    """Make ReLUs of ReLU6 modules.

    Args:
        model: changed in place.
        layers: by the module's name; nothing more is to be known about them.

    Raises:
        TrackerError: a module is not there, or no ReLU6.
    """
    for name, change in layers.items():
        if change != {}:
            raise TrackerError(
                f"the bitstream's structure says {str(change)[:40]!r} about the activation {name[:80]!r}"
            )
        limited = one_of(model, name, nn.ReLU6)
        plain = nn.ReLU(limited.inplace)
        for parent in list(model.modules()):
            for key, child in parent._modules.items():
                if child is limited:
                    parent._modules[key] = plain
    return model
