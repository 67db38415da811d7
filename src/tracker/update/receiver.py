"""The receiver of updates: ``python -m tracker.update.receiver STATE_FOLDER UPDATE_FOLDER``.

It has a state in a folder, applies updates to it, and needs nothing of the sender's tools.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tracker.errors import TrackerError
from tracker.update.state import Missed, load


class Receiver:
    """A state in a folder.

    A process may be killed at any time: the folder holds the state before an update or after it, and the same update
    may be applied again.
    """

    def __init__(self, folder: Path, trusted: Collection[str] = ()) -> None:
        """Take up what is there.

        Args:
            folder: made where it is missing.
            trusted: packages besides ``tracker`` whose coders and structure changes may be imported.

        Raises:
            TrackerError: the state is damaged.
        """
        self.folder, self.trusted = folder, trusted
        self.state = load(folder)

    def apply(self, update: Path, coder: Any = None) -> None:
        """Decode an update, and keep the state that it leads to.

        Args:
            update: a bitstream folder.
            coder: decodes its files; by default the class that the manifest names, if it comes from a trusted package.

        Raises:
            Missed: it applies to another state.
            TrackerError: it is damaged, or asks for code that is not trusted; the state stays as it is.
        """
        from filelock import FileLock, Timeout

        from tracker.update.delta import applied

        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / "lock", timeout=0):
                self.state = load(self.folder)
                after = applied(self.state, update, coder, self.trusted)
                if after is not self.state:
                    after.save(self.folder)
                self.state = after
        except Timeout as error:
            raise TrackerError(f"{self.folder} is in use by another receiver; let it end first") from error


def main(arguments: list[str] | None = None) -> int:
    """Apply one update, or tell of the state.

    Args:
        arguments: the command line's words.

    Returns:
        0; 2 where a whole model is needed, 1 after any other error.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tracker.update.receiver", description="Apply an update to the state in a folder."
    )
    parser.add_argument("state", type=Path, help="the receiver's folder")
    parser.add_argument("update", type=Path, nargs="?", help="folder with manifest.json; without it, tell of the state")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help="as for tracker.decode")
    chosen = parser.parse_args(arguments)
    from tracker.imports import silent

    try:
        receiver = Receiver(chosen.state, chosen.trust)
        if chosen.update is not None:
            with silent() if not chosen.trust else contextlib.nullcontext():
                receiver.apply(chosen.update)
    except Missed as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (TrackerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if receiver.state is None:
        print(f"{chosen.state}: nothing yet")
    else:
        print(f"{chosen.state}: {receiver.state.digest}, after update {receiver.state.update}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
