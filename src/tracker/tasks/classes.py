"""What a codec changes about single classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracker.plots.style import BLUE, GREY, ORANGE, SMALL, Margins, beside, grid, name_rows, new_figure, room, shortened

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

MOST_CLASSES = 40


def changes(anchor: np.ndarray, decoded: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """The accuracy on the samples of each class, and its change, the greatest loss first.

    Args:
        anchor: 1 for each sample that the anchor has right, else 0; shape (N,).
        decoded: the same for the decoded model.
        labels: class indices, shape (N,).
        names: by class index; empty for the indices themselves.
    """
    import numpy as np

    rows = []
    for label in np.unique(labels):
        before, after = anchor[labels == label], decoded[labels == label]
        rows.append(
            {
                "class": names[label] if label < len(names) else str(label),
                "samples": len(before),
                "anchor": float(before.mean()),
                "decoded": float(after.mean()),
                "change": float(after.mean() - before.mean()),
                "became wrong": int((before > after).sum()),
                "became right": int((before < after).sum()),
            }
        )
    return sorted(rows, key=lambda row: row["change"])


def most_changed(rows: Sequence[Mapping[str, Any]], most: int = MOST_CLASSES) -> list[Mapping[str, Any]]:
    """The rows with the greatest changes of either sign, in the given order."""
    # Among equal changes from both ends, where losses and gains are.
    order = sorted(range(len(rows)), key=lambda index: min(index, len(rows) - 1 - index))
    chosen = sorted(order, key=lambda index: -abs(rows[index]["change"]))[:most]
    return [rows[index] for index in sorted(chosen)]


def by_class(rows: Sequence[Mapping[str, Any]], title: str) -> Figure | None:
    """The accuracy of each class before and after, and the change, as bars.

    Args:
        rows: of `changes`.
        title: above the plot.
    """
    shown = most_changed(rows)
    if not shown:
        return None
    more = f" · the {len(shown)} of {len(rows)} classes that changed most" if len(shown) < len(rows) else ""
    names = [f"{shortened(row['class'], 30)} ({row['samples']})" for row in shown]
    margins = Margins(left=room(names), bottom=0.8, between=0.2)
    figure = new_figure(margins.left + 8.8, 1.2 + 0.22 * max(4, len(shown)), title + more, margins)
    left, right = grid(figure, 1, 2, margins)[0]
    places = range(len(shown))
    left.hlines(places, [row["anchor"] for row in shown], [row["decoded"] for row in shown], color=GREY, linewidth=2)
    left.plot([row["anchor"] for row in shown], places, "o", color=GREY, markersize=6, label="anchor")
    left.plot([row["decoded"] for row in shown], places, "d", color=BLUE, markersize=5, label="decoded")
    left.set_xlabel("top-1 accuracy of the class", fontsize=SMALL)
    name_rows(left, names)
    values = [100 * row["change"] for row in shown]
    right.barh(places, values, color=[ORANGE if value < 0 else BLUE for value in values])
    largest = max(map(abs, values)) or 1.0
    right.set_xlim(-1.9 * largest, 1.9 * largest)
    name_rows(right, [""] * len(shown), lines=False)
    for place, (value, row) in enumerate(zip(values, shown, strict=True)):
        beside(right, value, place, f" {_label(row)} ", "right" if value < 0 else "left")
    right.axvline(0, color="black", linewidth=0.8)
    right.set_xlabel("change in points (samples that became wrong and right)", fontsize=SMALL)
    for axes in (left, right):
        axes.tick_params(labelsize=SMALL)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.legend(*left.get_legend_handles_labels(), loc="lower left", ncols=2, fontsize=SMALL, frameon=False)
    return figure


def _label(row: Mapping[str, Any]) -> str:
    """Such as ``-2.00 (-3 +1)``; samples may change although the accuracy does not."""
    wrong, right = row["became wrong"], row["became right"]
    return f"{100 * row['change']:+.2f} (-{wrong} +{right})" if wrong or right else "as it was"
