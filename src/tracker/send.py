"""``python -m tracker.send [FOLDER]``: what runs kept when their tracking server was lost goes to the server."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tracker.errors import TrackerError
from tracker.tracking.unsent import ABOUT, FOLDER, Unsent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def main(arguments: list[str] | None = None) -> int:
    """Send, and delete what the server has.

    Args:
        arguments: the command line's words.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tracker.send",
        description="Send what runs kept when their tracking server was lost, to the server at MLFLOW_TRACKING_URI. "
        "It may be interrupted and repeated: nothing is logged twice.",
    )
    parser.add_argument("folder", nargs="?", default=str(FOLDER), help=f"one run's, or that of all; default: {FOLDER}")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("tracker").setLevel(logging.INFO)
    from tracker.__main__ import message_of, report

    failed = 0
    try:
        found = folders(Path(chosen.folder))
        if not found:
            print(f"there is nothing to send in {chosen.folder}")
            return 0
        from tracker.tracking import store
        from tracker.tracking.outage import guarded

        uri = store.tracking_uri()
        client = store.connect(uri)
        for each in found:
            try:
                with guarded(uri, "start the same command again once it answers"):
                    print(f"run {each.folder.name}: {sent(client, each)}", flush=True)
            except TrackerError as error:
                failed = 1
                print(f"error: run {each.folder.name}: {message_of(error)}", file=sys.stderr)
    except Exception as error:
        return report(error)
    except KeyboardInterrupt:
        print("error: interrupted; start it again", file=sys.stderr)
        return 130
    return failed


def folders(folder: Path) -> list[Unsent]:
    """The unsent runs in a folder, or in that of one run.

    Raises:
        TrackerError: there is no such folder.
    """
    if not folder.is_dir():
        if folder == FOLDER:
            return []
        raise TrackerError(f"there is no folder {folder}; runs are kept in {FOLDER} of the folder they were started in")
    for gone in folder.glob(".sent-*"):  # deleting it was interrupted
        shutil.rmtree(gone, ignore_errors=True)
    found = [folder] if (folder / ABOUT).exists() else sorted(path.parent for path in folder.glob(f"*/{ABOUT}"))
    return [Unsent(path) for path in found]


def sent(client: MlflowClient, unsent: Unsent) -> str:
    """Send one run; what became of it.

    Raises:
        TrackerError: the run still writes, or the store has no such run.
    """
    from mlflow.exceptions import MlflowException

    from tracker.tracking.operations import OPERATIONS

    if not unsent.hold():
        return "left alone: it is still being written or sent by another process"
    about = unsent.about()
    if "experiment" in about:
        outcome = _never_begun(client, about, _failure(unsent))
        unsent.remove()
        return outcome
    try:
        run = client.get_run(about["run"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise TrackerError(f"the store has no such run; set MLFLOW_TRACKING_URI, it was {about['server']}") from error
    if about["kind"] == "anchor" and (other := _logged_meanwhile(client, run)):
        client.delete_run(run.info.run_id)
        outcome = f"left out: run {other} has measured this anchor meanwhile"
    elif reason := _failure(unsent):
        from tracker.tracking.discard import mark

        mark(client, run.info.run_id, reason)
        outcome = f"marked FAILED: {reason}"
    else:
        for verb, what, files in unsent.entries():
            OPERATIONS[verb](client, run.info.run_id, {**what, "again": True}, files)
        if "tracker.error" in run.data.tags:  # of a watchdog that knew no better
            client.delete_tag(run.info.run_id, "tracker.error")
        outcome = "sent, FINISHED"
    unsent.remove()
    return outcome


def _never_begun(client: MlflowClient, about: Mapping[str, str], reason: str) -> str:
    """Mark a run whose id was never heard; what became of it."""
    from tracker.tracking.creating import made
    from tracker.tracking.discard import mark

    found = made(client, about["experiment"], about["run"])
    for run in found:
        mark(client, run.info.run_id, reason)
    return f"marked FAILED: {reason}" if found else "left out: the server had not made it"


def _failure(unsent: Unsent) -> str:
    """Why the run has no result; empty where it has one."""
    verbs = {verb: what for verb, what, _ in unsent.entries()}
    if "fail" in verbs:
        return str(verbs["fail"]["reason"])
    return "" if "end" in verbs else "killed: the process ended without a word"


def _logged_meanwhile(client: MlflowClient, run: Run) -> str:
    """The id of another finished run of the same anchor and task, which later runs refer to; empty: there is none."""
    words = [f"tags.`{name}` = '{run.data.tags[name]}'" for name in ("tracker.anchor.sha256", "tracker.task.sha256")]
    wanted = " AND ".join([*words, "tags.`tracker.kind` = 'anchor'", "attributes.status = 'FINISHED'"])
    everywhere = [found.experiment_id for found in client.search_experiments()]
    found = [one.info.run_id for one in client.search_runs(everywhere, wanted)]
    return next((one for one in found if one != run.info.run_id), "")


if __name__ == "__main__":
    sys.exit(main())
