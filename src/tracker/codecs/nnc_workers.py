"""NNCodec on all cores: tensors are coded by several processes, because its coder holds Python's global lock.

Memory is what limits them. NNCodec's trellis takes 64 bytes an element, 16 times the tensor itself, but a quarter of
the time: all large ones together hold no more elements than the largest tensor, once for every two processes. Arrays go
through pipes as they are, one task at a time; each process is `nnc_process` and no more.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from queue import SimpleQueue
from typing import Any, TypeVar

from tracker.codecs.nnc_process import FAILED, ROOM, hear, say
from tracker.errors import TrackerError

K = TypeVar("K")
SMALL = 1 << 17  # elements whose trellis waits for no room: 8 MiB for each process
# Each process has a core; and glibc gives blocks of a MiB and more back as soon as they are freed.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
}


def each(
    label: str,
    function: Callable[..., Any],
    costs: Mapping[K, int],
    task: Callable[[K], tuple[Any, ...]],
    worth: int,
    apart: bool = False,
) -> Iterator[tuple[K, Any]]:
    """What a function gives for each of several tasks, in any order, with a progress bar on a terminal.

    Args:
        label: of the bar.
        function: of this package, found by its name in another process.
        costs: by the task's key, at least the elements of its largest tensor; the dearest task is begun first.
        task: from the key to the function's arguments; called when there is a process for it, in a thread.
        worth: total cost from which other processes are used.
        apart: use them in any case: a task may end the process that does it.

    Yields:
        The key, and what the function gave.
    """
    from tqdm import tqdm

    order = sorted(costs, key=lambda key: -costs[key])
    count = _processes(len(order)) if apart or sum(costs.values()) >= worth else 1
    if count == 1 and not apart:
        found = ((key, function(*task(key))) for key in order)
    else:
        found = _in_processes(count, Room(costs[order[0]] * max(1, count // 2)), order, function, task)
    with contextlib.closing(found):
        yield from tqdm(found, total=len(order), desc=label, unit="tensor", disable=None, leave=False)


class Room:
    """So many elements may be worked on at a time, and who wants more waits."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, elements: int) -> Iterator[None]:
        """Wait until so many are free; what is larger than the room takes all of it."""
        elements = min(elements, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= elements)
            self._free -= elements
        try:
            yield
        finally:
            with self._changed:
                self._free += elements
                self._changed.notify_all()


class Worker:
    """Another process, which does one task at a time."""

    def __init__(self) -> None:
        # On Ctrl-C, which reaches it too, it has nothing to say: its caller ends it.
        folders = [str(folder) for folder in sys.path]
        code = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
            f"sys.path[:] = {folders!r}; from tracker.codecs.nnc_process import serve; serve()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._asked, self._answers = self._process.stdin, self._process.stdout

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], room: Room) -> Any:
        """What the function gives there, or raises."""
        try:
            say(self._asked, (function, arguments))
            kind, value = hear(self._answers)
            while kind == ROOM:
                with room.taken(value) if value > SMALL else contextlib.nullcontext():
                    say(self._asked, None)
                    hear(self._answers)  # that the room was left
                kind, value = hear(self._answers)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            status = self._process.wait()
            raise TrackerError(
                f"a process that codes tensors ended with status {status}: is memory short, or a bitstream damaged?"
            ) from error
        if kind == FAILED:
            raise value
        return value

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Close the pipes, when no thread reads or writes them any more."""
        self._answers.close()
        with contextlib.suppress(OSError):  # something was left to write
            self._asked.close()


def _in_processes(
    count: int, room: Room, order: list[K], function: Callable[..., Any], task: Callable[[K], tuple[Any, ...]]
) -> Generator[tuple[K, Any], None, None]:
    """Tasks in several processes, each driven by a thread; none is left when this ends, however it does."""
    waiting = iter(order)
    found: SimpleQueue[tuple[K, Any] | BaseException] = SimpleQueue()
    workers: list[Worker] = []
    threads: list[threading.Thread] = []

    def drive(worker: Worker) -> None:
        try:
            for key in waiting:
                found.put((key, worker.call(function, task(key), room)))
        except BaseException as error:  # nncodec raises SystemExit
            found.put(error)

    try:
        for _ in range(count):
            workers.append(Worker())
            threads.append(threading.Thread(target=drive, args=(workers[-1],), daemon=True))
            threads[-1].start()
        for _ in order:
            one = found.get()
            if isinstance(one, BaseException):
                raise one
            yield one
            del one
    finally:
        for worker in workers:
            worker.kill()
        for thread in threads:
            thread.join()
        for worker in workers:
            worker.close()


def _processes(tasks: int) -> int:
    """How many are of use: no more than cores that this process may use."""
    from joblib import cpu_count

    return max(1, min(cpu_count(), tasks))
