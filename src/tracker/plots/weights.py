"""Histograms of weights before and after coding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracker.plots.style import BLUE, GREY, SMALL, Margins, grid, new_figure, shortened

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from torch import Tensor

MOST_TENSORS = 6
BINS = 96
SAMPLED = 1_000_000  # values of a larger tensor that are counted, evenly spread


@dataclass(frozen=True)
class Histogram:
    """One tensor's values.

    Attributes:
        name: the tensor's.
        shape: as ``64x32x3x3``.
        edges: of the bins, shape (B + 1,).
        before: share of the values in each bin, before coding; shape (B,).
        after: the same of the decoded values.
        zeros: share of values that are 0, before and after.
    """

    name: str
    shape: str
    edges: np.ndarray
    before: np.ndarray
    after: np.ndarray
    zeros: tuple[float, float]


def histograms(
    reference: Mapping[str, Tensor],
    decoded: Mapping[str, Tensor],
    steps: Mapping[str, float | None],
    most: int = MOST_TENSORS,
) -> list[Histogram]:
    """Of the largest tensors, in the order of the model.

    Args:
        reference: what was coded, by name.
        decoded: what came out; a tensor that it has not, or with another shape, is left out.
        steps: the step size of each tensor that is to be shown, where one is known.
        most: how many.
    """
    both = [
        name
        for name, tensor in reference.items()
        if name in steps and name in decoded and decoded[name].shape == tensor.shape
        if tensor.is_floating_point() and tensor.numel() > 1
    ]
    chosen = set(sorted(both, key=lambda name: -reference[name].numel())[:most])
    return [histogram(name, reference[name], decoded[name], steps[name]) for name in both if name in chosen]


def histogram(name: str, before: Tensor, after: Tensor, step: float | None) -> Histogram:
    """Of one tensor.

    Bins are a whole number of quantisation steps wide with the levels in their middles, as bins of another width hold
    now one level and now two, which looks like structure in the weights.

    Args:
        name: for the title.
        before: what was coded.
        after: of the same shape.
        step: between the levels of ``after``, where it is known.
    """
    import numpy as np

    arrays = [_sample(before), _sample(after)]
    low, high = (float(limit) for limit in (min(map(np.min, arrays)), max(map(np.max, arrays))))
    if low == high:
        low, high = low - 0.5, high + 0.5
    count = min(BINS, max(16, int(2 * math.sqrt(arrays[0].size))))
    if step and (high - low) / step < 1e6:
        width = step * max(1, math.ceil((high - low) / step / BINS))
        first, last = math.floor(low / width + 0.5), math.floor(high / width + 0.5)
        low, high, count = (first - 0.5) * width, (last + 0.5) * width, last - first + 1
    counted = [np.histogram(array, bins=count, range=(low, high)) for array in arrays]
    shares = [found / array.size for (found, _), array in zip(counted, arrays, strict=True)]
    zeros = [float((array == 0).mean()) for array in arrays]
    shape = "x".join(map(str, before.shape))
    return Histogram(name, shape, counted[0][1], shares[0], shares[1], (zeros[0], zeros[1]))


def _sample(tensor: Tensor) -> np.ndarray:
    """A tensor's values; of a large one, evenly spread ones."""
    import numpy as np

    flat = tensor.detach().reshape(-1)
    # Odd, as the sizes of most tensors are even: an even one may meet the same few channels again and again.
    stride = -(-flat.numel() // SAMPLED) | 1
    return np.asarray(flat[::stride].cpu().float().numpy())


def before_and_after(found: Sequence[Histogram], title: str) -> Figure | None:
    """Histograms beside each other, with a logarithmic axis, as most weights are close to 0.

    Args:
        found: of the tensors to show.
        title: above the plot.
    """
    import numpy as np
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    if not found:
        return None
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    margins = Margins(left=0.85, top=0.8, bottom=0.75, between=0.6, below=0.75)
    figure = new_figure(1.1 + 3.1 * columns, 0.75 + 2.15 * rows, title, margins)
    every = grid(figure, rows, columns, margins).flat
    for one, axes in zip(found, every, strict=False):
        axes.stairs(one.before, one.edges, fill=True, color=GREY, alpha=0.55, label="before")
        axes.stairs(one.after, one.edges, color=BLUE, linewidth=1.1, label="after (decoded)")
        seen = np.concatenate([one.before, one.after])
        axes.set_yscale("log")
        low, high = seen[seen > 0].min(), seen.max()
        axes.set_ylim(0.6 * low, 1.8 * high)
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5), numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_title(f"{shortened(one.name, 34)}\n{one.shape} · zeros {_zeros(one)}", fontsize=SMALL)
        axes.tick_params(labelsize=SMALL)
        axes.grid(alpha=0.3)
    for axes in every:
        axes.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=2, fontsize=SMALL, frameon=False)
    figure.text(0.012, 0.5, "share of the values", fontsize=SMALL, rotation=90, va="center")
    return figure


def _zeros(one: Histogram) -> str:
    before, after = (f"{100 * share:.0f}" for share in one.zeros)
    return f"{before} to {after} %"
