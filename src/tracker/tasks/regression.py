"""Regression: coefficient of determination, root mean squared error, mean absolute error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from tracker.errors import TrackerError
from tracker.tasks.base import Evaluation, Task

if TYPE_CHECKING:
    import numpy as np

    from tracker.tasks.base import Predict


class Regression(Task):
    """R2 (pooled over outputs, weighted by their variance), RMSE and MAE in the target's unit."""

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
        from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score

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
        values = {
            "r2": float(r2_score(output, target, multioutput="variance_weighted")),
            "rmse": float(mean_squared_error(output, target, squared=False)),
            "mae": float(mean_absolute_error(output, target)),
        }
        error = output - target
        columns = [error.square().mean(1, keepdim=True), error.abs().mean(1, keepdim=True), target]
        metrics = {self.metric: values.pop(self.metric), **values}
        return Evaluation(metrics, torch.cat(columns, dim=1).numpy())

    def performance(self, scores: np.ndarray) -> float:
        """The primary metric over some samples."""
        squared, absolute, target = scores[:, 0], scores[:, 1], scores[:, 2:]
        if self.metric == "rmse":
            return float(squared.mean() ** 0.5)
        if self.metric == "mae":
            return float(absolute.mean())
        spread = ((target - target.mean(axis=0)) ** 2).sum()
        return float(1 - squared.sum() * target.shape[1] / spread)
