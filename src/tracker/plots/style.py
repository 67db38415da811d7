"""How all plots of a run look, and how they become files."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

# Of the palette that people with any kind of colour vision tell apart (Okabe and Ito 2008, "Color Universal Design").
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8c8c8c"
SMALL = 8  # points; smaller letters cannot be read in the UI
DPI = 110


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure; opaque and white, as the page behind it may be dark.

    Args:
        width: in inches.
        height: in inches.
        title: above the plot.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI, facecolor="white")
    figure.suptitle(title, fontsize=10)
    return figure


def shortened(name: str, most: int = 42) -> str:
    """A name whose end, which tells most, is kept."""
    return name if len(name) <= most else "…" + name[1 - most :]


def draw(figures: Mapping[str, Callable[[], Figure | None]], folder: Path) -> None:
    """Write figures as PNG; one that cannot be drawn is left out, as no plot is worth a run.

    Args:
        figures: by name, made when their turn comes; None where there is nothing to show.
        folder: for ``NAME.png``.
    """
    with plain():
        for name, make in figures.items():
            try:
                if (figure := make()) is not None:
                    figure.savefig(folder / f"{name}.png", facecolor="white")
            except Exception as error:  # Matplotlib's, or a task's own code
                log.warning("the plot %s is left out: %s: %s", name, type(error).__name__, error)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Matplotlib's own defaults, as a user's matplotlibrc may ask for white letters, or for LaTeX."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield
