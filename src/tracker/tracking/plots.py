"""Plots of a run, as PNG: MLflow's artifact view shows them as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MOST_TENSORS = 30
FITTING = 42  # letters that names of stages may have beside each other


def by_tensor(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Bytes and mean squared error of the largest tensors, as bars.

    Args:
        rows: of tensors.json.
        path: of the PNG.
        title: above the plot.
    """
    from matplotlib.figure import Figure

    panels = [key for key in ("bytes", "mean squared error") if any(row[key] for row in rows)]
    if not panels:
        panels = ["mean squared error"]
    shown = sorted(rows, key=lambda row: row["bytes"] or row["mean squared error"] or 0)[-MOST_TENSORS:]
    figure = Figure(figsize=(5.5 * len(panels) + 1.5, 1.3 + 0.22 * len(shown)), layout="constrained", dpi=110)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    names = [row["tensor"] if len(row["tensor"]) <= 42 else "…" + row["tensor"][-41:] for row in shown]
    for axis, key in zip(axes, panels, strict=True):
        axis.barh(range(len(shown)), [row[key] or 0 for row in shown], color="#3b76af")
        axis.set_xlabel(key)
        axis.grid(axis="x", alpha=0.3)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 5))
    axes[0].set_yticks(range(len(shown)), names, fontsize=7)
    more = f" ({len(shown)} of {len(rows)} tensors)" if len(rows) > len(shown) else ""
    figure.suptitle(title + more, fontsize=10)
    figure.savefig(path)


def by_stage(
    rows: Sequence[Mapping[str, Any]], anchor: Mapping[str, float], metric: str, path: Path, title: str
) -> None:
    """Size and performance after each stage of a chain, the anchor first.

    Args:
        rows: of stages.json.
        anchor: its ``bytes`` and ``performance``.
        metric: the primary metric's name.
        path: of the PNG.
        title: above the plot.
    """
    from matplotlib.figure import Figure

    names = ["anchor", *(row["stage"] for row in rows)]
    sizes = [anchor["bytes"], *(row["bytes"] for row in rows)]
    measured = [(name, row["performance"]) for name, row in zip(names[1:], rows, strict=True)]
    shown = [(name, value) for name, value in measured if value is not None]
    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.tick_params(axis="x", labelsize=8)
        if max(map(len, names)) * len(names) > FITTING:
            axes.tick_params(axis="x", rotation=35)
    bars = left.bar(names, [size / 1000 for size in sizes], color=["#9a9a9a"] + ["#3b76af"] * len(rows))
    left.bar_label(bars, [f"{100 * size / sizes[0]:.1f} %" for size in sizes], fontsize=8)
    left.set_ylabel("size in kB after the stage")
    left.margins(y=0.12)
    right.axhline(anchor["performance"], color="#9a9a9a", linestyle="--", label="anchor")
    right.plot([name for name, _ in shown], [value for _, value in shown], "o-", color="#3b76af")
    right.set_ylabel(f"{metric} after the stage")
    right.margins(x=0.15)
    right.legend(fontsize=8)
    right.grid(axis="y", alpha=0.3)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)
