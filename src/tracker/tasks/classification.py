"""Classification: top-1 and top-5 accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PrivateAttr

from tracker.errors import TrackerError
from tracker.tasks.base import Evaluation, Task
from tracker.tasks.chances import logits_of, temperature
from tracker.tasks.pictures import Comparison, Pictures

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from tracker.tasks.base import Predict

CALIBRATED = 0.1  # at most, between the anchor's mean probability of its classes and its accuracy


class Classification(Task):
    """Accuracy in 0..1 over all samples (torchmetrics' multiclass accuracy, micro average)."""

    classes: ClassVar[int | None] = 1
    calibrates: ClassVar[bool] = True

    name: str = "classification"
    tolerance: float = 0.005
    _temperature: float | None = PrivateAttr(default=None)

    @property
    def primary(self) -> str:
        """Top-1 accuracy."""
        return "top1"

    @property
    def higher_is_better(self) -> bool:
        """Yes."""
        return True

    @property
    def score_range(self) -> tuple[float, float]:
        """Right or wrong."""
        return 0.0, 1.0

    def agreement(self, output: Tensor, reference: Tensor) -> float:
        """The share of samples for which both give the same class, in 0..1."""
        return float((output.argmax(dim=1) == reference.argmax(dim=1)).double().mean())

    def evaluate(self, predict: Predict, batches: Iterable[tuple[Any, Any]]) -> Evaluation:
        """Metrics top1 and (from five classes on) top5; scores: 1 where the sample's top-1 is right, else 0.

        Soft scores, of a task that `calibrated` made: 1 less half the Brier score (Brier 1950, "Verification of
        Forecasts Expressed in Terms of Probability").

        Extras: ``classes``, the class of each sample.

        Raises:
            TrackerError: the output is not (batch, classes), a target is no class index, or lies beyond it.
        """
        import torch
        from torchmetrics.functional.classification import multiclass_accuracy

        outputs, targets = [], []
        for inputs, labels in batches:
            outputs.append(predict(inputs).float().cpu())
            targets.append(labels.cpu())
        logits, classes = torch.cat(outputs), torch.cat(targets)
        if logits.ndim != 2:
            raise TrackerError(
                f"task=classification needs outputs of shape (batch, classes), not {tuple(logits.shape)}"
            )
        if classes.shape != logits.shape[:1] or classes.is_floating_point():
            raise TrackerError(
                f"task=classification needs class indices as targets, integers of shape ({len(logits)},), not "
                f"{str(classes.dtype).removeprefix('torch.')} of shape {tuple(classes.shape)}"
            )
        for index in (int(classes.min()), int(classes.max())):
            if not 0 <= index < logits.shape[1]:
                raise TrackerError(
                    f"the data set has class {index}, but the model gives only {logits.shape[1]} classes (from 0); "
                    "anchor and data do not belong together"
                )

        def accuracy(k: int) -> float:
            return float(multiclass_accuracy(logits, classes, num_classes=logits.shape[1], average="micro", top_k=k))

        metrics = {"top1": accuracy(1)}
        if logits.shape[1] >= 5:
            metrics["top5"] = accuracy(5)
        right = (logits.argmax(dim=1) == classes).double().unsqueeze(1)
        soft = self._soft(logits_of(logits), classes)
        return Evaluation(metrics, right.numpy(), {"classes": classes.numpy()}, soft)

    def _soft(self, logits: Tensor, classes: Tensor) -> np.ndarray | None:
        """The soft scores, once there is a temperature."""
        import torch

        if self._temperature is None:
            return None
        chances = (logits.double() / self._temperature).softmax(dim=1)
        missed = chances - torch.nn.functional.one_hot(classes, logits.shape[1])
        soft: np.ndarray = (1 - missed.square().sum(dim=1) / 2).numpy()
        return soft

    def calibrated(self, outputs: Tensor, found: Evaluation) -> tuple[Task, Evaluation]:
        """See `Task.calibrated`: the temperature at which the anchor's probabilities are true ones, for all models.

        Networks are far too certain, most of them, and quantisation makes them less so: their own Brier scores get
        better by that, and noise of samples on which they are certain and wrong covers the rest.
        """
        import torch

        if "classes" not in found.extras:  # of somebody's own `evaluate`
            return self, found
        logits, classes = logits_of(outputs), torch.from_numpy(found.extras["classes"])
        task = self.model_copy()
        task._temperature = temperature(logits, classes)
        confidence = float((logits / task._temperature).softmax(dim=1).amax(dim=1).mean())
        if not abs(confidence - found.metrics["top1"]) <= CALIBRATED:  # nor is a NaN
            return self, found
        return task, dataclasses.replace(found, soft=task._soft(logits, classes))

    def pictures(self, comparison: Comparison) -> Pictures:
        """The change of each class: a plot, and the table ``classes``."""
        from tracker.tasks.classes import by_class, changes

        before, after = comparison.anchor.scores, comparison.decoded.scores
        labels = comparison.decoded.extras.get("classes")
        if before is None or after is None or labels is None:
            return Pictures()
        rows = changes(before[:, 0], after[:, 0], labels, comparison.class_names())
        return Pictures({"classes": lambda: by_class(rows, comparison.title)}, {"classes": rows})
