"""The rate by tensor: where the bytes of a bitstream go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracker.plots.style import BLUE, GREY, SMALL, Margins, beside, labels, name_rows, new_figure, room

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_TENSORS = 30
BARS = 4.4  # inches for them


@dataclass(frozen=True)
class Share:
    """What one tensor takes of a bitstream.

    Attributes:
        name: the tensor's, or of many tensors together.
        parameters: their number.
        bytes: None where the coder's format does not let it be told.
        others: whether it stands for many tensors.
    """

    name: str
    parameters: int
    bytes: int | None
    others: bool = False

    @property
    def bits(self) -> float | None:
        """Bits per parameter."""
        return 8 * self.bytes / self.parameters if self.bytes is not None and self.parameters else None


def largest(shares: Sequence[Share], most: int = MOST_TENSORS) -> list[Share]:
    """The tensors that take most, and all others as one.

    Args:
        shares: of all tensors; where none has bytes, parameters count.
        most: how many are shown by themselves.

    Returns:
        In descending order, the others last.
    """
    told = any(share.bytes is not None for share in shares)
    ordered = sorted(shares, key=lambda share: -((share.bytes or 0) if told else share.parameters))
    if len(ordered) <= most + 1:
        return ordered
    rest = ordered[most:]
    sizes = [share.bytes for share in rest if share.bytes is not None]
    # What is not told in bytes (counters, which travel beside the coder's file) does not count as parameters either.
    count = sum(share.parameters for share in rest if share.bytes is not None or not told)
    together = Share(f"{len(rest)} other tensors", count, sum(sizes) if told else None, others=True)
    return [*ordered[:most], together]


def by_tensor(shares: Sequence[Share], title: str) -> Figure | None:
    """Bytes of the largest tensors as bars, with bits per parameter; parameters where no bytes are known.

    Args:
        shares: of all tensors.
        title: above the plot.
    """
    from matplotlib.ticker import MaxNLocator

    told = any(share.bytes is not None for share in shares)
    shown = [share for share in largest(shares) if share.bytes is not None or not told]
    if not shown:
        return None
    sizes = [share.bytes or 0 if told else share.parameters for share in shown]
    whole = sum(sizes) or 1
    words = [f"{_amount(share, told)} · {100 * size / whole:.1f} %" for share, size in zip(shown, sizes, strict=True)]
    names = labels([share.name for share in shown if not share.others])
    names += [share.name for share in shown if share.others]
    margins = Margins(left=room(names), right=room(words), bottom=0.55)
    figure = new_figure(margins.left + BARS + margins.right, 1.0 + 0.21 * max(3, len(shown)), title, margins)
    axes = figure.subplots()
    # The many small ones together may take far more than any other: their bar then ends, open, where the axis does.
    most = 1.1 * max(size for share, size in zip(shown, sizes, strict=True) if not share.others) or 1
    drawn = [min(size, most) for size in sizes]
    bars = axes.barh(range(len(shown)), drawn, color=[GREY if share.others else BLUE for share in shown])
    for bar, size in zip(bars, sizes, strict=True):
        bar.set(hatch="//" if size > most else None, edgecolor="white", linewidth=0)
    axes.set_xlim(0, max(drawn) or 1)
    name_rows(axes, names, lines=False)
    for row, (end, word) in enumerate(zip(drawn, words, strict=True)):
        beside(axes, end, row, f" {word}")  # beyond the longest bar there is the margin
    unit = "bytes in the bitstream" if told else "parameters (the coder keeps no bytes by tensor)"
    axes.set_xlabel(unit + (" (hatched: beyond the axis)" if max(sizes) > most else ""), fontsize=SMALL)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return figure


def _amount(share: Share, told: bool) -> str:
    if not told:
        return f"{share.parameters:,}"
    bits = "" if share.bits is None else f" · {share.bits:.2f} bit/parameter"
    return f"{share.bytes:,} B{bits}"


def shares(rows: Sequence[Mapping[str, object]], parameters: Mapping[str, int]) -> list[Share]:
    """The rows of tensors.json as shares.

    Args:
        rows: with ``tensor`` and ``bytes``.
        parameters: of each tensor.
    """
    found = []
    for row in rows:
        name, size = str(row["tensor"]), row["bytes"]
        found.append(Share(name, parameters[name], int(str(size)) if size is not None else None))
    return found
