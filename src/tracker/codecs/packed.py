"""The file of the plain coders: a safetensors file, entropy-coded with zstd."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from tracker.codecs.base import Coder

if TYPE_CHECKING:
    from torch import Tensor

FILE = "model.zst"


class ZstdCoder(Coder):
    """A coder whose file is a safetensors file, compressed with zstd at `level`."""

    level: int = Field(default=19, ge=1, le=22, description="zstd's level; from 20 on decoding takes much memory")

    def pack(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Write tensors to the coder's file."""
        import zstandard
        from safetensors.torch import save

        from tracker.bitstream.state import own_memory

        compressor = zstandard.ZstdCompressor(level=self.level, threads=-1, write_content_size=True)
        (folder / FILE).write_bytes(compressor.compress(save(own_memory(tensors))))

    def unpack(self, folder: Path) -> dict[str, Tensor]:
        """The tensors in the coder's file."""
        from safetensors.torch import load

        from tracker.bitstream.state import unpack

        return load(unpack(folder / FILE))
