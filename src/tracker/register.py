"""``python -m tracker.register RUN_ID [NAME]``: a run's result as a version in the model registry."""

from __future__ import annotations

import argparse
import logging
import sys

from tracker.errors import TrackerError


def main(arguments: list[str] | None = None) -> int:
    """Register the model of a run.

    Args:
        arguments: the command line's words.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tracker.register",
        description="Register the model of a compression run. The alias `transparent` moves to the smallest version "
        "whose drop on the split for figures is within the tolerance.",
    )
    parser.add_argument("run", help="the run's id")
    parser.add_argument("name", nargs="?", help="of the registered model; by default the anchor's")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("tracker").setLevel(logging.INFO)
    from tracker.tracking import registry, store

    uri = store.tracking_uri()
    file = store.database_file(uri)
    try:
        if file is not None and not file.exists():  # there is nothing in a new one
            raise TrackerError(f"there is no tracking store {file}; set MLFLOW_TRACKING_URI, or go where mlruns/ is")
        registry.register(store.connect(uri), chosen.run, chosen.name)
    except TrackerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
