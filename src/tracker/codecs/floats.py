"""Plain coders that keep floating point: zstd (lossless), fp16, bf16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tracker.codecs.base import Context
from tracker.codecs.packed import ZstdCoder
from tracker.codecs.records import TensorRecord
from tracker.errors import TrackerError

if TYPE_CHECKING:
    from torch import Tensor


class Zstd(ZstdCoder):
    """The tensors as they are, compressed without loss with zstd."""

    codes_integers: ClassVar[bool] = True

    def encode(self, tensors: Mapping[str, Tensor], folder: Path, model: Any, context: Context) -> list[TensorRecord]:
        """Compress."""
        from tracker.bitstream.state import narrowed

        self.pack({name: t if t.is_floating_point() else narrowed(t) for name, t in tensors.items()}, folder)
        return [TensorRecord(name) for name in tensors]

    def decode(self, folder: Path) -> dict[str, Tensor]:
        """Decompress."""
        return self.unpack(folder)


class HalfPrecision(Zstd):
    """Base of the coders that round to 16 bits."""

    codes_integers: ClassVar[bool] = False

    def rounded(self, tensor: Tensor) -> Tensor:
        """The tensor in the coder's dtype."""
        raise NotImplementedError

    def encode(self, tensors: Mapping[str, Tensor], folder: Path, model: Any, context: Context) -> list[TensorRecord]:
        """Round, then compress.

        Raises:
            TrackerError: a value is beyond the range of the dtype.
        """
        halves = {}
        for name, tensor in tensors.items():
            halves[name] = self.rounded(tensor)
            if not bool(halves[name].isfinite().all()):
                raise TrackerError(
                    f"the tensor {name} has values up to {float(tensor.abs().max()):.3g}, beyond the range of "
                    f"{str(halves[name].dtype).removeprefix('torch.')}; use +codec=zstd"
                )
        self.pack(halves, folder)
        return [TensorRecord(name) for name in tensors]


class Fp16(HalfPrecision):
    """IEEE 754 binary16, entropy-coded with zstd."""

    def rounded(self, tensor: Tensor) -> Tensor:
        """In float16."""
        return tensor.half()


class Bf16(HalfPrecision):
    """bfloat16 (the upper half of binary32, rounded), entropy-coded with zstd."""

    def rounded(self, tensor: Tensor) -> Tensor:
        """In bfloat16."""
        return tensor.bfloat16()
