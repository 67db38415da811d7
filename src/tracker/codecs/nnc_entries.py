"""NNCodec's encoder, spared the work that only a scan by blocks needs.

NNCodec 2.1.3 decodes each tensor again as soon as it is coded, and copies all of them for that, to find where rows of
blocks begin in the bitstream (the standard's entry points). Only units with a scan order other than 0 name these.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any


@contextlib.contextmanager
def where_needed() -> Iterator[None]:
    """Within the block, entry points are looked for where the bitstream has them; the bytes are the same."""
    import numpy as np
    from nncodec.nnc_core import coder

    original, library = coder.baseline.decodeAndCreateEPs, coder.copy

    def found(decoder: Any, data: Any, base: Any, name: str, unit: Mapping[str, Any], *rest: Any) -> Any:
        if unit.get("scan_order", 0) == 0:
            return np.empty(0, dtype=np.uint64)
        return original(decoder, data, base, name, unit, *rest)

    coder.baseline.decodeAndCreateEPs, coder.copy = found, SimpleNamespace(deepcopy=_copied)
    try:
        yield
    finally:
        coder.baseline.decodeAndCreateEPs, coder.copy = original, library


def _copied(given: Any) -> Any:
    """A copy in whose tables arrays can be replaced: they are not written to; anything else is copied as a whole."""
    if not isinstance(given, dict):
        return copy.deepcopy(given)
    return {key: dict(part) if isinstance(part, dict) else part for key, part in given.items()}
