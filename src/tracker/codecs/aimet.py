"""What all stages on AIMET share (aimet-torch, https://github.com/quic/aimet): its import, its log, its inputs.

AIMET is the sender's alone: nothing that the receiver runs imports this module.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tracker.errors import TrackerError
from tracker.evaluation import on_device
from tracker.frameworks.pytorch import FRAMEWORK

if TYPE_CHECKING:
    from tracker.codecs.base import Context

LOG = "aimet.log"


def check_installed(stage: str) -> None:
    """Refuse a stage where aimet-torch is not installed.

    Raises:
        TrackerError: it is not.
    """
    if importlib.util.find_spec("aimet_torch") is None:
        raise TrackerError(
            f"codec.{stage} needs aimet-torch, which is not installed: pip install 'tracker[aimet]' (or aimet-torch)"
        )


def load() -> None:
    """Import AIMET without what it prints, and take its handlers off the console.

    Raises:
        TrackerError: it is installed, but cannot be imported.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import aimet_torch  # noqa: F401
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrackerError(
            f"aimet-torch cannot be imported ({reason}); install it again: pip install aimet-torch"
        ) from error
    for logger in loggers():
        logger.handlers.clear()


def loggers() -> list[logging.Logger]:
    """AIMET's own: one for each of its areas."""
    from aimet_torch.common.utils import AimetLogger

    return [logging.getLogger(area.value) for area in AimetLogger.LogAreas]


@contextlib.contextmanager
def session(folder: Path) -> Iterator[None]:
    """AIMET's log, and what it prints, into ``aimet.log`` in a folder; nothing on the console."""
    load()
    with (folder / LOG).open("a", encoding="utf-8") as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        for logger in loggers():
            logger.addHandler(handler)
        try:
            with contextlib.redirect_stdout(file):
                yield
        finally:
            for logger in loggers():
                logger.removeHandler(handler)


class Positional(nn.Module):
    """A model as AIMET wants it: positional tensors in, one tensor out."""

    def __init__(self, model: nn.Module, predict: Callable[[Any, Any], Tensor], keys: list[str] | None) -> None:
        super().__init__()
        self.model, self.predict, self.keys = model, predict, keys

    def forward(self, *tensors: Tensor) -> Tensor:
        """The anchor's own way to run the model."""
        inputs: Any = tensors if self.keys is None else dict(zip(self.keys, tensors, strict=True))
        return self.predict(self.model, inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Positional:
        # AIMET copies the model often; the anchor behind `predict` (with its tokenizer, say) need not go with it.
        made = Positional(copy.deepcopy(self.model, memo), self.predict, self.keys)
        made.training = self.training
        memo[id(self)] = made
        return made


@dataclass(frozen=True)
class Prepared:
    """A model that AIMET can run and trace.

    Attributes:
        model: the model itself, or wrapped where its inputs or outputs are not plain tensors.
        example: its positional inputs for one sample.
        prefix: what stands before the layers' names in `model`: empty, or ``model.`` where it is wrapped.
    """

    model: nn.Module
    example: tuple[Tensor, ...]
    prefix: str


def prepared(model: nn.Module, context: Context) -> Prepared:
    """Make a model ready for AIMET, by the first of the calibration inputs.

    Raises:
        TrackerError: there are no inputs, they are no tensors, or the model does not run on them.
    """
    import torch

    inputs = next(iter(context.calibration()), None)
    if inputs is None:
        raise TrackerError("AIMET's stages run the model on calibration inputs, and there are none; add some to data")
    keys = list(inputs) if isinstance(inputs, dict) else None
    values = list(inputs.values()) if isinstance(inputs, dict) else inputs
    tensors = list(values) if isinstance(values, tuple | list) else [values]
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise TrackerError("AIMET's stages need inputs that are tensors; leave them out of this anchor's codec")
    model = model.to(context.device).eval()
    # Floating-point inputs in the model's own type, as in an evaluation.
    example = on_device(tuple(tensor[:1] for tensor in tensors), context.device, FRAMEWORK.dtype(model))
    try:
        with torch.no_grad():
            plain = len(example) == 1 and keys is None and isinstance(model(*example), Tensor)
            ready = Prepared(model, example, "")
            if not plain:
                ready = Prepared(Positional(model, context.predict, keys).eval(), example, "model.")
                ready.model(*example)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrackerError(
            f"AIMET cannot run the model on one calibration sample ({type(error).__name__}: {reason}); a model that "
            "needs more than positional tensors, or more than one sample, cannot go through AIMET's stages"
        ) from error
    return ready
