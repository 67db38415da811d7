"""From a model to a bitstream folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tracker.bitstream.manifest import Manifest, write_manifest
from tracker.bitstream.state import coded_part, write_side
from tracker.codecs.base import Context
from tracker.codecs.chain import Codec
from tracker.codecs.records import Integers, TensorRecord
from tracker.structure import Edit


def encode_bitstream(
    codec: Codec,
    tensors: Mapping[str, Tensor],
    model: Any,
    folder: Path,
    context: Context,
    structure: Sequence[Edit] = (),
    integers: Mapping[str, Integers] | None = None,
) -> tuple[Manifest, list[TensorRecord]]:
    """Write the bitstream of a model.

    Args:
        codec: its coder makes the files.
        tensors: the model's state dict, as the transforms left it.
        model: the model that they belong to.
        folder: empty.
        context: what else the sender has.
        structure: what the transforms changed in the architecture.
        integers: tensors that a transform made integers of.

    Returns:
        The manifest, and how each tensor was coded.

    Raises:
        TrackerError: a tensor cannot be coded.
    """
    integers = integers or {}
    coded = {name: tensor for name, tensor in coded_part(tensors).items() if name not in integers}
    given = dict(coded)
    if codec.coder.codes_integers:
        # In the model's order, which context-adaptive coders may profit from.
        both = coded | {name: quantised.integers for name, quantised in integers.items()}
        given = {name: both[name] for name in tensors if name in both}
    records = codec.coder.encode(given, folder, model, context) if given else []
    write_side(tensors, given, integers, folder)
    coder = type(codec.coder)
    manifest = write_manifest(folder, f"{coder.__module__}.{coder.__qualname__}", codec.stages, structure)
    return manifest, records
