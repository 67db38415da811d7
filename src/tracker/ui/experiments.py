"""The experiments of a store that tracker logs to, and their views."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracker.errors import TrackerError
from tracker.ui import views

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment


def viewed(client: MlflowClient, name: str | None = None) -> list[tuple[str, str]]:
    """Ids and names of experiments with runs of tracker's, each of which now has the view; those used last come first.

    Args:
        client: of the store.
        name: of the only one that is wanted.

    Raises:
        TrackerError: there is none.
    """
    from mlflow.exceptions import MlflowException

    found = [one for one in _all(client) if name in (None, one.name)]
    if name is not None and not found:
        raise TrackerError(f"there is no experiment {name!r}; python -m tracker.ui without --experiment shows all")
    found = [one for one in found if _has_runs(client, one)]
    if not found:
        place = f"the experiment {name!r}" if name else "this store"
        raise TrackerError(f"{place} has no run of tracker's yet; make one by python -m tracker +codec=nnc")
    for one in found:
        if _current(one):
            continue
        try:
            for key, value in views.tags().items():
                client.set_experiment_tag(one.experiment_id, key, value)
        except MlflowException as error:  # a server that lets one read only
            raise TrackerError(f"the experiment {one.name!r} cannot be given the view ({error.message})") from error
    return [(one.experiment_id, one.name) for one in found]


def _all(client: MlflowClient) -> list[Experiment]:
    found: list[Experiment] = []
    token = None
    while True:
        page = client.search_experiments(order_by=["last_update_time DESC"], page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _has_runs(client: MlflowClient, experiment: Experiment) -> bool:
    return bool(client.search_runs([experiment.experiment_id], "tags.`tracker.kind` != ''", max_results=1))


def _current(experiment: Experiment) -> bool:
    """Whether it has the view as this version makes it."""
    try:
        return views.unpacked(experiment.tags.get(f"{views.TAG}{views.KEY}", "")) == views.runs_view()
    except ValueError:
        return False
