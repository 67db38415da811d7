"""The curve of all that was tried on an anchor, logged to the anchor's run when a multirun ends."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.report import collect, table
from tracker.report.draw import write_picture
from tracker.report.interactive import figure, write_page
from tracker.tracking import store, summary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger("tracker")
CURVE = "plots/curve.html"
OUTPUT = "tracker.hydra.output"  # tag with the folder of a run's job


def log_curves(folder: Path) -> None:
    """Draw performance over rate for each anchor of a multirun, over all finished runs of that anchor and task.

    The artifacts are ``plots/curve.png`` and ``plots/curve.html`` of the anchor's run.

    Args:
        folder: of the multirun.
    """
    uri = store.tracking_uri()
    client = store.connect(uri)
    for anchor, split in anchors_of(client, folder).items():
        found = collect.applications(client, uri, [], split, anchor)
        report = table.make(found, uri, split, None)
        with tempfile.TemporaryDirectory() as folder_name:
            scratch = Path(folder_name)
            plots = scratch / "plots"
            plots.mkdir()
            write_picture(report, plots / "curve.png", "png")
            figures = [figure(*one) for one in report.applications]
            write_page(scratch / CURVE, "performance over rate", figures)
            client.log_artifacts(anchor, str(plots), "plots")
        run = client.get_run(anchor)
        note = run.data.tags.get(summary.NOTE, "")
        if CURVE not in note:  # a reader's own words stay
            link = summary.link("The curve of all that was tried", run.info.experiment_id, anchor, CURVE)
            client.set_tag(anchor, summary.NOTE, f"{note} {link}".strip())
        place = summary.where(str(run.info.artifact_uri), "plots/curve.png")
        log.info("curve of %s, %d runs: %s", report.applications[0][0], report.runs, place)


def anchors_of(client: MlflowClient, folder: Path) -> dict[str, str]:
    """The ids of the anchors' runs that the finished compression runs of a multirun point to, with their splits."""
    found: dict[str, str] = {}
    for run in runs_below(client, folder, "compression"):
        if "tracker.anchor.run_id" in run.data.tags:
            found[run.data.tags["tracker.anchor.run_id"]] = run.data.params.get("task.split", "report")
    return found


def runs_below(client: MlflowClient, folder: Path, kind: str) -> Iterator[Run]:
    """The finished runs of a kind whose output is below a folder."""
    ids = [one.experiment_id for one in client.search_experiments()]
    # What LIKE takes for any letter is looked at again below.
    wanted = (
        f"tags.`tracker.kind` = '{kind}' AND attributes.status = 'FINISHED' AND tags.`{OUTPUT}` LIKE "
        f"'{str(folder).replace(chr(39), '_')}/%'"
    )
    token: Any = None
    while ids:
        page = client.search_runs(ids, wanted, max_results=1000, page_token=token)
        yield from (run for run in page if folder in Path(run.data.tags[OUTPUT]).parents)
        token = page.token
        if not token:
            break
