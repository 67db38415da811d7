"""From a model to a bitstream folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from tracker.bitstream.manifest import Manifest, write_manifest
from tracker.bitstream.state import coded_part, write_side
from tracker.codecs.base import Context, TensorRecord
from tracker.codecs.chain import Codec


def encode_bitstream(
    codec: Codec, tensors: Mapping[str, Tensor], model: nn.Module, folder: Path, context: Context
) -> tuple[Manifest, list[TensorRecord]]:
    """Write the bitstream of a model.

    Args:
        codec: its coder makes the files.
        tensors: the model's state dict.
        model: the model that they belong to.
        folder: empty.
        context: what else the sender has.

    Returns:
        The manifest, and how each tensor was coded.

    Raises:
        TrackerError: a tensor cannot be coded.
    """
    coded = coded_part(tensors)
    records = codec.coder.encode(coded, folder, model, context) if coded else []
    write_side(tensors, coded, folder)
    coder = type(codec.coder)
    manifest = write_manifest(folder, f"{coder.__module__}.{coder.__qualname__}", codec.stages)
    return manifest, records
