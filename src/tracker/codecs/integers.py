"""Plain integer coders: int8 per output channel, and int4 in groups; symmetric, the scales counted.

The scheme is the one of Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference",
section 2.2 (symmetric, per channel) and, for groups, of Frantar et al. 2022, "GPTQ", section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tracker.codecs.base import Context
from tracker.codecs.packed import ZstdCoder
from tracker.codecs.records import TensorRecord
from tracker.errors import TrackerError


class IntegerCoder(ZstdCoder):
    """Base: weights (two dimensions or more) become integers and scales, the others stay floating point."""

    nonweight: Literal["float32", "float16"] = Field(
        default="float32", description="how tensors of one dimension (biases, norms) are stored"
    )

    def quantised(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Integers, scales, and (where it is not in the integers' shape) the weight's shape."""
        raise NotImplementedError

    def dequantised(self, integers: Tensor, scales: Tensor, shape: Tensor | None) -> Tensor:
        """The weight again, float32."""
        raise NotImplementedError

    def encode(self, tensors: Mapping[str, Tensor], folder: Path, model: Any, context: Context) -> list[TensorRecord]:
        """Quantise, then compress.

        Raises:
            TrackerError: a tensor of one dimension has values beyond float16, where that was asked for.
        """
        packed: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if tensor.ndim < 2:
                packed[f"f:{name}"] = tensor.half() if self.nonweight == "float16" else tensor.float()
                if not bool(packed[f"f:{name}"].isfinite().all()):
                    raise TrackerError(f"the tensor {name} is beyond float16; set nonweight=float32")
                continue
            integers, scales, shape = self.quantised(tensor.float())
            packed[f"q:{name}"], packed[f"s:{name}"] = integers, scales
            if shape is not None:
                packed[f"n:{name}"] = shape
        self.pack(packed, folder)
        return [TensorRecord(name) for name in tensors]

    def decode(self, folder: Path) -> dict[str, Tensor]:
        """Decompress and scale."""
        packed = self.unpack(folder)
        tensors = {}
        for key, tensor in packed.items():
            kind, name = key[:2], key[2:]
            if kind == "f:":
                tensors[name] = tensor.float()
            elif kind == "q:":
                tensors[name] = self.dequantised(tensor, packed[f"s:{name}"], packed.get(f"n:{name}"))
        return tensors


class Int8(IntegerCoder):
    """int8 in -127..127 with a float32 scale for each output channel (the first dimension), entropy-coded with zstd."""

    def quantised(self, weight: Tensor) -> tuple[Tensor, Tensor, None]:
        """Integers of the weight's shape, scales (channels,)."""
        flat = weight.reshape(len(weight), -1)
        scales = flat.abs().amax(dim=1) / 127
        integers = (flat / scales.clamp(min=1e-45).unsqueeze(1)).round().clamp(-127, 127)
        return integers.nan_to_num().to(dtype=torch.int8).reshape(weight.shape), scales, None

    def dequantised(self, integers: Tensor, scales: Tensor, shape: Tensor | None) -> Tensor:
        """Integers times their channel's scale."""
        return integers.float() * scales.view(-1, *[1] * (integers.ndim - 1))


class Int4(IntegerCoder):
    """int4 in -7..7 with a scale for each group of values of an output channel, entropy-coded with zstd."""

    group_size: int = Field(default=64, ge=2, le=65536)

    def quantised(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two integers a byte, scales (channels, groups), and the weight's shape."""
        flat = weight.reshape(len(weight), -1)
        columns = flat.shape[1]
        size = min(self.group_size, columns)
        groups = torch.nn.functional.pad(flat, (0, -columns % size)).reshape(len(weight), -1, size)
        scales = groups.abs().amax(dim=2) / 7
        half = scales.half()
        # float16 halves the cost of scales; where rounding one costs more than half a step, the tensor keeps float32.
        if bool(((half.float() - scales).abs() * 14 <= scales).all()):
            scales = half
        steps = scales.float().clamp(min=1e-45).unsqueeze(2)
        integers = (groups / steps).round().clamp(-7, 7).nan_to_num().to(torch.int8)
        integers = integers.reshape(len(weight), -1)[:, :columns].reshape(-1)
        integers = torch.nn.functional.pad(integers, (0, integers.numel() % 2)) + 8
        packed = (integers[::2] | (integers[1::2] << 4)).to(torch.uint8)
        return packed, scales, torch.tensor([*weight.shape, size], dtype=torch.int32)

    def dequantised(self, integers: Tensor, scales: Tensor, shape: Tensor | None) -> Tensor:
        """Integers times their group's scale."""
        if shape is None:
            raise TrackerError("a tensor of the bitstream has no shape; get the bitstream again")
        *dims, size = shape.tolist()
        pairs = torch.stack([integers & 15, integers >> 4], dim=1).reshape(-1).float() - 8
        count = int(torch.tensor(dims).prod())
        flat = pairs[:count].reshape(dims[0], -1)
        spread = scales.float().repeat_interleave(size, dim=1)[:, : flat.shape[1]]
        return (flat * spread).reshape(dims)
