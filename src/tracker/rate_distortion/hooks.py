"""Hooks on a network's layers, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(hooks: Sequence[RemovableHandle]) -> Iterator[None]:
    """Hooks that have just been registered, removed at the end whatever happens."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
