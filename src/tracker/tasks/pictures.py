"""What a task may show of a run besides its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from tracker.tasks.base import Evaluation


@dataclass(frozen=True)
class Comparison:
    """The anchor and the decoded model on one split, whose samples have the same order in all of this.

    Attributes:
        anchor: the anchor's performance; of a logged anchor without `Evaluation.extras`.
        decoded: the decoded model's.
        class_names: the names of the classes by their index; empty where the data set has none.
        sample: from an index to the model's input and its target, without a batch dimension.
        outputs: from an index to what the anchor and the decoded model give for that sample, without a batch
            dimension, on the CPU. It runs both models.
        title: above figures.
    """

    anchor: Evaluation
    decoded: Evaluation
    class_names: Callable[[], Sequence[str]]
    sample: Callable[[int], tuple[Any, Any]]
    outputs: Callable[[int], tuple[Tensor, Tensor]]
    title: str = ""


@dataclass(frozen=True)
class Pictures:
    """Figures and tables.

    Attributes:
        figures: makes each matplotlib figure, by name; logged as ``plots/NAME.png``.
        tables: rows by name, logged as ``NAME.json``.
    """

    figures: Mapping[str, Callable[[], Figure | None]] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
