"""Examples of images before and after compression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracker.plots.style import DPI, SMALL, Margins, grid, new_figure

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from torch import Tensor

MOST_IMAGES = 3
SHOWN = 256  # pixels of a side: a larger image would be shrunk, and what coding did to it not be seen
LARGEST_GAIN = 1024
WIDTH = SHOWN / DPI  # of an image on the page, in inches: a pixel of it is one of the page


@dataclass(frozen=True)
class Example:
    """Luminance of one image, each of shape (h, w), in 0..1 but for the difference.

    Attributes:
        index: of the sample.
        given: the model's input; None where it is no image that can be shown.
        anchor: the anchor's output.
        decoded: the decoded model's.
        difference: decoded less anchor, times `gain`.
        gain: a power of 2.
        psnr: in dB, of the input (None where it has not the original's size), of anchor and of decoded.
        cut: whether it is a part of the image.
    """

    index: int
    given: np.ndarray | None
    anchor: np.ndarray
    decoded: np.ndarray
    difference: np.ndarray
    gain: int
    psnr: tuple[float | None, float, float]
    cut: bool


def chosen(drops: np.ndarray, most: int = MOST_IMAGES) -> list[int]:
    """The samples to show: of the greatest drop, of the middle one and of the least.

    Args:
        drops: of each sample, shape (N,).
        most: how many.
    """
    import numpy as np

    order = np.argsort(-drops, kind="stable")
    places = np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)
    return [int(order[place]) for place in places]


def amplification(difference: np.ndarray) -> int:
    """The largest power of 2 with which hardly a pixel (one in 500) leaves the range -0.5..0.5."""
    import numpy as np

    large = float(np.quantile(np.abs(difference), 0.998))
    return int(2 ** np.clip(np.floor(np.log2(0.5 / large)), 0, np.log2(LARGEST_GAIN))) if large > 0 else 1


def example(
    index: int, given: Tensor | None, anchor: Tensor, decoded: Tensor, psnr: tuple[float | None, float, float]
) -> Example:
    """What is shown of one image.

    Args:
        index: of the sample.
        given: the model's input as luminance, shape (1, H, W), or smaller than the outputs.
        anchor: the anchor's output, shape (1, H, W), in 0..1.
        decoded: the decoded model's.
        psnr: see `Example`.
    """
    before, after = (image[0].float().numpy() for image in (anchor, decoded))
    difference = after - before
    rows, columns = window(difference)
    gain = amplification(difference[rows, columns])
    shown = None
    if given is not None:
        # An input that the model enlarges is shown from the same place.
        shares = [size / whole for size, whole in zip(given.shape[-2:], before.shape, strict=True)]
        part = [
            slice(int(at.start * share), int(at.stop * share))
            for at, share in zip((rows, columns), shares, strict=True)
        ]
        shown = given[0][tuple(part)].float().numpy()
    cut = difference[rows, columns].shape != difference.shape
    return Example(
        index, shown, before[rows, columns], after[rows, columns], gain * difference[rows, columns], gain, psnr, cut
    )


def window(difference: np.ndarray, side: int = SHOWN) -> tuple[slice, slice]:
    """The part of an image, at most `side` pixels high and wide, where the squared difference is greatest in sum."""
    import numpy as np

    height, width = (min(side, size) for size in difference.shape)
    sums = np.pad(np.square(difference, dtype=np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return slice(int(top), int(top) + height), slice(int(left), int(left) + width)


def side_by_side(found: Sequence[Example], title: str) -> Figure | None:
    """Input, anchor, decoded and the difference, a row for each image.

    Args:
        found: the images.
        title: above the plot.
    """
    if not found:
        return None
    heights = [WIDTH * one.anchor.shape[0] / one.anchor.shape[1] for one in found]
    margins = Margins(left=0.1, right=0.1, top=0.6, bottom=0.1, between=0.1, below=0.25)
    whole = margins.top + margins.bottom + sum(heights) + (len(found) - 1) * margins.below
    figure = new_figure(0.2 + 4 * WIDTH + 0.3, whole, title, margins)
    for axes, one in zip(grid(figure, len(found), 4, margins, height_ratios=heights), found, strict=True):
        words = ["" if value is None else f" · {value:.2f} dB" for value in one.psnr]
        where = f"image {one.index}" + (", a part" if one.cut else "")
        panels = [
            (one.given, f"{where}: input{words[0]}"),
            (one.anchor, f"anchor{words[1]}"),
            (one.decoded, f"decoded{words[2]} ({one.psnr[2] - one.psnr[1]:+.2f})"),
        ]
        for axis, (image, label) in zip(axes, panels, strict=False):
            if image is not None:
                axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
            axis.set_title(label, fontsize=SMALL)
        # White where nothing changed; blue and red stay apart for any kind of colour vision.
        axes[3].imshow(one.difference, cmap="RdBu_r", vmin=-0.5, vmax=0.5, interpolation="bilinear")
        axes[3].set_title(f"decoded - anchor, × {one.gain}", fontsize=SMALL)
        for axis in axes:
            axis.set_axis_off()
    return figure
