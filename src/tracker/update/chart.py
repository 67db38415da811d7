"""The chart over the steps: bytes of each update, all bytes so far, and the drop; modes are its series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracker.report.draw import COLOURS
from tracker.report.interactive import write_page

COLUMNS = {"update/bytes": "bytes", "update/cumulative_bytes": "all bytes so far", "performance/drop": "drop"}
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Subject:
    """What a chart is of.

    Attributes:
        title: above it.
        metric: of the drop.
        tolerance: of the task.
    """

    title: str
    metric: str
    tolerance: float


def draw(series: Mapping[str, Rows], subject: Subject, folder: Path, stem: str) -> None:
    """Write ``STEM.html`` and ``STEM.png``.

    Args:
        series: rows of updates.json, by the name of the mode.
        subject: what it is of.
        folder: for the files.
        stem: of their names.
    """
    from tracker.plots import style

    style.draw({stem: lambda: picture(series, subject)}, folder)
    write_page(folder / f"{stem}.html", "model updates", [interactive(series, subject)])


def picture(series: Mapping[str, Rows], subject: Subject) -> Any:
    """With Matplotlib."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    from tracker.plots.style import Margins, grid, new_figure

    below = 0.25 * -(-len(series) // 4)
    margins = Margins(left=0.9, bottom=0.6 + below, between=0.9)
    figure = new_figure(11, 3.4 + below, subject.title, margins)
    axes = grid(figure, 1, len(COLUMNS), margins)[0]
    for axis, (what, label) in zip(axes, COLUMNS.items(), strict=True):
        for index, (name, rows) in enumerate(series.items()):
            colour = COLOURS[index % len(COLOURS)]
            steps, values = [row["step"] for row in rows], [row[what] for row in rows]
            axis.plot(steps, values, marker="o", markersize=3, linewidth=1.2, color=colour, label=name)
        axis.set_xlabel("step")
        axis.set_ylabel(f"drop of {subject.metric}" if label == "drop" else label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if label == "drop":
            axis.axhline(subject.tolerance, linestyle="--", color="black", linewidth=0.8)
        else:
            axis.yaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
            axis.set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=8)
    return figure


def interactive(series: Mapping[str, Rows], subject: Subject) -> Any:
    """With Plotly; each series can be hidden in its legend."""
    from plotly.subplots import make_subplots

    titles = [f"drop of {subject.metric}" if label == "drop" else label for label in COLUMNS.values()]
    made = make_subplots(rows=1, cols=len(COLUMNS), subplot_titles=titles)
    made.update_layout(template="plotly_white", title=subject.title)
    for index, (name, rows) in enumerate(series.items()):
        for column, what in enumerate(COLUMNS, 1):
            made.add_scatter(
                x=[row["step"] for row in rows],
                y=[row[what] for row in rows],
                text=[row["checkpoint"] for row in rows],
                mode="lines+markers",
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                marker_color=COLOURS[index % len(COLOURS)],
                row=1,
                col=column,
            )
    made.add_hline(subject.tolerance, line_dash="dash", line_width=1, annotation_text="tolerance", row=1, col=3)
    made.update_xaxes(title_text="step")
    return made
