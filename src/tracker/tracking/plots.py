"""Plots of a run, as PNG: MLflow's artifact view shows them as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MOST_TENSORS = 30


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
