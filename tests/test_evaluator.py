"""``mlflow.models.evaluate(..., evaluators="tracker")``: a decoded model beside its anchor."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Here, runs

import tracker.flavor
from tracker.data.digits import Digits as DigitsData
from tracker.errors import TrackerError


@pytest.fixture
def store(ready: Path) -> Iterator[str]:
    """The address of the store that `here` logs to, as MLflow's own."""
    before = mlflow.get_tracking_uri()
    uri = f"sqlite:///{ready}/mlruns/mlflow.db"
    mlflow.set_tracking_uri(uri)
    yield uri
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(before)


def data() -> tuple[np.ndarray, np.ndarray]:
    samples = DigitsData().samples("report")
    images = np.stack([np.asarray(samples[index][0]) for index in range(200)])
    return images, np.array([int(samples[index][1]) for index in range(200)])


def compared(model: str, images: Any, labels: Any, **config: Any) -> Any:
    return mlflow.models.evaluate(
        model, images, targets=labels, model_type="classifier", evaluators="tracker", evaluator_config=config
    )


def test_a_decoded_model_is_compared_with_its_anchor(here: Here, ready: Path, store: str) -> None:
    assert here("+codec=nnc", "codec.nnc.qp=-8", "tracking.registered_model=true").returncode == 0
    (run,) = runs(ready, "compression")
    images, labels = data()
    result = compared("models:/digits/1", images.reshape(200, -1), labels, worst=7)

    # Against the two models, run here.
    from tracker.anchors.digits import Digits

    anchor = Digits(name="digits")
    float_model = anchor.build()
    float_model.load_state_dict(anchor.weights())
    with torch.inference_mode():
        before = float_model.eval()(torch.from_numpy(images)).numpy()
        after = tracker.flavor.load_model("models:/digits/1")(torch.from_numpy(images)).numpy()
    right = [(output.argmax(1) == labels) for output in (before, after)]
    metrics = result.metrics
    assert metrics["performance/anchor"] == pytest.approx(right[0].mean())
    assert metrics["performance/decoded"] == metrics["top1/decoded"] == pytest.approx(right[1].mean())
    assert metrics["performance/drop"] == pytest.approx(right[0].mean() - right[1].mean())
    assert metrics["performance/agreement"] == pytest.approx((before.argmax(1) == after.argmax(1)).mean())
    assert metrics["performance/drop_low"] <= metrics["performance/drop"] <= metrics["performance/drop_high"]
    assert metrics["performance/drop"] > 0.005 and metrics["performance/transparent"] == 0

    worst = result.artifacts["worst_samples"].content
    lost = {int(index) for index in np.flatnonzero(right[0] & ~right[1])}
    assert len(worst) == 7 and {row["sample"] for row in worst if row["score lost"] == 1} <= lost
    assert all(row["score lost"] == 1 for row in worst[: len(lost)])
    for row in worst:
        index = row["sample"]
        assert (row["target"], row["anchor"]) == (labels[index], before[index].argmax())
        assert row["outputs moved by"] == pytest.approx(np.linalg.norm(after[index] - before[index]), rel=1e-4)

    # All of it is in MLflow too, linked to the model.
    evaluation = mlflow.search_runs(search_all_experiments=True, filter_string="metrics.`performance/agreement` > 0")
    assert len(evaluation) == 1
    model = mlflow.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert metrics["performance/agreement"] in {metric.value for metric in model.metrics}
    path = mlflow.artifacts.download_artifacts(result.artifacts["worst_samples"].uri, dst_path=str(ready))
    assert len(json.loads(Path(path).read_text())["data"]) == 7


def test_an_anchor_and_a_tolerance_of_ones_own(here: Here, ready: Path, store: str) -> None:
    assert here("+codec=int8", "tracking.registered_model=true").returncode == 0
    images, labels = data()
    table = pd.DataFrame({"image": [image.tolist() for image in images], "label": labels})
    constant = np.eye(10, dtype=np.float32)[np.zeros(200, dtype=int)]
    result = mlflow.models.evaluate(
        "models:/digits/1", table, targets="label", model_type="classifier", evaluators="tracker",
        evaluator_config={"anchor": lambda inputs: constant[: len(inputs)], "tolerance": 1, "batch_size": 64},
    )  # fmt: skip
    assert result.metrics["performance/anchor"] == pytest.approx((labels == 0).mean())
    assert result.metrics["performance/drop"] < 0 and result.metrics["performance/transparent"] == 1
    same = compared("models:/digits/1", images.reshape(200, -1), labels, anchor="models:/digits/1")
    assert same.metrics["performance/agreement"] == 1 and same.metrics["performance/drop"] == 0


def test_refusals(here: Here, ready: Path, store: str) -> None:
    assert here("+codec=int8", "tracking.registered_model=true").returncode == 0
    images, labels = data()
    with pytest.raises(TrackerError, match=r"evaluator_config\.wurst"):
        compared("models:/digits/1", images.reshape(200, -1), labels, wurst=1)
    with pytest.raises(TrackerError, match=r"the samples have shape \(63,\), and the model takes \(1, 8, 8\)"):
        compared("models:/digits/1", images.reshape(200, -1)[:, 1:], labels)
    table = pd.DataFrame({"image": [image.tolist() for image in images], "label": labels})
    for wrong, message in (
        (table.assign(image=[[1.0] * (1 + index % 2) for index in range(200)]), "numbers of one shape"),
        (table.assign(image="a"), "are no numbers"),
        (table[:0], "the data has no samples"),
        (table.assign(label="seven"), "the targets are no numbers"),
    ):
        with pytest.raises(TrackerError, match=message) as refused:
            compared("models:/digits/1", wrong, "label")
        assert "\n" not in str(refused.value)
    (anchor,) = runs(ready, "anchor")
    mlflow.MlflowClient().delete_run(anchor.info.run_id)
    for path in ready.glob("mlruns/artifacts/**/anchor/model.safetensors"):
        path.unlink()
    with pytest.raises(TrackerError, match="the anchor that the model was made from is not in this store"):
        compared("models:/digits/1", images.reshape(200, -1), labels)


def test_models_of_others_are_left_to_others(ready: Path, store: str) -> None:
    class Zero(mlflow.pyfunc.PythonModel):
        def predict(self, context: Any, model_input: Any) -> Any:
            return np.zeros(len(model_input), dtype=int)

    with mlflow.start_run():
        model = mlflow.pyfunc.log_model(name="zero", python_model=Zero()).model_uri
        table = pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "y": [0, 1, 0, 1]})
        found = mlflow.models.evaluate(model, table, targets="y", model_type="classifier")
    assert found.metrics["accuracy_score"] == 0.5
    assert "performance/drop" not in found.metrics


def test_mlflow_imports_nothing_of_the_evaluator_before_it_is_used() -> None:
    code = (
        "import sys, mlflow.models; mlflow.models.evaluation; print('torch' in sys.modules, 'tracker' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"
