"""Batches of a split, and a model's performance on them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from tracker.anchors.base import Anchor
from tracker.data.base import Samples
from tracker.errors import TrackerError
from tracker.frameworks import layout, load_framework
from tracker.memory import keep_freed_memory
from tracker.nested import cloned, on_device, tensor_bytes
from tracker.tasks.base import Evaluation, Task

if TYPE_CHECKING:
    from torch import Tensor

KEPT_BYTES = 256 * 2**20


class Outputs:
    """What a model gives, batch after batch, on the CPU.

    Attributes:
        batches: so far; None where they are more than 256 MiB.
    """

    def __init__(self) -> None:
        self.batches: list[Tensor] | None = []
        self.size = 0

    def add(self, output: Tensor) -> None:
        """One more."""
        if self.batches is None:
            return
        self.size += tensor_bytes(output)
        if self.size <= KEPT_BYTES:
            self.batches.append(output.float().cpu())
        else:
            self.batches = None


class Batches:
    """The samples of a split, preprocessed and stacked; decoded once if all of them fit into 256 MiB.

    Iterating gives (inputs, targets) on the CPU.

    Raises:
        TrackerError: the split is empty.
    """

    def __init__(self, samples: Samples, anchor: Anchor, task: Task) -> None:
        if len(samples) == 0:
            raise TrackerError("the data set has no samples in a split that is needed; give it more data")
        self.samples, self.anchor, self.task = samples, anchor, task
        self.kept: list[Any] | None = None

    def __len__(self) -> int:
        return -(-len(self.samples) // self.task.batch_size)

    def sample(self, index: int) -> tuple[Any, Any]:
        """One preprocessed sample and its target."""
        sample, target = self.samples[index]
        return self.anchor.preprocess(sample), self.task.target(target)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        if self.kept is not None:
            yield from (cloned(batch) for batch in self.kept)
            return
        kept: list[Any] | None = []
        size = 0
        for inputs, targets in self._loaded():
            size += tensor_bytes(inputs) + tensor_bytes(targets)
            if kept is not None:
                # Copies: a model or a metric may write into what it is given.
                kept = [*kept, cloned((inputs, targets))] if size <= KEPT_BYTES else None
            yield inputs, targets
        self.kept = kept

    def _loaded(self) -> Iterator[tuple[Any, Any]]:
        """Batches from PyTorch's loader, whose errors are told in one line."""
        from torch.utils.data import DataLoader

        # The loader asks for len() in samples, and this object's is in batches.
        samples: Any = _Indexed(self)
        loader: Any = DataLoader(samples, batch_size=self.task.batch_size, num_workers=self.task.workers)
        try:
            yield from loader
        except TrackerError as error:
            # A loader's worker sends its whole traceback as the message, our own line at its end.
            raise TrackerError(str(error).rsplit("tracker.errors.TrackerError: ", 1)[-1]) from error
        except (RuntimeError, TypeError) as error:
            raise TrackerError(
                f"the samples cannot be stacked into batches ({' '.join(str(error).split())[-200:]}); images of "
                "several sizes need task.batch_size=1, or an anchor whose preprocessing makes them equal"
            ) from error


