"""Plots of a study: interactive in one HTML page, and each as PNG."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.report.draw import write_picture
from tracker.report.interactive import figure as interactive_curve
from tracker.report.interactive import write_page
from tracker.sweep import curve
from tracker.sweep.settings import DROP, RATE, SIZE

if TYPE_CHECKING:
    from tracker.sweep.history import Past
    from tracker.sweep.parent import SweepRun
    from tracker.sweep.sweep import Sweep

MOST_IN_PAIRS = 4
GOOD, BAD, UNKNOWN = "#2a7f3f", "#c0392b", "#9a9a9a"


def log_plots(sweep: Sweep, run: SweepRun, folder: Path) -> None:
    """Log the curve of each codec, and what the search saw: history, importances, contour, front, the rate over qp.

    Args:
        sweep: its trials are done.
        run: to log to.
        folder: for files on their way.
    """
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    figures = []
    if (report := curve.report(sweep)) is not None:
        figures += [("curve", interactive_curve(label, one, "run of the trial")) for label, one in report.applications]
        write_picture(report, plots / "curve.png", "png")
    for name, interactive, drawn in _optuna_plots(sweep):
        figures.append((name, interactive))
        drawn(plots / f"{name}.png")
    for name, points in _own_plots(sweep):
        figures.append((name, points.interactive()))
        points.draw(plots / f"{name}.png")
    if figures:
        write_page(plots / "sweep.html", sweep.shared.name, [interactive for _, interactive in figures])
        run.log_folder(plots, "plots")


def _optuna_plots(sweep: Sweep) -> list[tuple[str, Any, Callable[[Path], None]]]:
    """Optuna's own plots that this study has enough trials for."""
    import optuna.visualization as plotly
    import optuna.visualization.matplotlib as matplotlib
    from matplotlib import pyplot

    study = sweep.shared.study
    complete = [past for past in sweep.history.past.values() if past.feasible is not None and past.value is not None]
    if len(complete) < 2:
        return []
    first: Callable[[Any], float] = lambda trial: trial.values[0]  # noqa: E731
    several: dict[str, Any] = {"target_name": sweep.objective}
    if len(sweep.settings.objectives) > 1:
        several["target"] = first
    wanted = [("history", "plot_optimization_history"), ("importances", "plot_param_importances")]
    chosen = _most_important(sweep, complete, first)
    if len(chosen) > 1:
        wanted.append(("contour", "plot_contour"))
    found = []
    for name, function in wanted:
        options = {**several, "params": chosen} if name == "contour" else several
        try:
            with warnings.catch_warnings(), pyplot.style.context("default"):  # Optuna sets a style for good
                warnings.simplefilter("ignore")
                interactive = getattr(plotly, function)(study, **options)
                axes = getattr(matplotlib, function)(study, **options)
        except (ValueError, RuntimeError):  # too few trials, or all of them alike
            continue
        if name == "contour":
            _spread(interactive, axes, len(chosen))
        found.append((name, interactive, _saver(axes)))
    return found


def _most_important(sweep: Sweep, complete: list[Past], target: Callable[[Any], float]) -> list[str]:
    """The parameters for a plot of all pairs, which more of them would make unreadable."""
    from optuna.importance import get_param_importances

    varied = [key for key in sweep.space if len({str(past.params.get(key)) for past in complete}) > 1]
    if len(varied) <= MOST_IN_PAIRS:
        return varied
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importances = get_param_importances(sweep.shared.study, params=varied, target=target)
    except (ValueError, RuntimeError):  # parameters that only some trials have
        return varied[:MOST_IN_PAIRS]
    return list(importances)[:MOST_IN_PAIRS]


def _spread(interactive: Any, axes: Any, count: int) -> None:
    """Room for all pairs, and the names of parameters without what they have in common."""
    interactive.update_layout(height=240 * count)
    interactive.for_each_xaxis(lambda axis: axis.update(title_text=_short(axis.title.text)))
    interactive.for_each_yaxis(lambda axis: axis.update(title_text=_short(axis.title.text)))
    for one in getattr(axes, "flat", [axes]):
        one.set_xlabel(_short(one.get_xlabel()))
        one.set_ylabel(_short(one.get_ylabel()))
    if hasattr(axes, "flat"):
        figure = axes.flat[0].figure
        figure.set_size_inches(3.2 * count, 2.8 * count)
        figure.subplots_adjust(hspace=0.25, wspace=0.25, right=0.74)  # the bar of colours stands beyond
        for one in axes.flat:
            one.label_outer()


def _short(key: str | None) -> str:
    return (key or "").removeprefix("codec.")


def _saver(axes: Any) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        import matplotlib.pyplot

        first = axes.flat[0] if hasattr(axes, "flat") else axes
        figure = first.figure
        figure.set_size_inches(*(max(now, 8.0) for now in figure.get_size_inches()))
        figure.savefig(path, dpi=100, bbox_inches="tight")
        matplotlib.pyplot.close(figure)

    return save


