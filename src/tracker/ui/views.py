"""Saved views of MLflow's pages: an experiment's runs with the columns and charts that tell codecs apart.

MLflow keeps a view as a tag of the experiment, ``mlflow.sharedViewState.KEY``: the state of the page as JSON, plain or
as "deflate;" with the base64 of its zlib stream. Its page of runs takes on the state that ``?viewStateShareKey=KEY``
names. A state within an envelope with a name is listed in the page's menu of saved views as well. Seen in MLflow 3.17.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode
from uuid import NAMESPACE_URL, uuid5

TAG = "mlflow.sharedViewState."
KEY = "tracker"
NAME = "tracker: smallest first"
HEADER = "deflate;"
SIZE, RATE = "size/bitstream_bytes", "size/rate_percent"
DECODED, DROP = "performance/decoded", "performance/drop"
MEASURED = (SIZE, RATE, DECODED, DROP)
COSTS = ("time/encode_s", "time/decode_s", "cost/mac_ratio")
GLANCE, DIFFERENCES = "At a glance", "What differs"
# What MLflow shows in any case, from left to right: the box to tick, the name, when it began, how long it took.
FIXED = {"1": 70, "attributes.`Run Name`": 200, "runDateAndNestInfo": 150, "duration": 90}
WIDTH = 140  # of every other column, in pixels, so that the names of metrics can be read
FOLDED = ("size", "performance", "cost", "time", "memory")  # sections of all other metrics, which MLflow adds


def column(kind: str, name: str) -> str:
    """A column as the page calls it.

    Args:
        kind: ``metrics``, ``params``, ``tags`` or ``attributes``.
        name: of the metric, parameter, tag or attribute.
    """
    return f"{kind}.`{name}`"


def runs_view() -> dict[str, Any]:
    """All runs but the trials of sweeps, the smallest bitstream first, with what they cost."""
    columns = [
        column("tags", "tracker.codec"),
        *(column("metrics", name) for name in MEASURED),
        column("tags", "tracker.transparent"),
        *(column("metrics", name) for name in COSTS),
        column("tags", "tracker.kind"),
    ]
    charts = [
        scatter(RATE, DECODED),
        *map(bar, (RATE, DROP, "time/decode_s", "cost/mac_ratio")),
        parallel([], [RATE, "time/encode_s", "time/decode_s", DROP]),
        differences(),
    ]
    return _state("tags.`tracker.kind` != 'trial'", SIZE, True, columns, charts)


def trials_view(
    parent: str, order: str, ascending: bool, params: Sequence[str], metrics: Sequence[str]
) -> dict[str, Any]:
    """The trials of one sweep, the best first, with the parameters that differ.

    Args:
        parent: id of the sweep's run.
        order: the metric that is the objective.
        ascending: whether less of it is better.
        params: that differ, by the names that the trials log.
        metrics: that matter.
    """
    columns = [
        *(column("metrics", name) for name in metrics),
        column("tags", "tracker.transparent"),
        *(column("params", name) for name in params),
    ]
    drawn = [name for name in metrics if name != SIZE or RATE not in metrics]  # which are the same on another scale
    charts = [parallel(params, drawn), *([scatter(RATE, DECODED)] if RATE in metrics else [])]
    wanted = f"tags.`mlflow.parentRunId` = '{parent}' AND tags.`tracker.kind` = 'trial'"
    return _state(wanted, order, ascending, columns, charts, wide=True)


def bar(metric: str) -> dict[str, Any]:
    """A chart with a bar for each run."""
    return _chart("BAR", metric, displayName=metric, metricKey=metric, runsCountToCompare=20)


def scatter(x: str, y: str) -> dict[str, Any]:
    """A chart with a point for each run."""
    first, second = ({"key": name, "type": "METRIC"} for name in (x, y))
    return _chart("SCATTER", f"{y} over {x}", xaxis=first, yaxis=second, runsCountToCompare=100)


def parallel(params: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """Parallel coordinates: a line for each run, whose colour is the last metric."""
    name = " ".join([*params, *metrics])
    return _chart("PARALLEL", name, selectedParams=list(params), selectedMetrics=list(metrics), showAllRuns=True)


def differences() -> dict[str, Any]:
    """A table of what differs between the runs that are shown: their parameters and metrics."""
    shown = {"compareGroups": ["Parameters", "Model metrics"], "showDifferencesOnly": True}
    return _chart("DIFFERENCE", DIFFERENCES, DIFFERENCES, chartName=DIFFERENCES, showChangeFromBaseline=False, **shown)


def _chart(kind: str, name: str, section: str = GLANCE, **options: Any) -> dict[str, Any]:
    place = {"uuid": _id(f"{kind} {name}"), "metricSectionId": _id(section)}
    return {"type": kind, **place, "deleted": False, "isGenerated": False, **options}


def _id(name: str) -> str:
    return str(uuid5(NAMESPACE_URL, name))


def _state(
    wanted: str,
    order: str,
    ascending: bool,
    columns: Sequence[str],
    charts: Sequence[Mapping[str, Any]],
    wide: bool = False,
) -> dict[str, Any]:
    """A view of the page; whatever it leaves out is as MLflow has it.

    Args:
        wanted: a search for runs.
        order: the metric that they are sorted by.
        ascending: whether the smallest comes first.
        columns: of the table.
        charts: of the chart view.
        wide: whether each chart has a row of its own.
    """
    used = {chart["metricSectionId"] for chart in charts}
    sections = [
        {"uuid": _id(name), "name": name, "display": _id(name) in used, "isReordered": False, "isGenerated": False}
        for name in (GLANCE, DIFFERENCES, *FOLDED)
        if name in FOLDED or _id(name) in used
    ]
    for section in sections:
        if section["name"] == DIFFERENCES or (wide and section["name"] == GLANCE):
            section |= {"columns": 1, "cardHeight": 480}
    return {
        "searchFilter": wanted,
        "orderByKey": column("metrics", order),
        "orderByAsc": ascending,
        "selectedColumns": list(columns),
        "columnOrder": [*FIXED, *columns],
        "columnWidths": {**FIXED, **dict.fromkeys(columns, WIDTH)},
        "compareRunCharts": list(charts),
        "compareRunSections": sections,
        "isAccordionReordered": True,  # or MLflow would sort the sections by their names
        "runsHiddenMode": "SHOW_ALL" if wide else "FIRST_20_RUNS",
    }


def packed(state: Mapping[str, Any]) -> str:
    """A state as a tag holds it."""
    return HEADER + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()


def unpacked(text: str) -> dict[str, Any]:
    """The state in a tag, with or without a name.

    Raises:
        ValueError: it is none.
    """
    if text.startswith(HEADER):
        try:
            text = zlib.decompress(base64.b64decode(text.removeprefix(HEADER))).decode()
        except zlib.error as error:
            raise ValueError(str(error)) from error
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no state")
    inner = found.get("state")
    return unpacked(inner) if isinstance(inner, str) else found


def tags(state: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The tag of an experiment with the view that all experiments of tracker's have.

    Args:
        state: by default `runs_view`.
    """
    now = int(time.time() * 1000)
    named = {"name": NAME, "createdAt": now, "updatedAt": now, "state": packed(state or runs_view())}
    return {f"{TAG}{KEY}": json.dumps(named)}


def address(server: str, experiment: str, key: str = KEY, mode: str = "") -> str:
    """The page of an experiment's runs in a view.

    Args:
        server: its address; empty for a link within MLflow's pages.
        experiment: its id.
        key: of the view.
        mode: ``CHART`` for the charts.
    """
    words = {
        "workflowType": "machine_learning",
        "viewStateShareKey": key,
        **({"compareRunsMode": mode} if mode else {}),
    }
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?{urlencode(words)}".removeprefix("/")
