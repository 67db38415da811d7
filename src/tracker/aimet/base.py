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
from tracker.frameworks.pytorch import FRAMEWORK
from tracker.nested import on_device

if TYPE_CHECKING:
    from tracker.codecs.base import Context

LOG = "aimet.log"


def check_installed(stage: str) -> None:
    """Refuse a stage where aimet-torch is not installed.

    Raises:
        TrackerError: it is not.
    """
    if importlib.util.find_spec("aimet_torch") is None:
        raise TrackerError(f"codec.{stage} needs aimet-torch, which is not installed: pip install 'tracker[aimet]'")


def load() -> None:
    """Import AIMET without what it prints, and take its handlers off the console.

    Raises:
        TrackerError: it is installed, but cannot be imported.
    """
    try:
        with _quiet():
            import aimet_torch  # noqa: F401
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrackerError(
            f"aimet-torch cannot be imported ({reason}); install it anew: pip uninstall aimet-torch, then "
            "pip install 'tracker[aimet]'"
        ) from error
    for logger in loggers():
        logger.handlers.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on the console, and the root logger as it was: AIMET writes its name into it, and may add handlers."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    root.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


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

    def __init__(
        self, model: nn.Module, predict: Callable[[Any, Any], Tensor], pack: Callable[[tuple[Tensor, ...]], Any]
    ) -> None:
        """A model behind its anchor's `predict`.

        Args:
            model: any.
            predict: the anchor's.
            pack: makes of positional tensors what `predict` takes.
        """
        super().__init__()
        self.model, self.predict, self.pack = model, predict, pack

    def forward(self, *tensors: Tensor) -> Tensor:
        """The anchor's own way to run the model."""
        return self.predict(self.model, self.pack(tensors))

    def __deepcopy__(self, memo: dict[int, Any]) -> Positional:
        # AIMET copies the model often; the anchor behind `predict` (with its tokenizer, say) need not go with it.
        made = Positional(copy.deepcopy(self.model, memo), self.predict, self.pack)
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
    values = list(inputs.values()) if isinstance(inputs, dict) else inputs
    tensors = list(values) if isinstance(values, tuple | list) else [values]
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise TrackerError("AIMET's stages need inputs that are tensors; leave them out of this anchor's codec")
    model = model.to(context.device).eval()
    # Floating-point inputs in the model's own type, as in an evaluation.
    example = on_device(tuple(tensor[:1] for tensor in tensors), context.device, FRAMEWORK.dtype(model))
    try:
        with torch.no_grad():
            output = context.predict(model, packer(inputs)(example))
            if isinstance(inputs, Tensor) and _runs_plainly(model, example, output):
                return Prepared(model, example, "")
            ready = Prepared(Positional(model, context.predict, packer(inputs)).eval(), example, "model.")
            ready.model(*example)
    except Exception as error:  # a model's own code raises what it likes
        if isinstance(error, TrackerError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise TrackerError(
            f"AIMET cannot run the model on one calibration sample ({type(error).__name__}: {reason}); a model that "
            "needs more than positional tensors, or more than one sample, cannot go through AIMET's stages"
        ) from error
    return ready


def _runs_plainly(model: nn.Module, example: tuple[Tensor, ...], output: Tensor) -> bool:
    """Whether the model alone does what the anchor's `predict` does."""
    import torch

    try:
        alone = model(*example)
    except Exception:  # as above
        return False
    return isinstance(alone, Tensor) and alone.shape == output.shape and torch.allclose(alone, output, equal_nan=True)


def packer(inputs: Any) -> Callable[[tuple[Tensor, ...]], Any]:
    """What makes of positional tensors a container like a batch of inputs."""
    if isinstance(inputs, dict):
        keys = list(inputs)
        return lambda tensors: dict(zip(keys, tensors, strict=True))
    if isinstance(inputs, tuple | list):
        return list if isinstance(inputs, list) else tuple
    return lambda tensors: tensors[0]
