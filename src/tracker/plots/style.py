"""How all plots of a run look, and how they become files."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

# Of the palette that people with any kind of colour vision tell apart (Okabe and Ito 2008, "Color Universal Design").
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8c8c8c"
SMALL = 8  # points; smaller letters cannot be read in the UI
DPI = 110


class Margins(NamedTuple):
    """Around and between the axes of a figure, in inches.

    Matplotlib's layout engines find them by drawing everything twice more, which costs a run seconds.
    """

    left: float = 0.7
    right: float = 0.2
    top: float = 0.4
    bottom: float = 0.6
    between: float = 0.4  # columns
    below: float = 0.6  # rows


def new_figure(width: float, height: float, title: str, margins: Margins) -> Figure:
    """An empty figure; opaque and white, as the page behind it may be dark.

    Args:
        width: in inches.
        height: in inches.
        title: above the plot.
        margins: for a figure with one axes, or with columns of about three inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    fitting = int(width / 0.09)  # letters
    figure.text(0.5, 1 - 0.12 / height, shortened(title, fitting), fontsize=10, ha="center", va="top")
    figure.subplots_adjust(
        margins.left / width,
        margins.bottom / height,
        1 - margins.right / width,
        1 - margins.top / height,
    )
    return figure


def grid(figure: Figure, rows: int, columns: int, margins: Margins, **options: Any) -> Any:
    """Axes of equal size, as an array of shape (rows, columns)."""
    width, height = (float(inches) for inches in figure.get_size_inches())
    each = (width - margins.left - margins.right - (columns - 1) * margins.between) / columns
    high = (height - margins.top - margins.bottom - (rows - 1) * margins.below) / rows
    spacing = {"wspace": margins.between / each, "hspace": margins.below / high}
    return figure.subplots(rows, columns, squeeze=False, gridspec_kw=spacing, **options)


def name_rows(axes: Axes, names: Sequence[str], step: int = 1, lines: bool = True) -> None:
    """Rows from top to bottom with their names, in place of ticks, each of which takes as long as five texts.

    Args:
        axes: whose rows are at 0, 1, 2, ...
        names: of all rows; empty ones are not drawn.
        step: every how many rows are named.
        lines: through the named rows; not where texts stand in them.
    """
    axes.set_yticks([])
    axes.set_ylim(len(names) - 0.4, -0.6)
    across = axes.get_yaxis_transform()
    if lines:
        axes.hlines(range(0, len(names), step), 0, 1, "#b0b0b0", linewidth=0.8, alpha=0.3, zorder=0.5, transform=across)
    for row in range(0, len(names), step):
        if names[row]:
            beside(axes, -0.01, row, names[row], "right", transform=across)


def beside(axes: Axes, x: float, y: float, text: str, side: str = "left", **options: Any) -> None:
    """A small text beside a point."""
    axes.text(x, y, text, fontsize=SMALL, ha=side, va="center_baseline", **options)


def room(names: Iterable[str]) -> float:
    """Inches that names take beside an axis, in small letters."""
    return 0.15 + 0.068 * max(map(len, names), default=0)


def shortened(name: str, most: int = 42) -> str:
    """A name without its middle, as the beginning tells the block and the end the tensor."""
    return name if len(name) <= most else f"{name[: most // 3]}…{name[most // 3 + 1 - most :]}"


def labels(names: Sequence[str], most: int = 42) -> list[str]:
    """Names as they stand beside an axis: those too long without the modules that all of them begin with."""
    if max(map(len, names), default=0) > most:
        parts = [re.split(r"(?<=[./])", name)[:-1] for name in names]
        common = sum(
            len(same[0]) for same in itertools.takewhile(lambda p: len(set(p)) == 1, zip(*parts, strict=False))
        )
        names = [name[common:] for name in names]
    return [shortened(name, most) for name in names]


def draw(figures: Mapping[str, Callable[[], Figure | None]], folder: Path) -> None:
    """Write figures as PNG; one that cannot be drawn is left out, as no plot is worth a run.

    Args:
        figures: by name, made when their turn comes; None where there is nothing to show.
        folder: for ``NAME.png``.
    """
    with plain(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font has not is drawn as a box
        for name, make in figures.items():
            try:
                if (figure := make()) is not None:
                    figure.savefig(folder / f"{name}.png", facecolor="white")
            except Exception as error:  # Matplotlib's, or a task's own code
                log.warning("the plot %s is left out: %s: %s", name, type(error).__name__, error)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Matplotlib's own defaults, as a user's matplotlibrc may ask for white letters, or for LaTeX.

    A dollar in a name is a letter, and begins no formula.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False
        matplotlib.rcParams["axes.titley"] = 1.0  # where it would be anyway, without measuring all labels to find out
        yield
