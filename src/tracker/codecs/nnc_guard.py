"""nncodec's decoder, kept from tensors whose forged shape would end the process.

NNCodec 2.1.3 believes the shapes in a bitstream. With a dimension of 0 its C++ part divides by zero, which no Python
code can catch; with huge ones it takes all memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tracker.errors import TrackerError


@contextlib.contextmanager
def checked_shapes(memory: int) -> Iterator[None]:
    """Look at the shape of every tensor before nncodec decodes it.

    Args:
        memory: bytes that may be taken.

    Raises:
        TrackerError: on the way, for an empty tensor, or for more than the memory holds.
    """
    from nncodec.nnc_core import coder

    original = coder.baseline.decode
    claimed = 0

    def decode(decoder: Any, approx_data: Any, approx_param_base: Any, param: Any, *rest: Any) -> Any:
        nonlocal claimed
        size = approx_data["parameters"][param].nbytes
        claimed += 2 * size  # integers first, then float32
        if size == 0 or claimed > memory:
            raise TrackerError("the NNC bitstream names a tensor of an impossible shape; get the bitstream again")
        return original(decoder, approx_data, approx_param_base, param, *rest)

    coder.baseline.decode = decode
    try:
        yield
    finally:
        coder.baseline.decode = original
