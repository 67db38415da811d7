"""No network while an architecture is built: a receiver wants none of the weights that a zoo would download."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Iterator
from typing import Any

from tracker.anchors.zoo import environment
from tracker.errors import TrackerError

CONNECTING = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
_block = threading.local()


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Within the block this thread reaches no other machine, whatever library tries it.

    Raises:
        TrackerError: within the block, where something tries.
    """
    _watch()
    hub = sys.modules.get("huggingface_hub.constants")
    before, outer = getattr(hub, "HF_HUB_OFFLINE", None), getattr(_block, "on", False)
    try:
        with environment("HF_HUB_OFFLINE", "1"):  # read when huggingface_hub is first imported
            if hub is not None:
                hub.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
            _block.on = True
            yield
    finally:
        _block.on = outer
        hub = sys.modules.get("huggingface_hub.constants")
        if hub is not None:
            hub.HF_HUB_OFFLINE = bool(before)  # type: ignore[attr-defined]


@functools.cache
def _watch() -> None:
    """Python tells its audit hooks of every connection, and a hook cannot be taken away again (PEP 578)."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CONNECTING and getattr(_block, "on", False) and not _is_local(event, arguments):
            raise TrackerError("the model's architecture asks for something of the network: refused")

    sys.addaudithook(refuse)


def _is_local(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether it is a socket of this machine's own file system, by which processes talk."""
    return event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], str | bytes)