class _Indexed:
    """A map-style data set over `Batches`' samples."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.batches.sample(index)


def evaluate(
    anchor: Anchor,
    model: Any,
    task: Task,
    batches: Batches,
    device: str,
    label: str,
    outputs: Outputs | None = None,
) -> Evaluation:
    """A model's performance.

    Args:
        anchor: knows how to run the model.
        model: put into evaluation mode on the device.
        task: scores the outputs.
        batches: of the split.
        device: to compute on.
        label: for the progress bar.
        outputs: those of the model are added to it.

    Raises:
        TrackerError: the model cannot take the inputs, or the task cannot score the outputs.
    """
    predict = _predictor(anchor, model, task, device)

    def noted(inputs: Any) -> Tensor:
        found = predict(inputs)
        if outputs is not None:
            outputs.add(found)
        return found

    with torch.inference_mode():
        return _shortest(task.evaluate(noted, _moved(batches, device, label)))


def evaluate_until(
    anchor: Anchor,
    model: Any,
    task: Task,
    batches: Batches,
    device: str,
    label: str,
    enough: Callable[[Evaluation], bool],
) -> Evaluation | None:
    """A model's performance, unless it becomes clear on the way that it is not wanted.

    Args:
        anchor, model, task, batches, device, label: as for `evaluate`.
        enough: told what each batch gives; whether to stop.

    Returns:
        What `evaluate` gives; None where it was stopped.

    Raises:
        TrackerError: as `evaluate`.
    """
    predict = _predictor(anchor, model, task, device)
    outputs: list[Tensor] = []

    def recorded(inputs: Any) -> Tensor:
        outputs.append(predict(inputs))
        return outputs[-1]

    with torch.inference_mode():
        for batch in _moved(batches, device, label):
            if enough(task.evaluate(recorded, [batch])):
                return None
        # The metrics over all samples, from what the model gave for each batch.
        again = iter(outputs)
        return _shortest(task.evaluate(lambda inputs: next(again), _moved(batches, device, label)))


def _shortest(evaluation: Evaluation) -> Evaluation:
    """With metrics of single precision as the shortest decimals that stand for them: 0.9825, not 0.98250001."""

    def shortest(value: float) -> float:
        single = np.float32(value)
        return float(str(single)) if float(single) == value and math.isfinite(value) else value

    return dataclasses.replace(
        evaluation, metrics={name: shortest(value) for name, value in evaluation.metrics.items()}
    )


def predict_one(anchor: Anchor, model: Any, task: Task, inputs: Any, device: str) -> Tensor:
    """The output for one preprocessed sample, without a batch dimension, on the CPU.

    Args:
        anchor, model, task, device: as for `evaluate`.
        inputs: the sample.

    Raises:
        TrackerError: the model cannot take it.
    """
    from torch.utils.data import default_collate

    with torch.inference_mode():
        batch = on_device(default_collate([inputs]), device, None)
        return _predictor(anchor, model, task, device)(batch)[0].cpu()


def settle_layout(anchor: Anchor, model: Any, batches: Batches, device: str) -> None:
    """Let an anchor's models be given images as they are convolved fastest; see `layout.settle`.

    Args:
        anchor, model: as for `evaluate`, the model on the CPU.
        batches: of which the first two samples are taken, or one where two cannot be stacked.
        device: that models will be evaluated on; it is for the CPU only.
    """
    if device != "cpu" or anchor.framework != "pytorch":
        return
    from torch.utils.data import default_collate

    dtype = load_framework(anchor.framework).dtype(model)
    try:
        samples = [batches.sample(index)[0] for index in range(min(2, len(batches.samples)))]
        try:
            inputs = default_collate(samples)
        except (RuntimeError, TypeError):
            inputs = default_collate(samples[:1])
    except Exception:  # whatever is wrong with the samples is told where they are evaluated
        return
    layout.settle(anchor, model, on_device(inputs, "cpu", dtype))


def _predictor(anchor: Anchor, model: Any, task: Task, device: str) -> Callable[[Any], Tensor]:
    """The model's outputs for inputs on the device; whatever it raises is told in one line."""
    keep_freed_memory()
    framework = load_framework(anchor.framework)
    model = framework.ready(model, device)
    dtype = framework.dtype(model)

    def predict(inputs: Any) -> Tensor:
        try:
            return layout.predict(anchor, model, on_device(inputs, device, dtype))
        except (TrackerError, MemoryError, OSError):
            raise
        except torch.OutOfMemoryError as error:
            raise TrackerError(f"the device has not enough memory; lower task.batch_size={task.batch_size}") from error
        except Exception as error:  # a model's own code raises what it likes
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise TrackerError(
                f"the model fails on the inputs ({reason}); do anchor={anchor.name} and the data belong together?"
            ) from error

    return predict


def _moved(batches: Batches, device: str, label: str) -> Iterator[tuple[Any, Any]]:
    """Batches on the device, with a progress bar on a terminal."""
    for inputs, targets in tqdm(batches, desc=f"evaluate {label}", unit="batch", disable=None, leave=False):
        yield on_device(inputs, device, None), on_device(targets, device, None)
