"""nncodec's decoder, kept from tensors whose forged shape would end the process.

NNCodec 2.1.3 believes the shapes in a bitstream. With a dimension of 0 its C++ part divides by zero, which no Python
code can catch; with huge ones it takes all memory, or reads on behind the end of the bitstream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tracker.errors import TrackerError

# Elements that a byte holds in what is likely to be genuine, and that may come with none: 2 bits an element are much in
# practice, and of a tensor with nothing but zeros a byte holds some hundreds.
PER_BYTE, FREE = 64, 1 << 12


class Implausible(TrackerError):
    """A unit claims more elements than such a short one is likely to hold; it may be genuine all the same."""


@contextlib.contextmanager
def checked_shapes(memory: int, length: int | None = None) -> Iterator[None]:
    """Look at the shape of every tensor before nncodec decodes it.

    Args:
        memory: bytes that may be taken.
        length: of the bitstream in bytes, where this process must outlive it; None where it may end.

    Raises:
        TrackerError: on the way, for an empty tensor, or for more than the memory holds.
        Implausible: on the way, where there is a length and the tensor is far larger than it.
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
        if length is not None and size // 4 > PER_BYTE * length + FREE:
            raise Implausible("the NNC bitstream names a tensor that is far larger than the bitstream")
        return original(decoder, approx_data, approx_param_base, param, *rest)

    coder.baseline.decode = decode
    try:
        yield
    finally:
        coder.baseline.decode = original
