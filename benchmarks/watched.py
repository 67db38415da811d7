"""The memory of a process and of all that it has started; for the other scripts of this folder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSE = 0.05  # seconds between two looks; a trellis is full for a tenth of a second or more


@contextmanager
def watched(pid: int, seen: Callable[[int], None]) -> Iterator[None]:
    """Look at a process again and again within the block.

    Args:
        pid: of the process.
        seen: told of `memory`.
    """
    done = threading.Event()

    def look() -> None:
        while not done.wait(PAUSE):
            seen(memory(pid))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def memory(pid: int) -> int:
    """Proportional bytes (PSS) of a process and its children; 0 where one of them has just ended."""
    import psutil

    try:
        root = psutil.Process(pid)
        return sum(process.memory_full_info().pss for process in (root, *root.children(recursive=True)))
    except psutil.Error:
        return 0
