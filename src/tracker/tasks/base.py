"""What a task is: metrics with their directions, a tolerance, and scores per sample."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from tracker.component import Component
from tracker.tasks.pictures import Comparison, Pictures

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Predict = Callable[[Any], Tensor]

ROUNDING = 1e-12  # by which a drop may seem to be beyond a tolerance that it reaches exactly


@dataclass(frozen=True)
class Evaluation:
    """A model's performance on a split.

    Attributes:
        metrics: value by metric name; the first is the primary one.
        scores: per-sample scores, shape (N, K) float64, from which `Task.performance` gives the primary metric; None
            where the task has none.
        extras: further arrays with a row for each sample, which the task's own `pictures` need; they are not stored.
        soft: scores of a metric that follows the primary one more smoothly, in its unit and as the mean over samples,
            shape (N,) float64: a search for a working point decides by it; None where there is none, or where
            `Task.calibrated` or `Task.soft` is needed for it.
    """

    metrics: dict[str, float]
    scores: np.ndarray | None
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    soft: np.ndarray | None = None


class Task(Component):
    """Metrics, the tolerance that defines *transparent*, and the split that figures are reported on.

    A new task overrides `evaluate`, `primary` and `higher_is_better`, and `performance` where its primary metric is
    not the mean of the first column of scores.
    """

    # Keys that change neither the metrics' values nor the samples they are measured on.
    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset({"tolerance", "batch_size", "workers", "scores_between"})

    # The dimension of the outputs over which a softmax gives probabilities.
    classes: ClassVar[int | None] = None
    # Whether only the likeliest class counts, so that other probabilities may change much before the metric does.
    by_choice: ClassVar[bool] = True
    # Whether `soft` gives scores; outputs are kept for it.
    by_outputs: ClassVar[bool] = False
    # Whether `calibrated` makes `evaluate` give soft scores; the anchor's outputs are kept for it.
    calibrates: ClassVar[bool] = False

    name: str
    split: Literal["report", "search", "all"] = "report"
    tolerance: float = Field(description="the largest drop that counts as transparent, in the metric's unit")
    batch_size: int = Field(default=128, ge=1)
    workers: int = Field(default=0, ge=0, description="processes that decode samples")

    @field_validator("tolerance")
    @classmethod
    def _not_negative(cls, value: float) -> float:
        # A validator, because the limits of a Field end where a task sets a default of its own.
        if not 0 <= value < math.inf:
            raise ValueError("the tolerance must be 0 or more, and finite")
        return value

    @property
    @abstractmethod
    def primary(self) -> str:
        """The name of the metric that decides."""

    @property
    @abstractmethod
    def higher_is_better(self) -> bool:
        """The primary metric's direction."""

    @abstractmethod
    def evaluate(self, predict: Predict, batches: Iterable[tuple[Any, Any]]) -> Evaluation:
        """Measure a model.

        Args:
            predict: the model's output for a batch of inputs.
            batches: (inputs, targets) on the model's device.
        """

    def prepare(self) -> None:
        """Import what takes seconds to import, so that it does not count as time of evaluation."""
        import torchmetrics  # noqa: F401

    def performance(self, scores: np.ndarray) -> float:
        """The primary metric over some samples' scores.

        Args:
            scores: shape (N, K).
        """
        return float(scores[:, 0].mean())

    @property
    def score_range(self) -> tuple[float, float] | None:
        """Between what the first column of scores lies, where `performance` is its mean; None where there is no bound.

        With it, the evaluation of a sweep's trial, or of a working point on the way to a target, stops as soon as its
        drop can no longer be small enough.
        """
        return None

    def calibrated(self, outputs: Tensor, found: Evaluation) -> tuple[Task, Evaluation]:
        """This task, with soft scores that suit an anchor, for tasks with `calibrates`.

        Args:
            outputs: the anchor's, of all samples.
            found: what `evaluate` gave for them, with its extras.

        Returns:
            The task, whose `evaluate` gives soft scores of any model of that anchor where that is possible, and the
            anchor's performance with its soft scores.
        """
        raise NotImplementedError

    def soft(self, scores: np.ndarray, outputs: Iterable[Tensor], references: Iterable[Tensor]) -> np.ndarray:
        """See `Evaluation.soft`: from a model's distance to its anchor, for tasks with `by_outputs`.

        Args:
            scores: the anchor's, shape (N, K).
            outputs: the model's, batch after batch.
            references: the anchor's for the same inputs.

        Returns:
            Shape (N,); for the anchor itself its own scores.
        """
        raise NotImplementedError

    def agreement(self, output: Tensor, reference: Tensor) -> float:
        """How well a model's outputs agree with the anchor's for the same inputs; needs no labels.

        Args:
            output: the model's.
            reference: the anchor's, of the same shape.

        Returns:
            1 for equal outputs, less for worse: the coefficient of determination, one minus the squared error over
            the reference's variance.
        """
        error = (output.double() - reference.double()).square().mean()
        variance = reference.double().var(correction=0)
        return float(1 - error / variance.clamp(min=1e-30))

    def pictures(self, comparison: Comparison) -> Pictures:
        """Figures and tables of what a codec did to the task, beyond its metrics; by default none.

        It need not evaluate anything again: what it needs of each sample may be kept in `Evaluation.extras`. What goes
        wrong here is told as a warning and costs no run.

        Args:
            comparison: the anchor and the decoded model.
        """
        return Pictures()

    def target(self, sample: Any) -> Any:
        """A raw target of the data set as a tensor or number."""
        return sample

    def drop(self, anchor: float, decoded: float) -> float:
        """Anchor performance less decoded performance, signed so that worse is positive."""
        return anchor - decoded if self.higher_is_better else decoded - anchor

    def beyond(self, drop: float) -> float:
        """How far a drop lies beyond the tolerance; 0 or less where it is within, sums of floats taken into account."""
        return drop - self.tolerance - ROUNDING

    def identity(self) -> dict[str, Any]:
        """What the measured values depend on, besides model and data."""
        fields = self.model_dump(mode="json", exclude=set(self.NOT_IDENTITY))
        return {"task": type(self).__qualname__, **fields}
