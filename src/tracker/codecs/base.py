"""What a codec's stages are: transforms, which change the model, and coders, which make bytes of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tracker.component import Component

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class TensorRecord:
    """How a coder coded a tensor: a row of the run's tensors.json.

    Attributes:
        name: the tensor's name in the model.
        step_size: the quantisation step, where there is one for the whole tensor.
        bytes: its share of the bitstream, where the format lets it be told.
        comparable: whether the decoded tensor means the same as the anchor's, so that its error can be told.
    """

    name: str
    step_size: float | None = None
    bytes: int | None = None
    comparable: bool = True


@dataclass(frozen=True)
class Context:
    """What a stage may use besides the model: all of it on the sender's side.

    Attributes:
        predict: the anchor's `predict`, for stages that run the model.
        calibration: makes an iterable of calibration inputs (batches, without labels).
        seed: for whatever is random.
        device: the torch device to compute on.
    """

    predict: Callable[[torch.nn.Module, Any], Tensor]
    calibration: Callable[[], Any]
    seed: int
    device: str


class Stage(Component):
    """One link of a chain."""

    def check(self) -> None:
        """Refuse what cannot work on this machine, before any work starts.

        Raises:
            TrackerError: a package or a command that the stage needs is not installed.
        """

    def prepare(self) -> None:
        """Import what takes seconds to import, so that it does not count as time of encoding or decoding."""


class Transform(Stage):
    """A stage on the sender's side that changes the model."""

    @abstractmethod
    def apply(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """The changed model; the given one may be changed in place."""


class Coder(Stage):
    """The last stage: floating-point tensors to files, and back.

    A coder gets the tensors that it is for: floating point, at least one dimension, not empty, each storage once, all
    values finite. `tracker.bitstream` keeps everything else (integers, scalars, tied names, dtypes) beside it, so that
    every coder restores every state dict.
    """

    shows_progress: ClassVar[bool] = False  # whether `encode` has a progress bar of its own

    @abstractmethod
    def encode(
        self, tensors: Mapping[str, Tensor], folder: Path, model: torch.nn.Module, context: Context
    ) -> list[TensorRecord]:
        """Write the files that the decoder reads.

        Args:
            tensors: by name; float16, bfloat16, float32 or float64, on the CPU.
            folder: empty; the coder's files go directly into it.
            model: the model that the tensors belong to, for coders that use its structure.
            context: what else the sender has.

        Raises:
            TrackerError: the tensors cannot be coded with this configuration.
        """

    @abstractmethod
    def decode(self, folder: Path) -> Mapping[str, Tensor]:
        """The decoded tensors, of any floating-point dtype and with the shapes that were given to `encode`.

        Args:
            folder: holds the files that `encode` wrote, their digest verified.

        Raises:
            TrackerError: the files cannot be decoded.
        """

    def receiver(self) -> Coder:
        """The coder as the receiver has it: without the sender's configuration."""
        return type(self)()
