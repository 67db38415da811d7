"""Plots of a decomposition: what each layer costs after it, and how scores fall with the rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 60


def by_layer(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """MACs before and after, and the rank, by layer; the costliest 60 of more layers, in the model's order.

    What is left of them stands beside each bar, as many a layer costs too little for its bar to be seen.

    Args:
        rows: of the table of layers.
        title: above the plot.
    """
    from matplotlib.figure import Figure

    known = [row for row in rows if row["MACs before"] is not None]
    costliest = sorted(known, key=lambda row: -row["MACs before"])[:SHOWN]
    shown = [row for row in known if any(row is other for other in costliest)]
    names = [f"{row['layer']}" + (f"  (rank {row['rank']})" if row.get("rank") is not None else "") for row in shown]
    figure = Figure(figsize=(9, 1.6 + 0.22 * max(4, len(shown))), layout="constrained", dpi=110)
    axes = figure.subplots()
    places = range(len(shown))
    bars = axes.barh(places, [row["MACs before"] for row in shown], height=0.8, color="#d0d0d0", label="before")
    axes.barh(places, [row["MACs after"] for row in shown], height=0.45, color="#3b76af", label="after")
    axes.bar_label(bars, [_left(row) for row in shown], fontsize=6, padding=3, color="#606060")
    axes.margins(x=0.1)
    axes.set_yticks(places, names, fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("multiply-accumulate operations")
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 5))
    axes.legend(fontsize=8)
    more = f" ({len(shown)} of {len(known)} layers)" if len(known) > len(shown) else ""
    figure.suptitle(title + more, fontsize=10)
    return figure


def _left(row: Mapping[str, Any]) -> str:
    """What is left of a layer's MACs, such as ``75 %``."""
    if all(row[f"{cost} before"] == row[f"{cost} after"] for cost in ("MACs", "memory")):
        return "as it was"
    return f"{row['MACs after'] / row['MACs before']:.0%}" if row["MACs before"] else ""


def by_score(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """The score of each layer at each candidate ratio, as a map: a row of cells for each layer.

    Args:
        rows: of the table of scores: layer, ratio, score.
        title: above the plot.
    """
    import numpy as np
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(row["layer"] for row in rows))
    ratios = sorted({row["ratio"] for row in rows})
    scores = np.full((len(layers), len(ratios)), np.nan)
    for row in rows:
        scores[layers.index(row["layer"]), ratios.index(row["ratio"])] = row["score"]
    figure = Figure(figsize=(2.5 + 0.6 * max(6, len(ratios)), 1.8 + 0.22 * max(4, len(layers))), layout="constrained")
    figure.set_dpi(110)
    axes = figure.subplots()
    image = axes.imshow(scores, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set_yticks(range(len(layers)), layers, fontsize=7)
    axes.set_xticks(
        range(len(ratios)), [f"{ratio:.2g}" for ratio in ratios], fontsize=7, rotation=90 * (len(ratios) > 12)
    )
    axes.set_xlabel("ratio of the layer's cost")
    if len(layers) * len(ratios) <= 200:
        middle = (np.nanmin(scores) + np.nanmax(scores)) / 2
        for (i, j), score in np.ndenumerate(scores):
            axes.text(j, i, f"{score:.3f}", ha="center", va="center", fontsize=6, color="wk"[bool(score > middle)])
    figure.colorbar(image, ax=axes, label="score")
    figure.suptitle(title, fontsize=10)
    return figure
