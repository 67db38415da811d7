"""A decoded model beside its anchor, on data of the user's: what ``evaluators="tracker"`` measures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tracker.component import explain
from tracker.errors import TrackerError
from tracker.flavor.arrays import arrays, targets
from tracker.tasks.base import Task
from tracker.tasks.classification import Classification
from tracker.tasks.regression import Regression

if TYPE_CHECKING:
    from mlflow.models import EvaluationResult
    from torch import Tensor

    from tracker.tasks.base import Evaluation

log = logging.getLogger("tracker")
Predict = Callable[[Any], np.ndarray]
TASKS: dict[str, Callable[[], Task]] = {"classifier": Classification, "regressor": Regression}
WORST = "worst_samples.json"


class Options(BaseModel):
    """``evaluator_config``.

    Attributes:
        anchor: what the model is compared with: the URI of an MLflow model, or a function from a batch of inputs to
            outputs; None: the anchor that a model of the flavor ``nnc`` was made from.
        task: scores the outputs; None: by ``model_type``, Classification or Regression.
        tolerance: largest drop that counts as transparent; None: that of the run that made the model, or the task's.
        confidence: of the drop's interval.
        resamples: draws of the bootstrap.
        seed: of the draws.
        worst: how many samples are listed.
        batch_size: samples that go through a model at once.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    anchor: str | Callable[[Any], Any] | None = None
    task: Task | None = None
    tolerance: float | None = Field(default=None, ge=0)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    resamples: int = Field(default=1000, ge=100, le=100_000)
    seed: int = Field(default=0, ge=0)
    worst: int = Field(default=20, ge=0)
    batch_size: int = Field(default=128, ge=1)


def compare(
    model: Any, model_type: str, dataset: Any, run_id: str, config: Mapping[str, Any], model_id: str | None
) -> EvaluationResult | None:
    """Compare a model with its anchor, and log what was found.

    Args:
        model: a pyfunc model.
        model_type: ``classifier``, ``regressor``, or any where the configuration has a task.
        dataset: MLflow's, with targets.
        run_id: to log to.
        config: see `Options`.
        model_id: that metrics are linked to.

    Returns:
        Metrics and the table of the worst samples; None for a model that has no anchor, which other evaluators may
        still serve.

    Raises:
        TrackerError: an option is wrong, the anchor is gone, or there are no targets.
    """
    try:
        options = Options(**config)
    except ValidationError as error:
        raise TrackerError(explain(error, "evaluator_config")) from error
    found = anchor_of(model, options)
    if found is None:
        log.info("the model is none of the flavor nnc, and evaluator_config names no anchor to compare it with")
        return None
    predict, tolerance = found
    kind = options.task or TASKS[model_type]()
    tolerance = options.tolerance if options.tolerance is not None else tolerance
    task = kind if tolerance is None else kind.model_copy(update={"tolerance": tolerance})
    labels = targets(dataset.labels_data)
    signature = model.metadata.signature if model.metadata else None
    inputs = arrays(dataset.features_data, signature.inputs if signature else None)
    comparison = Comparison(task, options, inputs, labels)
    metrics = comparison.measure(predict, model.predict)
    return _logged(metrics, comparison.worst(), run_id, model_id or model.model_id)


