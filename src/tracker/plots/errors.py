"""The quantisation error by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracker.models import mean_squares
from tracker.plots.style import BLUE, ORANGE, SMALL, Margins, grid, labels, name_rows, new_figure, room

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

MOST_NAMES = 64
KINDS = ((True, "weights", BLUE), (False, "biases, norms, statistics", ORANGE))


@dataclass(frozen=True)
class Ratio:
    """How well one tensor came through.

    Attributes:
        layer: the tensor's name without its last part.
        tensor: its name.
        main: whether it is a weight, of two or more dimensions; biases and the like are not.
        decibels: the signal-to-quantisation-noise ratio; infinite where nothing was lost.
    """

    layer: str
    tensor: str
    main: bool
    decibels: float


def ratios(reference: Mapping[str, Tensor], errors: Mapping[str, float | None]) -> list[Ratio]:
    """The signal-to-quantisation-noise ratio of each tensor: 10 log10 of the sum of w² over the sum of (w - w')².

    By layer as in Lin, Talathi and Annapureddy 2016, "Fixed point quantization of deep convolutional networks" (ICML,
    section 3). A tensor of zeros has none.

    Args:
        reference: what was coded, by name.
        errors: the mean squared error of each tensor; those without one are left out.

    Returns:
        In the order of the model.
    """
    found = []
    known = {name: tensor for name, tensor in reference.items() if errors.get(name) is not None}
    for name, power in mean_squares(known).items():
        error = errors[name]
        if power > 0 and error is not None and math.isfinite(error):
            decibels = 10 * math.log10(power / error) if error else math.inf
            found.append(Ratio(layer_of(name), name, known[name].ndim > 1, decibels))
    return found


def layer_of(tensor: str) -> str:
    """The layer that a tensor belongs to, as its name tells: ``layer1.0.conv1`` of ``layer1.0.conv1.weight``."""
    cut = max(tensor.rfind("."), tensor.rfind("/"))
    return tensor[:cut] if cut > 0 else tensor


def by_layer(found: Sequence[Ratio], title: str) -> Figure | None:
    """The ratio of each tensor as a point, a line for each layer, in the order of the model.

    Tensors without an error stand, hollow, beyond all others.

    Args:
        found: of all tensors.
        title: above the plot.
    """
    if not found:
        return None
    layers = list(dict.fromkeys(ratio.layer for ratio in found))
    step = -(-len(layers) // MOST_NAMES)  # all layers are drawn, but so many names would cover each other
    names = labels(layers)
    groups = [(word, colour, [one for one in found if one.main is main]) for main, word, colour in KINDS]
    groups = [group for group in groups if group[2]]
    margins = Margins(left=room(names), bottom=0.8, top=0.6, between=0.25)
    height = 1.5 + 0.17 * max(6, min(len(layers), MOST_NAMES))
    figure = new_figure(margins.left + 3.9 * len(groups) + 0.5, height, title, margins)
    # Weights and the rest in axes of their own: the rest is often coded so finely that weights would stand in one line.
    for axes, (word, colour, chosen) in zip(
        grid(
            figure,
            1,
            len(groups),
            margins,
        )[0],
        groups,
        strict=True,
    ):
        _points(axes, chosen, {layer: index for index, layer in enumerate(layers)}, colour)
        axes.set_title(word, fontsize=SMALL + 1)
        name_rows(axes, names if axes is figure.axes[0] else [""] * len(layers), step)
    words = "signal-to-quantisation-noise ratio in dB: 10 log10( Σ w² / Σ (w - w')² ), more is better; hollow: no error"
    figure.text(0.5, 0.2 / height, words, fontsize=SMALL, ha="center")
    return figure


def _points(axes: Axes, found: Sequence[Ratio], place: Mapping[str, int], colour: str) -> None:
    """One axes of `by_layer`."""
    finite = [one.decibels for one in found if math.isfinite(one.decibels)]
    beyond = max(finite, default=0.0) + max(1.0, 0.1 * (max(finite, default=0.0) - min(finite, default=0.0)))
    for exact in (False, True):
        chosen = [one for one in found if math.isinf(one.decibels) is exact]
        axes.plot(
            [beyond if exact else one.decibels for one in chosen],
            [place[one.layer] for one in chosen],
            "o",
            color=colour,
            markersize=5,
            markerfacecolor="white" if exact else colour,
            linestyle="none",
        )
    if not finite:
        axes.set_xticks([])
    axes.tick_params(labelsize=SMALL)
    axes.grid(axis="x", alpha=0.3)
