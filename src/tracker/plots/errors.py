"""The quantisation error by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracker.models import mean_squares
from tracker.plots.style import BLUE, ORANGE, SMALL, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

MOST_NAMES = 64
ROOM = 1.08  # beyond the best finite ratio: the place of tensors without an error


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

    Args:
        found: of all tensors.
        title: above the plot.
    """
    if not found:
        return None
    layers = list(dict.fromkeys(ratio.layer for ratio in found))
    place = {layer: index for index, layer in enumerate(layers)}
    finite = [ratio.decibels for ratio in found if math.isfinite(ratio.decibels)]
    beyond = max([*finite, 10.0]) * ROOM
    figure = new_figure(9, 1.7 + 0.17 * max(6, min(len(layers), MOST_NAMES)), title)
    axes = figure.subplots()
    for main, label, marker, colour in (
        (True, "weights", "o", BLUE),
        (False, "biases, norms, statistics", "^", ORANGE),
    ):
        for exact in (False, True):
            chosen = [one for one in found if one.main is main and math.isinf(one.decibels) is exact]
            axes.plot(
                [beyond if exact else one.decibels for one in chosen],
                [place[one.layer] for one in chosen],
                marker,
                color=colour,
                markersize=5,
                markerfacecolor="white" if exact else colour,
                linestyle="none",
                label=(f"{label}: no error" if exact else label) if chosen else None,
            )
    step = -(-len(layers) // MOST_NAMES)  # all layers are drawn, but so many names would cover each other
    axes.set_yticks(range(0, len(layers), step), [shortened(name) for name in layers[::step]], fontsize=SMALL)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlabel("signal-to-quantisation-noise ratio in dB: 10 log10( Σ w² / Σ (w - w')² ), more is better")
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, fontsize=SMALL, frameon=False)
    return figure
