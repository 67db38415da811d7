"""Regression: coefficient of determination, root mean squared error, mean absolute error."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from tracker.errors import TrackerError
from tracker.tasks.base import Evaluation, Task

if TYPE_CHECKING:
    import numpy as np

    from tracker.tasks.base import Predict

log = logging.getLogger(__name__)


class Regression(Task):
    """R2 (pooled over outputs, weighted by their variance), RMSE and MAE in the target's unit.

    R2 does not depend on the unit: scaling targets and outputs leaves it as it is. Where no target varies it is, as
    scikit-learn has it, 1 for outputs without error and else 0.
    """

    name: str = "regression"
    tolerance: float = 0.005
    metric: Literal["r2", "rmse", "mae"] = "r2"

    @property
    def primary(self) -> str:
        """The configured metric."""
        return self.metric

    @property
    def higher_is_better(self) -> bool:
        """For R2; the errors are better when lower."""
        return self.metric == "r2"

    def evaluate(self, predict: Predict, batches: Iterable[tuple[Any, Any]]) -> Evaluation:
        """Metrics r2, rmse, mae; scores: mean squared error, mean absolute error, then the targets.

        Raises:
            TrackerError: outputs and targets differ in shape.
        """
        import torch
        from torchmetrics.functional import mean_absolute_error, mean_squared_error

        outputs, targets = [], []
        for inputs, target in batches:
            outputs.append(predict(inputs).double().cpu())
            targets.append(target.double().cpu())
        output, target = torch.cat(outputs), torch.cat(targets)
        if output.ndim == target.ndim + 1 and output.shape[-1] == 1:
            target = target.unsqueeze(-1)
        if output.shape != target.shape:
            raise TrackerError(f"the model gives {tuple(output.shape)} where targets are {tuple(target.shape)}")
        output, target = output.reshape(len(output), -1), target.reshape(len(target), -1)
        error = output - target
        columns = [error.square().mean(1, keepdim=True), error.abs().mean(1, keepdim=True), target]
        scores = torch.cat(columns, dim=1).numpy()
        values = {
            # Not that of torchmetrics, which takes squared errors below 1e-4 for none, whatever the unit.
            "r2": coefficient_of_determination(scores[:, 0], scores[:, 2:]),
            "rmse": float(mean_squared_error(output, target, squared=False)),
            "mae": float(mean_absolute_error(output, target)),
        }
        if self.metric == "r2" and bool((target == target[:1]).all()):
            log.warning("task.metric=r2 tells nothing here, as the targets do not vary; set task.metric=rmse")
        metrics = {self.metric: values.pop(self.metric), **values}
        return Evaluation(metrics, scores)

    def performance(self, scores: np.ndarray) -> float:
        """The primary metric over some samples."""
        squared, absolute, target = scores[:, 0], scores[:, 1], scores[:, 2:]
        if self.metric == "rmse":
            return float(squared.mean() ** 0.5)
        if self.metric == "mae":
            return float(absolute.mean())
        return coefficient_of_determination(squared, target)


def coefficient_of_determination(squared: np.ndarray, target: np.ndarray) -> float:
    """One minus the squared error over the targets' squared distance from their means, both over all outputs.

    Args:
        squared: mean squared error of each sample over its outputs, shape (N,).
        target: shape (N, outputs).

    Returns:
        Where no output's target varies: 1 if there is no error, else 0.
    """
    # By comparison: the mean of equal numbers may differ from them in the last digit.
    varying = target[:, (target != target[:1]).any(axis=0)]
    error = float(squared.sum()) * target.shape[1]
    spread = float(((varying - varying.mean(axis=0)) ** 2).sum())
    if spread == 0:
        return float(error == 0)
    return 1 - error / spread
