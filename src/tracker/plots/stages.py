"""What each stage of a chain gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracker.plots.style import BLUE, GREY, SMALL, Margins, grid, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FITTING = 42  # letters that names of stages may have beside each other


def by_stage(rows: Sequence[Mapping[str, Any]], anchor: Mapping[str, float], metric: str, title: str) -> Figure:
    """Size and performance after each stage of a chain, the anchor first.

    Args:
        rows: of stages.json.
        anchor: its ``bytes`` and ``performance``.
        metric: the primary metric's name.
        title: above the plot.
    """
    names = ["anchor", *(row["stage"] for row in rows)]
    sizes = [anchor["bytes"], *(row["bytes"] for row in rows)]
    measured = [(name, row["performance"]) for name, row in zip(names[1:], rows, strict=True)]
    shown = [(name, value) for name, value in measured if value is not None]
    crowded = max(map(len, names)) * len(names) > FITTING
    margins = Margins(left=0.8, bottom=1.0 if crowded else 0.4, between=0.9)
    figure = new_figure(9, 3.4, title, margins)
    left, right = grid(figure, 1, 2, margins)[0]
    for axes in (left, right):
        axes.tick_params(labelsize=SMALL)
        if crowded:
            axes.tick_params(axis="x", rotation=35)
    bars = left.bar(names, [size / 1000 for size in sizes], color=[GREY] + [BLUE] * len(rows))
    left.bar_label(bars, [f"{100 * size / sizes[0]:.1f} %" for size in sizes], fontsize=SMALL)
    left.set_ylabel("size in kB after the stage", fontsize=SMALL)
    left.margins(y=0.12)
    right.axhline(anchor["performance"], color=GREY, linestyle="--", label="anchor")
    right.plot([name for name, _ in shown], [value for _, value in shown], "o-", color=BLUE)
    right.set_ylabel(f"{metric} after the stage", fontsize=SMALL)
    right.margins(x=0.15)
    right.legend(fontsize=SMALL)
    right.grid(axis="y", alpha=0.3)
    return figure
