"""A run is made on a server once, though an answer may be lost: a word of its own among its tags finds it again."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tracker.tracking import outage, watchdog
from tracker.tracking.outage import Repeated, ServerLost
from tracker.tracking.store import without_secrets
from tracker.tracking.unsent import FOLDER, Unsent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TAG = "tracker.created"
NEVER_BEGAN = "the tracking server was lost as the run began"


def create_run(client: MlflowClient, uri: str, experiment: str, name: str, tags: Mapping[str, str]) -> Run:
    """A new run; of several that the server made, as MLflow asked it again, one stays.

    Args:
        client: of the store at ``uri``.
        uri: of the tracking store.
        experiment: the experiment's id.
        name: of the run.
        tags: of the run.

    Raises:
        ServerLost: the server does not answer; a run that it may have made is marked FAILED later.
    """
    if not outage.is_server(uri):
        return client.create_run(experiment, tags=dict(tags), run_name=name)
    word, before = uuid.uuid4().hex, Repeated.count
    try:
        with outage.guarded(uri):
            run = client.create_run(experiment, tags={**tags, TAG: word}, run_name=name)
            if Repeated.count != before:
                for other in made(client, experiment, word):
                    if other.info.run_id != run.info.run_id:
                        client.set_terminated(other.info.run_id, "FAILED")
                        client.delete_run(other.info.run_id)
    except ServerLost:
        if "mlflow.parentRunId" not in tags:  # a sweep marks its own
            note({"run": word, "experiment": experiment, "kind": tags["tracker.kind"]}, uri, NEVER_BEGAN)
        watchdog.tell(uri, "failed", f"{experiment}/{word}")
        raise
    return run


def made(client: MlflowClient, experiment: str, word: str) -> list[Run]:
    """The runs that were made with a word."""
    return list(client.search_runs([experiment], f"tags.`{TAG}` = '{word}'"))


def note(about: Mapping[str, str], uri: str, reason: str) -> None:
    """Keep that a run failed, for `tracker.send`, as the server may be gone for longer than the watchdog waits.

    Args:
        about: the ``run``'s id, or the word that it was made with in an ``experiment``.
        uri: of the tracking store.
        reason: why it failed.
    """
    with contextlib.suppress(OSError):  # a folder that cannot be written to is not what is to be told now
        unsent = Unsent.begin({**about, "server": without_secrets(uri)})
        unsent.fail(reason)
        unsent.release()


def forget(name: str) -> None:
    """Delete what `note` kept: the run is marked."""
    unsent = Unsent(FOLDER / name)
    if unsent.folder.is_dir() and unsent.hold() and [verb for verb, _, _ in unsent.entries()] == ["fail"]:
        unsent.remove()
