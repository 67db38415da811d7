"""The trials of a sweep as the points of a curve of rate and performance, each codec a series."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracker.report.collect import Application, Point, higher_is_better
from tracker.report.table import Report
from tracker.sweep.history import OUTCOME, RUN_ID
from tracker.sweep.settings import DROP, RATE, SIZE

if TYPE_CHECKING:
    from tracker.sweep.sweep import Sweep

ANCHOR, DECODED = "performance/anchor", "performance/decoded"


def report(sweep: Sweep) -> Report | None:
    """The curve of all trials that were measured to the end; None where there are none with a rate."""
    points: dict[str, list[Point]] = {}
    codecs: dict[str, str] = {}
    signs, anchor = [], None
    for trial in sweep.shared.study.get_trials(deepcopy=False):
        past = sweep.history.past.get(trial.number)
        metrics = past.outcome.metrics if past is not None else {}
        if past is None or not {SIZE, RATE, ANCHOR, DECODED, DROP} <= metrics.keys():
            continue
        anchor = metrics[ANCHOR]
        signs.append((anchor, metrics[DECODED], metrics[DROP]))
        point = Point(
            run_id=str(trial.user_attrs.get(OUTCOME, {}).get(RUN_ID) or trial.number),
            experiment=sweep.trials.experiment,
            started=int(trial.datetime_start.timestamp() * 1000) if trial.datetime_start else 0,
            codec=_codec(sweep, past.params, codecs),
            size=int(metrics[SIZE]),
            rate=metrics[RATE],
            decoded=metrics[DECODED],
            drop=metrics[DROP],
            transparent=past.outcome.violation is not None and past.outcome.violation <= 0,
            sha256=past.outcome.sha256 or "",
        )
        points.setdefault(point.codec, []).append(point)
    if anchor is None:
        return None
    application = _application(sweep, anchor, higher_is_better(signs), points)
    count = sum(map(len, points.values()))
    return Report((), [(sweep.trials.title, application)], "", "search", sweep.trials.uri, count)


def _codec(sweep: Sweep, params: Any, known: dict[str, str]) -> str:
    """The chain of a trial, which is composed once for each choice of config groups."""
    groups = {key: params[key] for key, one in sweep.space.items() if one.group and key in params}
    if (key := repr(groups)) not in known:
        config = sweep.config(params)
        known[key] = ">".join(config.get("codec") or {})
    return known[key]


def _application(sweep: Sweep, anchor: float, higher: bool, points: dict[str, list[Point]]) -> Application:
    config = sweep.config(sweep.base)
    evaluation = getattr(getattr(sweep.trials, "anchor", None), "evaluation", None)
    return Application(
        anchor=sweep.trials.title,
        sha256="",
        task_sha256="",
        run_id="",
        experiment=sweep.trials.experiment,
        model="",
        layers="",
        data=f"{config['data']['name']}/search",
        data_sha256="",
        metric=next(iter(evaluation.metrics)) if evaluation else "performance",
        performance=anchor,
        higher_is_better=higher,
        tolerance=float(config["task"]["tolerance"]),
        confidence=config["transparency"]["confidence"],
        points=dict(sorted(points.items())),
    )
