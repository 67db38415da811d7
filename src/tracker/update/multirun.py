"""The chart of several modes, logged to their runs when a multirun ends."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.report.multirun import runs_below
from tracker.tracking import store, summary
from tracker.update.chart import Subject, draw

if TYPE_CHECKING:
    from mlflow.entities import Run as Finished

log = logging.getLogger("tracker")
STEM = "modes"


def log_modes(folder: Path) -> None:
    """Draw the runs of kind ``update`` of a multirun as series of one chart, for each sequence of checkpoints.

    The artifacts are ``plots/modes.png`` and ``plots/modes.html`` of each of the runs.

    Args:
        folder: of the multirun.
    """
    uri = store.tracking_uri()
    client = store.connect(uri)
    together: dict[tuple[str, ...], list[Finished]] = {}
    for run in runs_below(client, folder, "update"):
        params = run.data.params
        same = ("anchor.name", "scenario.checkpoints", "task.name", "task.split", "task.tolerance")
        together.setdefault(tuple(params.get(key, "") for key in same), []).append(run)
    for key, runs in together.items():
        if len(runs) < 2:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            series = {name: _rows(client, run.info.run_id, scratch) for name, run in _named(runs).items()}
            metric = runs[0].data.tags.get("tracker.metric", "")
            plots = Path(scratch) / "plots"
            plots.mkdir()
            draw(series, Subject(f"{key[0]}: model updates", metric, float(key[4])), plots, STEM)
            for run in runs:
                client.log_artifacts(run.info.run_id, str(plots), "plots")
        place = summary.where(str(runs[0].info.artifact_uri), f"plots/{STEM}.png")
        log.info("updates of %s, %d runs: %s", key[0], len(runs), place)


def _named(runs: list[Finished]) -> dict[str, Finished]:
    """By the runs' names, each of which stands once, the oldest first."""
    found: dict[str, Finished] = {}
    for run in sorted(runs, key=lambda run: run.info.start_time):
        name = str(run.info.run_name)
        found[name if name not in found else f"{name} ({run.info.run_id[:6]})"] = run
    return found


def _rows(client: Any, run_id: str, folder: str) -> list[dict[str, Any]]:
    table = json.loads(Path(client.download_artifacts(run_id, "updates.json", folder)).read_text())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
