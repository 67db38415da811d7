"""PyTorch: models are torch.nn.Module, tensors are those of the state dict."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tracker.errors import TrackerError
from tracker.frameworks.base import Framework, refuse_misfits


class PyTorch(Framework):
    """Models that are torch.nn.Module."""

    name: ClassVar[str] = "pytorch"
    title: ClassVar[str] = "PyTorch"

    def fill(self, model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
        """Load a state dict; BatchNorm's counters may be missing, and so may a tied name."""
        state = model.state_dict()
        for name in tensors.keys() & state.keys():
            if tensors[name].shape != state[name].shape:
                raise TrackerError(
                    f"{what} do not fit the architecture: {name} is {tuple(tensors[name].shape)}, but the model has "
                    f"{tuple(state[name].shape)}"
                )
        given = {state[name].data_ptr() for name in tensors.keys() & state.keys()}
        counters = {name for name in state if name.endswith("num_batches_tracked")}
        missing = sorted(
            name for name in state.keys() - tensors.keys() - counters if state[name].data_ptr() not in given
        )
        unexpected = sorted(tensors.keys() - state.keys())
        refuse_misfits(what, missing, unexpected)
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
        model.load_state_dict(dict(tensors), strict=False)

    def state(self, model: nn.Module, given: Collection[str]) -> dict[str, Tensor]:
        """The state dict, less BatchNorm counters that the weights it was filled with do not have."""
        return {
            name: tensor
            for name, tensor in model.state_dict().items()
            if name in given or not name.endswith("num_batches_tracked")
        }

    def ready(self, model: nn.Module, device: str) -> nn.Module:
        """On the device, in evaluation mode."""
        return model.to(device).eval()

    def dtype(self, model: nn.Module) -> torch.dtype | None:
        """That of the parameters where it is one; a model of mixed precision knows itself what to do."""
        dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
        return dtypes.pop() if len(dtypes) == 1 else None

    def copy(self, model: nn.Module) -> nn.Module:
        """A deep copy."""
        return copy.deepcopy(model)

    def describe(self, model: Any) -> str:
        """The module's text form."""
        return str(model)


FRAMEWORK = PyTorch()
