"""What the scenarios need of a model, whatever it was built with."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tracker.errors import TrackerError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Framework(ABC):
    """Models of one framework.

    Tensors are torch's whatever the framework, by name, and weights have their output channel first, as ISO/IEC
    15938-17 and its encoders expect.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # for people

    @abstractmethod
    def fill(self, model: Any, tensors: Mapping[str, Tensor], what: str) -> None:
        """Copy tensors into a newly built model, every one of them.

        Floating-point values that the architecture was built with are overwritten by NaN first, so that nothing but
        the given tensors can be what is evaluated.

        Args:
            model: newly built.
            tensors: by the names of `state`.
            what: what the tensors are, for the error message.

        Raises:
            TrackerError: names or shapes do not fit the architecture.
        """

    @abstractmethod
    def state(self, model: Any, given: Collection[str]) -> dict[str, Tensor]:
        """The model's tensors by name.

        Args:
            model: a filled model.
            given: names of the weights that the anchor was filled with; tensors that the framework can do without
                are left out unless they are among them.
        """

    @abstractmethod
    def ready(self, model: Any, device: str) -> Any:
        """The model in evaluation mode on a device."""

    @abstractmethod
    def dtype(self, model: Any) -> torch.dtype | None:
        """The floating-point type that inputs must have; None where the model takes what it gets."""

    @abstractmethod
    def copy(self, model: Any) -> Any:
        """A copy that shares no tensor with the model."""

    @abstractmethod
    def describe(self, model: Any) -> str:
        """The architecture in words: what weights do not tell (activations, strides)."""

    @abstractmethod
    def layers(self, model: Any) -> dict[str, int]:
        """How many layers with weights of their own the model has of each type, in the order in which they come."""


def refuse_misfits(what: str, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Refuse tensors that are not those of an architecture.

    Args:
        what: what the tensors are, for the error message.
        missing: names that the architecture has and the tensors have not.
        unexpected: the other way round.

    Raises:
        TrackerError: there is one of either.
    """
    groups = (("missing", missing), ("unexpected", unexpected))
    parts = [f"{len(names)} {kind}, such as {names[0]}" for kind, names in groups if names]
    if parts:
        raise TrackerError(f"{what} do not fit the architecture: {'; '.join(parts)}")


def load_framework(name: str) -> Framework:
    """The framework of a module of this package.

    Raises:
        TrackerError: it is not installed.
    """
    found = importlib.import_module(f"tracker.frameworks.{name}").FRAMEWORK
    assert isinstance(found, Framework)
    return found
