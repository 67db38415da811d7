"""The plots of a compression run, and what its task shows beside its metrics."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.plots import errors, stages, style, tensors, weights
from tracker.scenarios.results import Result
from tracker.tasks.pictures import Comparison, Pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from tracker.tracking.run import Run

log = logging.getLogger(__name__)


def log_pictures(
    run: Run,
    result: Result,
    rows: Sequence[Mapping[str, Any]],
    stage_rows: Sequence[Mapping[str, Any]],
    decoded: Mapping[str, Tensor],
    comparison: Comparison,
    scaled: Collection[str] = frozenset(),
) -> None:
    """Draw and log all plots of a run. What cannot be drawn is told and left out.

    Args:
        run: to log to.
        result: what was found.
        rows: of tensors.json.
        stage_rows: of stages.json; empty for a coder alone.
        decoded: the decoded tensors.
        comparison: for the task's own pictures.
        scaled: tensors with scales in their decoded values.
    """
    shown = of_task(result, comparison)
    figures = {**of_tensors(result, rows, decoded, scaled), **shown.figures}
    if stage_rows:
        primary = result.job.task.primary
        anchor = {"bytes": result.anchor_bytes, "performance": result.anchor.metrics[primary]}
        figures["stages"] = lambda: stages.by_stage(stage_rows, anchor, primary, result.title)
    for name, table in shown.tables.items():
        run.log_table(table, f"{name}.json")
    with tempfile.TemporaryDirectory(dir=result.job.folder) as folder:
        style.draw(figures, Path(folder))
        run.log_folder(Path(folder), "plots")


def of_tensors(
    result: Result, rows: Sequence[Mapping[str, Any]], decoded: Mapping[str, Tensor], scaled: Collection[str]
) -> dict[str, Callable[[], Figure | None]]:
    """Rate, error and histograms by tensor, of those that a coder has coded."""
    coded = [row for row in rows if row["stage"] != "side"]
    parameters = {name: tensor.numel() for name, tensor in result.draft.tensors.items()}
    found = {row["tensor"]: row["mean squared error"] for row in coded}
    steps = {
        row["tensor"]: None if row["tensor"] in scaled else row["step size"]
        for row in coded
        if row["mean squared error"] is not None
    }
    return {
        "tensors": lambda: tensors.by_tensor(tensors.shares(coded, parameters), result.title),
        "error": lambda: errors.by_layer(errors.ratios(result.reference, found), result.title),
        "weights": lambda: weights.before_and_after(weights.histograms(result.reference, decoded, steps), result.title),
    }


def of_task(result: Result, comparison: Comparison) -> Pictures:
    """What the task shows; nothing where it fails, as no picture is worth a run."""
    try:
        return result.job.task.pictures(comparison)
    except Exception as error:  # a task's own code raises what it likes
        log.warning("the pictures of the task are left out: %s: %s", type(error).__name__, error)
        return Pictures()
