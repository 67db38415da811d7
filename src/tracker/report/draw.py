"""The curve of rate and performance: every codec a series, the anchor's line and the band of the tolerance."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.report.collect import Application
from tracker.report.curves import front
from tracker.report.table import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 10  # tolerances beyond the anchor, at most: a point far below would squeeze all others into one line
VECTORS = 300  # points that are drawn as shapes; more of them as pixels, so that the file stays small
MOST_PIXELS = 60_000  # of a picture's height; matplotlib takes fewer than 2**16
MARKERS = "osD^vP*X"
# Matplotlib's tab10, which Plotly's own colours are as well.
COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)


def draw(axes: Axes, label: str, application: Application, report: Report) -> None:
    """Draw one application's curve.

    Args:
        axes: of matplotlib.
        label: of the anchor.
        application: with its working points.
        report: gives the addresses that points lead to, in an SVG.
    """
    anchor, band = application.performance, application.tolerance * (-1 if application.higher_is_better else 1)
    axes.axhspan(anchor, anchor + band, color="#2a7f3f", alpha=0.15, linewidth=0, label=_band(application))
    axes.axhline(anchor, color="black", linestyle="--", linewidth=1, label=f"anchor {anchor:.4f}")
    drops = []
    for index, (codec, points) in enumerate(application.points.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        best = front(points)
        ids = {point.run_id for point in best}
        rest = [point for point in points if point.run_id not in ids and math.isfinite(point.decoded)]
        cloud = [point.rate for point in rest], [point.decoded for point in rest]
        axes.plot(*cloud, marker, color=colour, alpha=0.3, markersize=3, rasterized=len(rest) > VECTORS)
        line = [point.rate for point in best], [point.decoded for point in best]
        axes.plot(*line, "-", color=colour, linewidth=1.2)
        shown = axes.scatter(*line, color=[colour], marker=marker, s=22, label=codec, zorder=3)
        shown.set_urls([report.address(point.experiment, point.run_id) or None for point in best])
        drops += [point.drop for point in points if math.isfinite(point.drop)]
    axes.set_ylim(*frame(application, drops))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set(xlabel="rate in percent of the anchor", ylabel=_plain(application.metric))
    setting = f"{label} · {application.data}"
    axes.set_title(
        _plain(setting if len(setting) <= 80 else f"{setting[:79]}…") + _hidden(application, drops), fontsize=10
    )
    axes.grid(alpha=0.3)
    legend = axes.legend(fontsize=8, loc="lower right")  # curves rise to the right, above it
    for text in legend.get_texts():
        text.set_text(_plain(text.get_text()))


def pictures(report: Report) -> list[str]:
    """Each application's curve as an SVG that stands within a page."""
    import matplotlib
    from matplotlib.figure import Figure

    found = []
    # Text as text: it can be searched and selected, and the file is smaller.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tracker"}):
        for label, application in report.applications:
            figure = Figure(figsize=(8, 4.5), layout="constrained")
            draw(figure.subplots(), label, application, report)
            kept = io.StringIO()
            figure.savefig(kept, format="svg", metadata={"Date": None, "Creator": None})
            text = kept.getvalue()
            found.append(text[text.index("<svg") :])
    return unique_ids(found)


def unique_ids(svgs: Sequence[str]) -> list[str]:
    """SVGs whose ids do not clash where they stand in one page: a clip path would be that of the first."""
    found = []
    for index, svg in enumerate(svgs):
        svg = re.sub(r'(?<=\bid=")', f"p{index}-", svg)
        found.append(re.sub(r'(?<=url\(#)|(?<=href="#)', f"p{index}-", svg))
    return found


def write_picture(report: Report, path: Path, kind: str) -> None:
    """All curves in one file, below each other.

    Args:
        report: with at least one application.
        path: of the file.
        kind: a format of matplotlib's.
    """
    import matplotlib
    from matplotlib.figure import Figure

    count = len(report.applications)
    figure = Figure(figsize=(8, 4.5 * count), layout="constrained", dpi=min(110, MOST_PIXELS / (4.5 * count)))
    for axes, (label, application) in zip(figure.subplots(count, squeeze=False).flat, report.applications, strict=True):
        draw(axes, label, application, report)
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tracker"}):
        figure.savefig(path, format=kind, metadata=metadata.get(kind))


def _band(application: Application) -> str:
    sure = f", at {application.confidence:.0%} confidence" if application.confidence is not None else ""
    return f"tolerance {application.tolerance:g}{sure}"


def _limit(application: Application) -> float:
    """The largest drop that is shown."""
    return SHOWN * application.tolerance or math.inf


def _hidden(application: Application, drops: Sequence[float]) -> str:
    beyond = sum(drop > _limit(application) for drop in drops)
    return f" ({beyond} of {len(drops)} runs beyond the frame)" if beyond else ""


def frame(application: Application, drops: Sequence[float]) -> tuple[float, float]:
    """The performances at the bottom and at the top: the anchor's, the band, and all points within ten tolerances.

    Worse is always below.
    """
    shown = [0.0, application.tolerance, *(drop for drop in drops if drop <= _limit(application))]
    room = 0.08 * (max(shown) - min(shown)) or 1e-3
    sign = 1 if application.higher_is_better else -1
    return (
        application.performance - sign * (max(shown) + room),
        application.performance - sign * (min(shown) - room),
    )


def _plain(text: str) -> str:
    """Text as it is, which matplotlib would take for a formula between two dollar signs."""
    return text.replace("$", r"\$")
