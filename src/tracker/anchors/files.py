"""Weights from files, read safely: safetensors, or a state dict with ``weights_only=True``. Nothing is unpickled."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tracker.errors import TrackerError
from tracker.frameworks.pytorch import is_extra, plain

log = logging.getLogger(__name__)


def read_weights(path: Path | None, key: str, what: str) -> Mapping[str, Tensor]:
    """The tensors in a weights file, by name.

    Args:
        path: ``.safetensors``, or anything that ``torch.load(weights_only=True)`` reads: a state dict, or a dict that
            holds one under ``state_dict`` or ``model``; a ``module.`` before every name is taken off, and modules'
            extra states (`get_extra_state`) are left out: the architecture keeps its own.
        key: the config key that names the file, for error messages.
        what: what the file holds and where it comes from, for error messages.

    Raises:
        TrackerError: no path, no such file, or a file that is damaged or needs unpickling.
    """
    if path is None or not path.is_file():
        state = "is not set" if path is None else f"{path} does not exist"
        raise TrackerError(f"{key}: {state}; it is {what}: put it there, or set data.root or {key}")
    try:
        if path.suffix == ".safetensors":
            return weights_only(load_file(path), path, key)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TrackerError(
            f"{key}: {path} holds more than tensors, and unpickling it could run code; "
            "save the tensors of its state_dict() as safetensors and name that file"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise TrackerError(f"{key}: {path} cannot be read as weights ({error}); get the file again") from error
    return state_dict_in(loaded, path, key)


def state_dict_in(loaded: Any, path: Path, key: str) -> Mapping[str, Tensor]:
    """The state dict in what ``torch.load`` returned.

    Raises:
        TrackerError: there is none.
    """
    for inner in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(inner), Mapping):
            loaded = loaded[inner]
    if isinstance(loaded, Mapping):
        loaded = weights_only(loaded, path, key)
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise TrackerError(f"{key}: {path} is not a state dict (names and tensors); save model.state_dict()")
    if loaded and all(name.startswith("module.") for name in loaded):
        return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
    return dict(loaded)


def weights_only(loaded: Mapping[Any, Any], path: Path, key: str) -> dict[str, Any]:
    """A state dict without its modules' extra states, and a warning where there were any."""
    named = {str(name): value for name, value in loaded.items()}
    extra = [name for name in named if is_extra(name)]
    if extra:
        log.warning(
            "%s: %s has extra states of modules (%s%s), which are not read: the architecture keeps its own",
            key,
            path,
            extra[0],
            f" and {len(extra) - 1} more" if len(extra) > 1 else "",
        )
    return plain(named)
