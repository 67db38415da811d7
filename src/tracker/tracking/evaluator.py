"""``mlflow.models.evaluate(..., evaluators="tracker")``: a decoded model beside its anchor, on data of the user's.

    import mlflow

    mlflow.models.evaluate(
        "models:/resnet20@transparent", images, targets=labels, model_type="classifier", evaluators="tracker",
        evaluator_config={"tolerance": 0.01},
    )

See https://mlflow.org/docs/latest/ml/evaluation for evaluators. MLflow loads this module whenever it is imported
itself, so it imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.models import EvaluationResult

MODEL_TYPES = ("classifier", "regressor")


class TrackerEvaluator:
    """What MLflow expects of a ``ModelEvaluator``; `tracker.flavor.comparison` has the options and does the work."""

    @classmethod
    def can_evaluate(cls, *, model_type: str, evaluator_config: Mapping[str, Any], **kwargs: Any) -> bool:
        """Whether there is a task for this type of model."""
        return model_type in MODEL_TYPES or "task" in (evaluator_config or {})

    def evaluate(
        self,
        *,
        model_type: str,
        dataset: Any,
        run_id: str,
        evaluator_config: Mapping[str, Any],
        model: Any = None,
        model_id: str | None = None,
        **kwargs: Any,
    ) -> EvaluationResult | None:
        """See `tracker.flavor.comparison.compare`."""
        from tracker.flavor.comparison import compare

        return compare(model, model_type, dataset, run_id, evaluator_config or {}, model_id)