class _Points:
    """A scatter of trials, in three colours: within all bounds, beyond one, not measured that far."""

    def __init__(self, title: str, x: str, y: str, points: list[tuple[Past, float, float]]) -> None:
        self.title, self.x, self.y, self.points = title, x, y, points
        self.line: list[tuple[float, float]] = []
        self.limit: float | None = None
        self.shown: tuple[float, float] | None = None

    def groups(self) -> list[tuple[str, str, list[tuple[Past, float, float]]]]:
        """Label, colour and points of each group that there is."""
        words = {True: ("within the bounds", GOOD), False: ("beyond", BAD), None: ("stopped early", UNKNOWN)}
        return [
            (label, colour, chosen)
            for which, (label, colour) in words.items()
            if (chosen := [point for point in self.points if point[0].feasible is which])
        ]

    def interactive(self) -> Any:
        """With Plotly; a point tells its trial and its values."""
        import plotly.graph_objects as go

        figure = go.Figure(layout={"title": self.title, "xaxis_title": self.x, "yaxis_title": self.y})
        for label, colour, chosen in self.groups():
            texts = [f"trial {past.number}<br>" + _values(past) for past, _, _ in chosen]
            figure.add_scatter(
                x=[x for _, x, _ in chosen],
                y=[y for _, _, y in chosen],
                mode="markers",
                name=label,
                text=texts,
                marker_color=colour,
            )
        if self.line:
            figure.add_scatter(x=[x for x, _ in self.line], y=[y for _, y in self.line], mode="lines", name="front")
        if self.limit is not None:
            figure.add_hline(y=self.limit, line_dash="dash", annotation_text="tolerance")
        if self.shown is not None:
            figure.update_yaxes(range=self.shown)
        return figure

    def draw(self, path: Path) -> None:
        """With matplotlib."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained", dpi=110)
        axes = figure.subplots()
        for label, colour, chosen in self.groups():
            axes.plot([x for _, x, _ in chosen], [y for _, _, y in chosen], "o", color=colour, label=label, alpha=0.8)
        if self.line:
            axes.plot([x for x, _ in self.line], [y for _, y in self.line], "-", color="#3b76af", label="front")
        if self.limit is not None:
            axes.axhline(self.limit, color="black", linestyle="--", linewidth=1, label="tolerance")
        axes.set(title=self.title, xlabel=self.x, ylabel=self.y)
        if self.shown is not None:
            axes.set_ylim(*self.shown)
            higher = sum(y > self.shown[1] for _, _, y in self.points)
            if higher:
                word = "trial" if higher == 1 else "trials"
                axes.set_title(f"{self.title} ({higher} {word} above the frame)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.savefig(path)


def _own_plots(sweep: Sweep) -> list[tuple[str, _Points]]:
    """The drop over the rate, and the rate over the parameter that it falls with."""
    past = list(sweep.history.past.values())
    rate, wanted = RATE, sweep.settings.directions
    others = len(wanted) > 1 and not set(wanted) <= {SIZE, RATE, DROP}  # whose front is another one
    both = [
        (one, one.outcome.metrics[rate], _drop(one))
        for one in past
        if rate in one.outcome.metrics and _drop(one) is not None
    ]
    plots = []
    if both:
        pareto = _Points("performance over rate", "rate in percent", "drop (lower is better)", both)
        pareto.line = front([(x, y) for one, x, y in both if DROP in one.outcome.metrics])
        pareto.limit = tolerance = float(sweep.config(sweep.base)["task"]["tolerance"])
        drops = [y for _, _, y in both]
        # Trials far beyond the tolerance would squeeze all others into one line.
        pareto.shown = (min(drops) - tolerance, max(min(max(drops), 10 * tolerance), min(drops)) + tolerance)
        plots.append(("performance_over_rate" if others else "pareto_front", pareto))
    if others:
        plots.append(("pareto_front", _objectives(sweep, past)))
    key = sweep.settings.rate_falls_with or ""
    along = [
        (one, one.params[key], one.outcome.metrics[rate])
        for one in past
        if key in one.params and rate in one.outcome.metrics
    ]
    if along:
        plots.append(("rate_over_qp", _Points(f"rate over {key}", key, "rate in percent", along)))
    return plots


def _objectives(sweep: Sweep, past: list[Past]) -> _Points:
    """The first two objectives, and the front of all of them."""
    (x, first), (y, second) = list(sweep.settings.directions.items())[:2]
    both = [(one, one.outcome.metrics[x], one.outcome.metrics[y]) for one in past if {x, y} <= set(one.outcome.metrics)]
    words = {"minimize": "lower is better", "maximize": "higher is better"}
    found = _Points("front of the objectives", f"{x} ({words[first]})", f"{y} ({words[second]})", both)
    ahead = {trial.number for trial in sweep.shared.study.best_trials}
    found.line = sorted((one, two) for past, one, two in both if past.number in ahead)
    return found


def _drop(past: Past) -> Any:
    return past.outcome.metrics.get(DROP, past.outcome.metrics.get("performance/drop_so_far"))


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in both coordinates (less is better), from left to right."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not found or y < found[-1][1]:
            found.append((x, y))
    return found


def _values(past: Past) -> str:
    shown = {**past.params, SIZE: past.outcome.metrics.get(SIZE)}
    return "<br>".join(f"{key}: {value}" for key, value in shown.items())
