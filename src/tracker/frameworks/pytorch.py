"""PyTorch: models are torch.nn.Module, tensors are those of the state dict."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tracker.errors import TrackerError
from tracker.frameworks.base import Framework, refuse_misfits

EXTRA = "_extra_state"  # as torch ends the name under which a module's get_extra_state() stands in a state dict


class PyTorch(Framework):
    """Models that are torch.nn.Module."""

    name: ClassVar[str] = "pytorch"
    title: ClassVar[str] = "PyTorch"

    def fill(self, model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
        """Load a state dict; BatchNorm's counters may be missing, and so may a tied name.

        Extra states (`get_extra_state`) stay as the architecture has them, also where they are tensors; see `plain`.
        """
        state, tensors = state_tensors(model), plain(tensors)
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
            if tensor.is_floating_point() or tensor.is_complex():
                tensor.fill_(float("nan"))
        load(model, tensors, what, strict=False)

    def state(self, model: nn.Module, given: Collection[str]) -> dict[str, Tensor]:
        """The state dict, less extra states and BatchNorm counters that the weights it was filled with do not have."""
        return {
            name: tensor
            for name, tensor in state_tensors(model).items()
            if name in given or not name.endswith("num_batches_tracked")
        }

    def ready(self, model: nn.Module, device: str) -> nn.Module:
        """On the device, in evaluation mode; the module of a torch.export program has its mode in its graph."""
        model = model.to(device)
        return model if is_program(model) else model.eval()

    def dtype(self, model: nn.Module) -> torch.dtype | None:
        """That of the parameters where it is one; a model of mixed precision knows itself what to do."""
        dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
        return dtypes.pop() if len(dtypes) == 1 else None

    def copy(self, model: nn.Module) -> nn.Module:
        """A deep copy."""
        return copy.deepcopy(model)

    def describe(self, model: Any) -> str:
        """The module's text form, and extra states, which are no weights either."""
        extra = [f"{name}: {value!r}" for name, value in model.state_dict().items() if is_extra(name)]
        return "\n".join([str(model), *extra])

    def layers(self, model: nn.Module) -> dict[str, int]:
        """Classes of modules; of a torch.export program, whose modules have none, operators that take weights."""
        if is_program(model):
            calls = [node for node in model.graph.nodes if node.op == "call_function"]
            weighted = [node for node in calls if any(given.op == "get_attr" for given in node.all_input_nodes)]
            return dict(Counter(getattr(node.target, "__name__", "").partition(".")[0] for node in weighted))
        owners = (module for module in model.modules() if next(module.parameters(recurse=False), None) is not None)
        return dict(Counter(type(module).__name__ for module in owners))


def is_extra(name: str) -> bool:
    """Whether a name of a state dict is that of a module's extra state."""
    return name.rpartition(".")[2] == EXTRA


def plain(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict without its modules' extra states.

    Those are any objects, and where they are tensors, these are often bytes that the module unpickles. So they are
    neither read from files nor stored in bitstreams: they belong to the architecture, as its strides do.
    """
    return {name: tensor for name, tensor in state.items() if not is_extra(name)}


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's state dict."""
    return plain(model.state_dict())


def load(model: nn.Module, tensors: Mapping[str, Any], what: str, strict: bool = True) -> None:
    """`load_state_dict`, with the versions that the model's modules have, by which some decide how to read.

    Args:
        model: changed in place.
        tensors: by name; their shapes are the model's.
        what: what the tensors are, for the error message.
        strict: whether all names of the model must be there.

    Raises:
        TrackerError: the model does not take them.
    """
    given: Any = OrderedDict(tensors)
    versions = getattr(model.state_dict(), "_metadata", None)
    if versions is not None:
        given._metadata = versions
    try:
        model.load_state_dict(given, strict=strict)
    except Exception as error:  # modules may have code of their own for it
        reason = " ".join(str(error).split())[:200]
        raise TrackerError(
            f"{what} cannot be loaded into the model: its load_state_dict raised {type(error).__name__} ({reason}); "
            "mend that code, or take the weights that belong to it"
        ) from error


def is_program(model: nn.Module) -> TypeGuard[GraphModule]:
    """Whether a model is the module of a torch.export program, which cannot change its mode."""
    return isinstance(model, GraphModule) and "eval" in vars(model)


def refuse_program(model: nn.Module, stage: str) -> None:
    """Refuse the module of a torch.export program for a stage that changes or trains layers.

    Raises:
        TrackerError: it is one.
    """
    if is_program(model):
        raise TrackerError(
            f"{stage} works on a model's layers, and the anchor is a torch.export program, which has none: log the "
            "model with serialization_format='pickle' and set anchor.allow_pickle=true, or take anchor=checkpoint with "
            "anchor.factory"
        )


FRAMEWORK = PyTorch()
