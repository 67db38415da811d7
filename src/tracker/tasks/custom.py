"""A task by a user's own callable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tracker.component import call
from tracker.errors import TrackerError
from tracker.tasks.base import Evaluation, Task

if TYPE_CHECKING:
    from tracker.tasks.base import Predict


class Custom(Task):
    """Metrics from a callable ``function(predict, batches)``.

    ``predict(inputs)`` gives the model's output for a batch, ``batches`` yields (inputs, targets) on the model's
    device. It returns a dict of metrics, or (metrics, scores): an array (N,) or (N, K) whose first column's mean is the
    primary metric, for the drop's confidence interval.
    """

    name: str = "custom"
    function: dict[str, Any]
    metric: str
    higher: bool = True
    scores_between: tuple[float, float] | None = None

    @property
    def score_range(self) -> tuple[float, float] | None:
        """As configured."""
        return self.scores_between

    @property
    def primary(self) -> str:
        """The configured metric."""
        return self.metric

    @property
    def higher_is_better(self) -> bool:
        """As configured."""
        return self.higher

    def evaluate(self, predict: Predict, batches: Iterable[tuple[Any, Any]]) -> Evaluation:
        """What the callable returns.

        Raises:
            TrackerError: the callable cannot be found, raises, or returns something else.
        """
        import numpy as np

        returned = call(self.function, "task.function", predict, batches)
        metrics, scores = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
        if not isinstance(metrics, Mapping) or self.metric not in metrics:
            raise TrackerError(
                f"task.function must return a dict of metrics with {self.metric!r} (task.metric), or (metrics, scores)"
            )
        plain = {str(name): float(value) for name, value in metrics.items()}
        ordered = {self.metric: plain.pop(self.metric), **plain}
        if scores is None:
            return Evaluation(ordered, None)
        table = np.asarray(scores, dtype=np.float64)
        table = table.reshape(len(table), -1)
        told, mean = ordered[self.metric], self.performance(table) if len(table) else float("nan")
        if not np.isclose(told, mean, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise TrackerError(
                f"task.function returns {self.metric}={told:.6g}, but its scores' mean is {mean:.6g}: the first column "
                "of scores must have the metric as its mean"
            )
        return Evaluation(ordered, table)
