"""SQLite databases that several processes write to, without waiting for the disk at every word.

In write-ahead mode with ``synchronous=NORMAL`` (https://sqlite.org/wal.html) a commit appends to a log, which is
brought to the disk from time to time. A killed process loses nothing; a machine that loses its power may lose the last
few commits, but never the database. It needs memory that all writers share, so it is for a disk of this machine only.
"""

from __future__ import annotations

import atexit
import os
import sqlite3
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "f2fs", "apfs", "hfs", "ntfs"})

engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def write_ahead(file: Path) -> None:
    """Switch a database to write-ahead mode, which it keeps; not where other machines may share it."""
    if not is_local(file):
        return
    connection = sqlite3.connect(file, timeout=60)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


def quick_commits() -> None:
    """Let SQLAlchemy's connections to databases in write-ahead mode append without waiting for the disk."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    if not event.contains(Engine, "connect", _on_connect):
        event.listen(Engine, "connect", _on_connect)
        event.listen(Engine, "engine_connect", lambda connection: engines.add(connection.engine))
        atexit.register(_close, os.getpid())


def _on_connect(connection: Any, record: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        if mode == "wal":
            connection.execute("PRAGMA synchronous=NORMAL")


def _close(process: int) -> None:
    """The last one to close a database brings its log into it, and leaves one file."""
    if process == os.getpid():  # and not in a process that was forked from it
        for engine in list(engines):
            if engine.dialect.name == "sqlite":
                engine.dispose()


def is_local(file: Path) -> bool:
    """Whether a file lies on a disk of this machine, and not on one that it shares with others."""
    import psutil

    path = file.absolute()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[parent] in LOCAL for parent in (path, *path.parents) if parent in mounts), False)
