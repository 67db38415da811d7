"""Inputs and targets of a model: tensors in containers that may be nested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same containers with everything in them changed."""
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(mapped(item, change) for item in value)
    return change(value)


def on_device(value: Any, device: str, dtype: torch.dtype | None) -> Any:
    """Tensors on a device, floating-point ones in a dtype."""

    def moved(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        return item.to(device, dtype if item.is_floating_point() else None)

    return mapped(value, moved)


def cloned(value: Any) -> Any:
    """Copies of the tensors."""
    return mapped(value, lambda item: item.clone() if isinstance(item, Tensor) else item)


def tensor_bytes(value: Any) -> int:
    """Bytes of the tensors."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return sum(tensor_bytes(item) for item in items)
