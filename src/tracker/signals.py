"""Ctrl-C and SIGTERM, which end a run even where a library swallows the exception.

Python raises KeyboardInterrupt wherever it happens to be. In an import, a weak reference's callback or an extension
module it may be turned into another exception or ignored, so what was received is also kept, and looked at on the way.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Terminated(BaseException):
    """SIGTERM; not an Exception, so that nothing on the way takes it for an ordinary failure."""


received: list[type[BaseException]] = []
holding: list[bool] = []


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


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let a few steps be done together: what is received meanwhile waits for the next `check`."""
    check()
    holding.append(True)
    try:
        yield
    finally:
        holding.pop()


def _raiser(kind: type[BaseException]) -> Any:
    def handle(number: int, frame: FrameType | None) -> None:
        received.append(kind)
        if holding and len(received) == 1:
            return  # for the next `check`; a second Ctrl-C does not wait
        raise kind

    return handle


def _unraisable(details: Any) -> None:
    """Python prints a traceback for an exception in a callback; these two are dealt with by `check`."""
    if details.exc_type not in (KeyboardInterrupt, Terminated):
        sys.__unraisablehook__(details)
