"""The curve of rate and performance as `tracker.report.draw` draws it, to zoom into and to point at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from tracker.report.collect import Application, Point
from tracker.report.curves import front
from tracker.report.draw import COLOURS, frame

HEIGHT = 480  # of a plot, in pixels


def figure(label: str, application: Application, noun: str = "run") -> Any:
    """One application's curve, with Plotly; a point tells its run, its bytes and its drop.

    Args:
        label: of the anchor.
        application: with its working points.
        noun: what a point is.
    """
    import plotly.graph_objects as go

    made = go.Figure(layout={"template": "plotly_white", "title": f"{label} · {application.data}"})
    made.update_layout(xaxis_title="rate in percent of the anchor", yaxis_title=application.metric)
    anchor, band = application.performance, application.tolerance * (-1 if application.higher_is_better else 1)
    tolerance = f"tolerance {application.tolerance:g}"
    made.add_hrect(
        anchor,
        anchor + band,
        fillcolor="#2a7f3f",
        opacity=0.15,
        line_width=0,
        annotation_text=tolerance,
        annotation_position="bottom left",
    )
    made.add_hline(
        anchor,
        line_dash="dash",
        line_color="black",
        line_width=1,
        annotation_text=f"anchor {anchor:.4f}",
        annotation_position="top left",
    )
    drops: list[float] = []
    for index, (codec, points) in enumerate(application.points.items()):
        best = front(points)
        ahead = {id(point) for point in best}
        rest = [point for point in points if id(point) not in ahead and math.isfinite(point.decoded)]
        common = {"name": codec, "legendgroup": codec, "marker_color": COLOURS[index % len(COLOURS)]}
        made.add_scatter(**_data(best, noun), mode="lines+markers", **common)
        if rest:
            made.add_scatter(**_data(rest, noun), mode="markers", opacity=0.35, showlegend=False, **common)
        drops += [point.drop for point in points if math.isfinite(point.drop)]
    made.update_yaxes(range=frame(application, drops))
    return made


def _data(points: Sequence[Point], noun: str) -> dict[str, Any]:
    texts = [
        f"{escape(point.codec)}: {point.size:,} bytes, {point.rate:.2f} %<br>drop {point.drop:.4g}, "
        f"{'transparent' if point.transparent else 'not transparent'}<br>{noun} {point.run_id}"
        for point in points
    ]
    return {
        "x": [point.rate for point in points],
        "y": [point.decoded for point in points],
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
    }


def write_page(path: Path, title: str, figures: Sequence[Any]) -> None:
    """One page with all figures, and Plotly's script in it once, so that it opens without a network.

    It is white whatever surrounds it: Plotly's letters are dark.

    Args:
        path: of the page.
        title: above the figures.
        figures: Plotly's.
    """
    parts = [
        one.to_html(full_html=False, include_plotlyjs=index == 0, default_height=f"{one.layout.height or HEIGHT}px")
        for index, one in enumerate(figures)
    ]
    style = ":root { color-scheme: light; } body { font-family: sans-serif; background: #ffffff; color: #1d1d1f; }"
    path.write_text(
        f"<!doctype html><html><head><meta charset='utf-8'><title>{escape(title)}</title><style>{style}</style></head>"
        f"<body><h3>{escape(title)}</h3>{''.join(parts)}</body></html>",
        encoding="utf-8",
    )