class Comparison:
    """Two models on the same samples."""

    def __init__(self, task: Task, options: Options, inputs: Any, targets: np.ndarray) -> None:
        self.task, self.options, self.inputs, self.targets = task, options, inputs, targets
        self.outputs: dict[str, Tensor] = {}
        self.found: dict[str, Evaluation] = {}

    def measure(self, anchor: Predict, decoded: Predict) -> dict[str, float]:
        """The metrics, named as those of a run."""
        from tracker.tasks.bootstrap import drop_interval

        task, options = self.task, self.options
        for which, predict in (("anchor", anchor), ("decoded", decoded)):
            self.found[which], self.outputs[which] = self._evaluated(predict)
        before, after = self.found["anchor"], self.found["decoded"]
        drop = task.drop(before.metrics[task.primary], after.metrics[task.primary])
        metrics = {f"{name}/{which}": value for which, one in self.found.items() for name, value in one.metrics.items()}
        metrics |= {f"performance/{which}": one.metrics[task.primary] for which, one in self.found.items()}
        metrics |= {
            "performance/drop": drop,
            "performance/transparent": float(task.beyond(drop) <= 0),
            "performance/agreement": task.agreement(self.outputs["decoded"], self.outputs["anchor"]),
        }
        if before.scores is not None and after.scores is not None and len(before.scores) > 1:
            interval = drop_interval(
                task, before.scores, after.scores, options.confidence, options.resamples, options.seed
            )
            metrics["performance/drop_low"], metrics["performance/drop_high"] = interval
        return metrics

    def worst(self) -> list[dict[str, Any]]:
        """The samples that lost most, and of those that lost the same the ones whose outputs moved most."""
        before, after = self.outputs["anchor"].double(), self.outputs["decoded"].double()
        moved = (after - before).flatten(1).norm(dim=1).numpy() if before.ndim > 1 else (after - before).abs().numpy()
        lost = np.zeros(len(moved))
        scores = [self.found[which].scores for which in ("anchor", "decoded")]
        if scores[0] is not None and scores[1] is not None and len(scores[0]) == len(moved):
            lost = np.array(
                [self.task.drop(one, two) for one, two in zip(scores[0][:, 0], scores[1][:, 0], strict=True)]
            )
        order = np.lexsort((-moved, -lost))[: self.options.worst]
        return [
            {
                "sample": int(index),
                "target": _plain(self.targets[index]),
                "anchor": _output(self.outputs["anchor"][index]),
                "decoded": _output(self.outputs["decoded"][index]),
                "score lost": float(lost[index]),
                "outputs moved by": float(moved[index]),
            }
            for index in order
        ]

    def _evaluated(self, predict: Predict) -> tuple[Evaluation, Tensor]:
        import torch

        outputs: list[Tensor] = []

        def recorded(inputs: Any) -> Tensor:
            outputs.append(torch.from_numpy(np.array(predict(inputs))))
            return outputs[-1]

        evaluation = self.task.evaluate(recorded, self._batches())
        return evaluation, torch.cat(outputs)

    def _batches(self) -> Iterator[tuple[Any, Any]]:
        import torch

        for start in range(0, len(self.targets), self.options.batch_size):
            part = slice(start, start + self.options.batch_size)
            if isinstance(self.inputs, dict):
                inputs: Any = {name: value[part] for name, value in self.inputs.items()}
            else:
                inputs = self.inputs.iloc[part] if hasattr(self.inputs, "iloc") else self.inputs[part]
            yield inputs, torch.from_numpy(self.targets[part].copy())


def anchor_of(model: Any, options: Options) -> tuple[Predict, float | None] | None:
    """What the anchor predicts, and the tolerance of the run that made the model; None where there is no anchor."""
    import mlflow

    from tracker.flavor.predictor import Predictor

    if isinstance(options.anchor, str):
        return mlflow.pyfunc.load_model(options.anchor).predict, None
    if options.anchor is not None:
        return options.anchor, None
    own = getattr(model, "_model_impl", None)
    if not isinstance(own, Predictor):
        return None
    return _logged_anchor(own, str(model.metadata.run_id))


def _logged_anchor(decoded: Any, run_id: str) -> tuple[Predict, float | None]:
    """The anchor of a decoded model, from the run that evaluated it."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from tracker.flavor.architecture import rebuild
    from tracker.flavor.predictor import Predictor
    from tracker.frameworks import load_framework
    from tracker.tracking.anchors import read_weights

    client = MlflowClient()
    try:
        data = client.get_run(run_id).data
        weights = read_weights(client, data.tags["tracker.anchor.run_id"])
    except (MlflowException, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrackerError(
            f"the anchor that the model was made from is not in this store ({reason}); name one: "
            'evaluator_config={"anchor": "models:/NAME/VERSION"}'
        ) from error
    anchor = decoded.anchor
    built = rebuild(anchor)
    load_framework(anchor.framework).fill(built, weights, "the anchor's weights")
    tolerance = data.params.get("task.tolerance")
    return Predictor(anchor, built, decoded.device).predict, None if tolerance is None else float(tolerance)


def _logged(
    metrics: Mapping[str, float], worst: list[dict[str, Any]], run_id: str, model_id: str | None
) -> EvaluationResult:
    """Metrics and the table in the run, and the result for the caller."""
    import mlflow
    from mlflow.models import EvaluationResult
    from mlflow.models.evaluation.artifacts import JsonEvaluationArtifact

    mlflow.log_metrics(dict(metrics), run_id=run_id, model_id=model_id)
    artifacts = {}
    if worst:
        columns: dict[str, Any] = {name: [row[name] for row in worst] for name in worst[0]}
        mlflow.log_table(columns, WORST, run_id=run_id)
        uri = f"{mlflow.get_run(run_id).info.artifact_uri}/{WORST}"
        artifacts[Path(WORST).stem] = JsonEvaluationArtifact(uri=uri, content=worst)
    return EvaluationResult(metrics=dict(metrics), artifacts=artifacts)


def _output(output: Tensor) -> Any:
    """What fits into a table: the class of a few scores, a number, or a shape."""
    if output.ndim == 1 and len(output) > 1:
        return int(output.argmax())
    return float(output) if output.numel() == 1 else "x".join(map(str, output.shape))


def _plain(target: Any) -> Any:
    return target.item() if np.ndim(target) == 0 else "x".join(map(str, np.shape(target)))
