"""``python -m tracker.ui``: MLflow's pages on the store, in the view that tells codecs apart."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any, NoReturn

from tracker.errors import TrackerError


def main(arguments: list[str] | None = None) -> int:
    """Open the pages, and serve them where no server does, until Ctrl-C.

    Args:
        arguments: the command line's words.

    Returns:
        The exit status.
    """
    chosen = parsed(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        show(chosen)
    except TrackerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nended", file=sys.stderr)
    return 0


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options; wrong ones end the process with status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m tracker.ui",
        description="Open MLflow's pages on the tracking store, in a view with the columns and charts that tell codecs "
        "apart. The store is that of MLFLOW_TRACKING_URI, or mlruns/mlflow.db: a database is served until Ctrl-C, a "
        "server only opened.",
    )
    parser.add_argument("--port", type=int, default=5000, metavar="N", help="by default 5000; 0 for any that is free")
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="by default this machine alone can connect")
    parser.add_argument("--experiment", metavar="NAME", help="by default all of tracker's")
    parser.add_argument("--no-open", action="store_true", help="print the addresses, open no browser")
    return parser.parse_args(arguments)


def show(chosen: argparse.Namespace) -> None:
    """Give the experiments their view, and open it.

    Raises:
        TrackerError: there is no store, no such experiment, or no server that answers.
    """
    from tracker.tracking import store
    from tracker.ui import experiments
    from tracker.ui.server import served

    uri = store.tracking_uri()
    if uri.startswith(("http://", "https://")):
        announce(experiments.viewed(store.connect(uri), chosen.experiment), store.without_secrets(uri), chosen)
        return
    if not uri.startswith((store.SQLITE, *store.DATABASES)):
        raise TrackerError(f"MLFLOW_TRACKING_URI={store.without_secrets(uri)} is neither a database nor a server")
    file = store.database_file(uri)
    if file is not None and not file.exists():  # looking at it is no reason to make one
        raise TrackerError(f"there is no tracking store {file}; set MLFLOW_TRACKING_URI, or go where mlruns/ is")
    found = experiments.viewed(store.connect(uri), chosen.experiment)
    with served(uri, chosen.host, chosen.port) as (address, process):
        announce(found, address, chosen)
        print(f"MLflow serves {store.without_secrets(uri)} at {address}; Ctrl-C ends it", flush=True)
        status = process.wait()
        raise TrackerError(f"mlflow server ended with status {status}")


def announce(found: list[tuple[str, str]], server: str, chosen: argparse.Namespace) -> None:
    """Print where each experiment's view is, and open the first.

    Args:
        found: ids and names of experiments.
        server: its address.
        chosen: the options.
    """
    from tracker.ui import views

    for index, (experiment, name) in enumerate(found):
        address = views.address(server, experiment)
        print(f"{name}: {address}", flush=True)
        if index == 0 and not chosen.no_open and _has_screen():
            import webbrowser

            webbrowser.open(address)


def _has_screen() -> bool:
    """Whether a browser has a window to open; one for terminals would take this terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _interrupt(number: int, frame: Any) -> NoReturn:
    """SIGTERM and a closed terminal end it as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
