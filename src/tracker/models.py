"""Figures over the tensors of models, and the device they are computed on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from tracker.errors import TrackerError

PIECE = 1 << 20


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the names, dtypes, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def float_elements(tensors: Mapping[str, Tensor]) -> int:
    """Number of values in floating-point tensors, tied ones counted once; times 4 these are the anchor bytes."""
    from tracker.bitstream.state import aliases

    tied = aliases(tensors)
    return sum(t.numel() for name, t in tensors.items() if name not in tied and t.is_floating_point())


def mean_squared_errors(anchor: Mapping[str, Tensor], decoded: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean squared error of each tensor that both have with the same shape."""
    errors = {}
    for name, tensor in anchor.items():
        other = decoded.get(name)
        if other is not None and other.shape == tensor.shape and tensor.numel() and tensor.is_floating_point():
            # In pieces: three temporary copies of a large embedding in double precision would be the run's peak.
            pieces = zip(tensor.detach().reshape(-1).split(PIECE), other.reshape(-1).split(PIECE), strict=True)
            squares = sum(float((a.cpu().double() - b.cpu().double()).square().sum()) for a, b in pieces)
            errors[name] = squares / tensor.numel()
    return errors


def mean_squares(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean square of the values of each floating-point tensor."""
    means = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            pieces = tensor.detach().reshape(-1).split(PIECE)
            means[name] = sum(float(piece.cpu().double().square().sum()) for piece in pieces) / tensor.numel()
    return means


def choose_device(name: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is CUDA where there is one.

    Raises:
        TrackerError: there is no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise TrackerError(f"device={name} is not there; use device=auto or device=cpu") from error
    return name
