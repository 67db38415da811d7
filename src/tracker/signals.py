"""Ctrl-C and SIGTERM, which end a run even where a library swallows the exception.

Python raises KeyboardInterrupt wherever it happens to be. In an import, a weak reference's callback or an extension
module it may be turned into another exception or ignored, so what was received is also kept, and looked at on the way.
An extension module whose start calls Python may even abort the process. While modules are imported and nothing has
begun that would have to be ended properly, the process is therefore ended at once, without an exception.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn


class Terminated(BaseException):
    """SIGTERM; not an Exception, so that nothing on the way takes it for an ordinary failure."""


received: list[type[BaseException]] = []
holding: list[bool] = []
begun: list[bool] = []
ending: list[str] = []  # what has been done of an end that one of them caused: ``begun``, ``told``
helpers: list[subprocess.Popen[bytes]] = []  # processes that end with this one
STATUS = {KeyboardInterrupt: (130, "interrupted"), Terminated: (143, "terminated")}


def install() -> None:
    """Note SIGINT and SIGTERM as they come, and end the job by an exception, so that its run is marked."""
    # Only the main thread may set handlers, and some launchers run jobs in others.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, _raiser(Terminated))
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup and the like have it ignored
            signal.signal(signal.SIGINT, _raiser(KeyboardInterrupt))
    sys.unraisablehook = _unraisable


def check() -> None:
    """Raise what was received and swallowed somewhere.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        Terminated: SIGTERM.
    """
    if received:
        raise received[0]


def begin() -> None:
    """Something has begun that an exception must end: a run, a trial."""
    begun.append(True)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let a few steps be done together: what is received meanwhile waits for the next `check`."""
    check()
    begin()
    holding.append(True)
    try:
        yield
    finally:
        holding.pop()


def _raiser(kind: type[BaseException]) -> Any:
    def handle(number: int, frame: FrameType | None) -> None:
        received.append(kind)
        if "told" in ending:
            _leave(STATUS[received[0]][0])  # whatever the end waits for
        if ending:
            return
        if holding and len(received) == 1:
            return  # for the next `check`; a second Ctrl-C does not wait
        if not begun and _importing(frame):
            _end(kind)
        # SQLAlchemy would report the exception, with a traceback, where it interrupts the closing of a connection.
        logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
        raise kind

    return handle


def _importing(frame: FrameType | None) -> bool:
    """Whether the interrupted code belongs to the import of a module."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end(kind: type[BaseException]) -> NoReturn:
    """End the process as the command line would, by the system's own calls: any lock of Python's may be held here."""
    status, word = STATUS[kind]
    os.write(2, f"error: {word} before a run began\n".encode())
    _leave(status)


def _leave(status: int) -> NoReturn:
    for process in helpers:
        process.terminate()
    os._exit(status)


def _unraisable(details: Any) -> None:
    """Python prints a traceback for an exception in a callback; these two are dealt with by `check`."""
    if details.exc_type not in (KeyboardInterrupt, Terminated):
        sys.__unraisablehook__(details)
