"""A codec's transforms, one after the other, and what each of them gave."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.codecs.base import Context, Integers, Transformed
from tracker.frameworks import Framework
from tracker.models import float_elements
from tracker.structure import Edit

if TYPE_CHECKING:
    from torch import Tensor

    from tracker.codecs.chain import Codec
    from tracker.tracking.run import MetricsOnly, Run


@dataclasses.dataclass
class Draft:
    """The model on its way through a chain.

    Attributes:
        model: as the last transform left it.
        tensors: the model's.
        edits: all changes of the architecture, in order.
        integers: tensors that are integers and scales, by name.
        steps: see `Transformed`.
        mac_ratio: multiply-accumulate operations over those of the anchor.
        memory_ratio: memory of the weights over that of the anchor.
        simulate: see `Transformed`.
        rows: what each stage gave: the table stages.json.
    """

    model: Any
    tensors: Mapping[str, Tensor]
    edits: list[Edit] = dataclasses.field(default_factory=list)
    integers: dict[str, Integers] = dataclasses.field(default_factory=dict)
    steps: Mapping[str, float] = dataclasses.field(default_factory=dict)
    mac_ratio: float = 1.0
    memory_ratio: float = 1.0
    simulate: Callable[[Any], Any] | None = None
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def take(self, given: Transformed) -> None:
        """The draft after one more transform."""
        self.model = given.model
        self.edits += given.edits
        self.integers = dict(given.integers)  # a transform that leaves weights alone passes no integers on: it is final
        self.steps = given.steps
        self.mac_ratio *= given.mac_ratio
        self.memory_ratio *= given.memory_ratio
        self.simulate = given.simulate

    def context(self, context: Context) -> Context:
        """What the coder may use."""
        return dataclasses.replace(context, steps=self.steps)

    def bytes(self) -> int:
        """Size without entropy coding: integers at their width with their scales, all else as float32."""
        rest = {name: tensor for name, tensor in self.tensors.items() if name not in self.integers}
        return 4 * float_elements(rest) + sum(quantised.bytes() for quantised in self.integers.values())


def transform(
    codec: Codec,
    draft: Draft,
    context: Context,
    framework: Framework,
    state: Callable[[Any], Mapping[str, Tensor]],
    performance: Callable[[Any, str], float | None],
    run: Run | MetricsOnly,
    scratch: Path,
) -> float:
    """Apply a codec's transforms to a draft, and log the size, performance and statistics after each.

    Args:
        codec: the chain.
        draft: the anchor's; changed.
        context: for the stages.
        framework: of the model.
        state: a model's tensors.
        performance: of a model, by the primary metric; None where it is not to be measured.
        run: to log to.
        scratch: an empty folder for files of the stages.

    Returns:
        Seconds that the transforms took, without measuring.
    """
    if not codec.transforms:
        return 0.0
    total = 0.0
    draft.model = framework.copy(draft.model)  # stages may change it in place, and the anchor is still needed as it was
    for name, stage in codec.transforms.items():
        folder = scratch / name
        folder.mkdir()
        began = time.perf_counter()
        given = stage.apply(draft.model, dataclasses.replace(context, folder=folder))
        draft.take(given if isinstance(given, Transformed) else Transformed(given))
        seconds = time.perf_counter() - began
        total += seconds
        draft.tensors = state(draft.model)
        log_stage(run, name, draft, given, performance(draft.model, name), seconds, folder)
    return total


def log_stage(
    run: Run | MetricsOnly, name: str, draft: Draft, given: Any, performance: float | None, seconds: float, folder: Path
) -> None:
    """Log what a transform gave: figures, tables, plots, and the files that it left."""
    size = draft.bytes()
    draft.rows.append(stage_row(name, size, performance, draft, seconds))
    metrics = {f"size/after_{name}_bytes": float(size), f"time/{name}_s": seconds}
    if performance is not None:
        metrics[f"performance/after_{name}"] = performance
    if isinstance(given, Transformed):
        metrics |= given.metrics
        for table, rows in given.tables.items():
            run.log_table(rows, f"stages/{name}/{table}.json")
        if given.figures:
            plots = folder.parent / f"{name}-plots"
            plots.mkdir()
            for title, figure in given.figures.items():
                figure.savefig(plots / f"{name}-{title}.png")
            run.log_folder(plots, "plots")
    run.log_metrics(metrics)
    if any(folder.iterdir()):
        run.log_folder(folder, f"stages/{name}")


def stage_row(name: str, size: int, performance: float | None, draft: Draft, seconds: float) -> dict[str, Any]:
    """A row of stages.json."""
    return {
        "stage": name,
        "bytes": size,
        "performance": performance,
        "mac ratio": draft.mac_ratio,
        "memory ratio": draft.memory_ratio,
        "seconds": seconds,
    }
