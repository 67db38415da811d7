"""No network while an architecture is built: a receiver wants none of the weights that a zoo would download."""

from __future__ import annotations

import contextlib
import functools
import os
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
    outer, before = getattr(_block, "on", False), _hub_is_offline()
    try:
        with environment("HF_HUB_OFFLINE", "1"):  # read when huggingface_hub is first imported
            _set_hub_offline(True)
            _block.on = True
            yield
    finally:
        _block.on = outer
        _set_hub_offline(before)


def _hub_is_offline() -> bool:
    """What huggingface_hub goes by now, or will when it is imported."""
    hub = sys.modules.get("huggingface_hub.constants")
    by_environment = any(os.environ.get(name) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return bool(getattr(hub, "HF_HUB_OFFLINE", by_environment))


def _set_hub_offline(value: bool) -> None:
    hub: Any = sys.modules.get("huggingface_hub.constants")
    if hub is not None:
        hub.HF_HUB_OFFLINE = value


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
