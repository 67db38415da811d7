"""The two parts of a state dict: what a coder codes, and the little that travels beside it without loss."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import zstandard
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tracker.codecs.records import Integers
from tracker.errors import TrackerError
from tracker.memory import physical_bytes

SIDE = "side.zst"
CODED_DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
BY_NAME = {name: dtype for dtype, name in CODED_DTYPES.items()}


def aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Tied tensors: each name that shares its storage, shape and strides with an earlier one, and that one's name."""
    first: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if key in first:
            tied[name] = first[key]
        else:
            first[key] = name
    return tied


def own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that share memory with no other, as safetensors wants them."""
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        if storage.nbytes() != plain.numel() * plain.element_size() or storage.data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        owned[name] = plain
    return owned


def coded_part(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a coder gets, on the CPU: floating point, at least one dimension, not empty, not tied.

    Raises:
        TrackerError: one of them has a NaN or an infinity.
    """
    tied = aliases(tensors)
    coded = {
        name: tensor.detach().cpu()
        for name, tensor in tensors.items()
        if name not in tied and tensor.dtype in CODED_DTYPES and tensor.ndim > 0 and tensor.numel() > 0
    }
    for name, tensor in tensors.items():
        if tensor.ndim == 0 and tensor.dtype in CODED_DTYPES and bool(tensor.isnan()):
            raise TrackerError(f"the tensor {name} is NaN; mend the weights")
    for name, tensor in coded.items():
        # min and max carry NaN and infinities along, without a mask as large as the tensor.
        low, high = tensor.aminmax()
        if not bool(torch.isfinite(low) and torch.isfinite(high)):
            raise TrackerError(
                f"the tensor {name} has NaN or infinite values; no coder can code that: mend the weights"
            )
        if tensor.dtype == torch.float64 and max(-float(low), float(high)) > torch.finfo(torch.float32).max:
            raise TrackerError(
                f"the tensor {name} has values beyond float32; no coder can code that: scale the weights"
            )
    return coded


def with_coded(tensors: Mapping[str, Tensor], coded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with what a coder makes of its `coded_part`, under tied names as well."""
    tied = aliases(tensors)
    return {name: coded.get(tied.get(name, name), tensor).to(tensor.dtype) for name, tensor in tensors.items()}


def write_side(
    tensors: Mapping[str, Tensor], coded: Mapping[str, Tensor], integers: Mapping[str, Integers], folder: Path
) -> None:
    """Write what the coder does not code: other tensors, tied names, scales, and dtypes other than float32.

    Nothing is written where there is nothing to say.

    Args:
        tensors: the whole state dict.
        coded: what the coder got.
        integers: those of the tensors that are integers and scales; ones that the coder did not get are written here.
        folder: of the bitstream.
    """
    tied = aliases(tensors)
    rest = {name: t for name, t in tensors.items() if name not in coded and name not in tied}
    rest |= {name: narrowed(integers[name].integers) for name in rest if name in integers}
    scales = {name: f"{name}:scale" for name in integers if name not in tied}
    rest |= {key: integers[name].scale.float() for name, key in scales.items()}
    rest = own_memory(rest)
    dtypes = {
        name: CODED_DTYPES[t.dtype] for name, t in coded.items() if t.dtype in CODED_DTYPES and t.dtype != torch.float32
    }
    if dtypes and len(dtypes) == len(coded) and len(set(dtypes.values())) == 1:
        dtypes = {"*": next(iter(dtypes.values()))}
    metadata = {}
    if tied:
        metadata["tied"] = json.dumps(tied, separators=(",", ":"))
    if dtypes:
        metadata["dtype"] = json.dumps(dtypes, separators=(",", ":"))
    if scales:
        metadata["scales"] = json.dumps(scales, separators=(",", ":"))
    if rest or metadata:
        packed = zstandard.ZstdCompressor(level=19, write_content_size=True).compress(save(rest, metadata or None))
        (folder / SIDE).write_bytes(packed)


def narrowed(integers: Tensor) -> Tensor:
    """Integers in the narrowest type that holds them."""
    low, high = (int(value) for value in integers.aminmax()) if integers.numel() else (0, 0)
    for dtype in (torch.int8, torch.int16):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return integers.to(dtype)
    return integers.to(torch.int32)


def read_side(folder: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, str]]]:
    """What `write_side` wrote: other tensors; tied names, dtypes and the names of scales, each by tensor name.

    Raises:
        TrackerError: it is damaged.
    """
    path = folder / SIDE
    if not path.is_file():
        return {}, {}
    try:
        raw = unpack(path)
        # safetensors gives metadata only for files; the header is plain JSON behind its length (8 bytes).
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        metadata = header.get("__metadata__", {})
        return load(raw), {key: dict(json.loads(text)) for key, text in metadata.items()}
    except (SafetensorError, zstandard.ZstdError, ValueError, TypeError, AttributeError) as error:
        raise TrackerError(f"{path} is damaged ({error}); get the bitstream again") from error


def unpack(path: Path) -> bytes:
    """The content of a zstd file, no larger than it says itself and than this machine's memory.

    Raises:
        zstandard.ZstdError: it is damaged or too large.
    """
    packed = path.read_bytes()
    size = zstandard.frame_content_size(packed)
    if not 0 <= size <= physical_bytes():
        raise zstandard.ZstdError(f"content of {size} bytes")
    return zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)


def restore(folder: Path, decoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole state dict from what the coder decoded and what travelled beside it.

    Tied names give the same tensor object.

    Raises:
        TrackerError: the parts do not fit together.
    """
    rest, notes = read_side(folder)
    tied, dtypes, scales = (notes.get(key, {}) for key in ("tied", "dtype", "scales"))
    tensors: dict[str, Tensor] = {}
    for name, tensor in decoded.items():
        if name in scales:
            tensors[name] = tensor
            continue
        dtype = BY_NAME.get(dtypes.get(name, dtypes.get("*", "float32")))
        if dtype is None:
            raise TrackerError(f"{folder / SIDE} is damaged: unknown dtype; get the bitstream again")
        tensors[name] = tensor.to(dtype)
    tensors.update(rest)
    for name, key in scales.items():
        if name not in tensors or key not in tensors or tensors[name].is_floating_point():
            raise TrackerError(f"{folder / SIDE} is damaged: {name} has no integers or scale; get the bitstream again")
        tensors[name] = tensors[name].float() * tensors.pop(key)
    for name, source in tied.items():
        if source not in tensors:
            raise TrackerError(f"{folder / SIDE} is damaged: {name} is tied to nothing; get the bitstream again")
        tensors[name] = tensors[source]
    return tensors
