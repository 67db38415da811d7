"""What a run logs after the tracking server was lost: kept in a folder of its own until ``python -m tracker.send``.

``run.json`` tells which run it is. Each call of the run's is an entry, in order: ``0001.json``, with the folder
``0001/`` where it has files. An entry is there whole or not at all, as its JSON file gets its name last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.tracking.outage import ServerLost

if TYPE_CHECKING:
    from filelock import BaseFileLock

FOLDER = Path("mlruns/unsent")
ABOUT = "run.json"


class Kept(ServerLost):
    """The server was lost, and the result is kept."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"the tracking server was lost; the result is kept in {folder}; python -m tracker.send sends it"
        )


class Unsent:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: BaseFileLock | None = None

    @classmethod
    def begin(cls, about: Mapping[str, Any]) -> Unsent:
        """A new folder, which belongs to this process until it ends.

        Args:
            about: the ``run``'s id (or, with its ``experiment``, the word that `creating` found it by), its ``kind``,
                and the ``server`` without secrets.
        """
        made = cls(FOLDER / about["run"])
        made.folder.mkdir(parents=True, exist_ok=True)
        made.hold()
        made._write(ABOUT, about)
        return made

    def hold(self) -> bool:
        """Keep others from writing or sending the folder until this process ends; whether nobody else does already."""
        from filelock import FileLock, Timeout

        self.held = FileLock(self.folder / "lock")
        try:
            self.held.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Let others send the folder."""
        if self.held is not None:
            self.held.release()

    def about(self) -> dict[str, Any]:
        """What `begin` was given."""
        return dict(json.loads((self.folder / ABOUT).read_text()))

    def add(self, verb: str, what: Mapping[str, Any], source: Path | None = None) -> None:
        """Keep one operation.

        Args:
            verb: a key of `operations.OPERATIONS`.
            what: it logs.
            source: a folder, which is copied.
        """
        number = f"{1 + sum(1 for _ in self.entries()):04}"
        if source is not None:
            partial = self.folder / f".{number}"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source, partial)
            partial.replace(self.folder / number)
        self._write(f"{number}.json", {"verb": verb, "what": dict(what), "files": source is not None})

    def entries(self) -> Iterator[tuple[str, dict[str, Any], Path | None]]:
        """Each operation: verb, what it logs, and its files."""
        for path in sorted(self.folder.glob("[0-9]*.json")):
            entry = json.loads(path.read_text())
            yield entry["verb"], entry["what"], path.with_suffix("") if entry["files"] else None

    def fail(self, reason: str) -> None:
        """The run failed after all: nothing is kept of it but that."""
        for path in sorted(self.folder.glob("[0-9]*.json"), reverse=True):
            path.unlink()
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        self.add("fail", {"reason": reason})

    def remove(self) -> None:
        """Delete the folder: first as a whole, by its name, so that half of it is never taken for an unsent run."""
        gone = self.folder.with_name(f".sent-{self.folder.name}")
        shutil.rmtree(gone, ignore_errors=True)
        self.folder.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        partial = self.folder / f".{name}"
        partial.write_text(json.dumps(content, indent=1))
        partial.replace(self.folder / name)
