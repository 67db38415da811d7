"""Models and their state dicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from tracker.errors import TrackerError

PIECE = 1 << 20


def fill(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors into a newly built model, every one of them.

    Floating-point values that the architecture was built with are overwritten by NaN first, so that nothing but the
    given tensors can be what is evaluated.

    Args:
        model: newly built.
        tensors: by the names of the model's state dict. BatchNorm's counters may be missing, and so may a tied name.
        what: what the tensors are, for the error message.

    Raises:
        TrackerError: names or shapes do not fit the architecture.
    """
    state = model.state_dict()
    for name in tensors.keys() & state.keys():
        if tensors[name].shape != state[name].shape:
            raise TrackerError(
                f"{what} do not fit the architecture: {name} is {tuple(tensors[name].shape)}, but the model has "
                f"{tuple(state[name].shape)}"
            )
    given = {state[name].data_ptr() for name in tensors.keys() & state.keys()}
    counters = {name for name in state if name.endswith("num_batches_tracked")}
    missing = sorted(name for name in state.keys() - tensors.keys() - counters if state[name].data_ptr() not in given)
    unexpected = sorted(tensors.keys() - state.keys())
    if missing or unexpected:
        parts = [
            f"{len(names)} {kind}, such as {names[0]}"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise TrackerError(f"{what} do not fit the architecture: {'; '.join(parts)}")
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    model.load_state_dict(dict(tensors), strict=False)


def state_tensors(model: nn.Module, given: Collection[str]) -> dict[str, Tensor]:
    """The model's state dict, less BatchNorm counters that the weights it was filled with do not have."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name in given or not name.endswith("num_batches_tracked")
    }


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
