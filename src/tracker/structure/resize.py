"""Edit ``resize``: layers with other numbers of outputs or inputs, such as a head with one class more.

A checkpoint of a model whose classes or words have become more has tensors of another shape: `edits` tells which layers
have to be built anew for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tracker.errors import TrackerError
from tracker.memory import physical_bytes
from tracker.structure.base import Edit, count, one_of, replace

LARGEST = 1 << 24  # outputs or inputs


def rebuild(model: Any, layers: dict[str, Any]) -> Any:
    """Build linear layers and embeddings anew.

    Args:
        model: changed in place.
        layers: by name, the first two dimensions of the weights.
    """
    for name, shape in layers.items():
        layer = one_of(model, name, (nn.Linear, nn.Embedding))
        if not isinstance(shape, list) or len(shape) != 2:
            raise TrackerError(f"the bitstream's structure has {str(shape)[:40]!r} for {name[:80]!r}: not two numbers")
        rows, columns = (count(size, name, LARGEST) for size in shape)
        if 4 * rows * columns > physical_bytes():
            raise TrackerError(
                f"the bitstream's structure has {rows} x {columns} for {name[:80]!r}: more than fits here"
            )
        if isinstance(layer, nn.Embedding):
            replace(model, name, nn.Embedding(rows, columns, layer.padding_idx))
        else:
            replace(model, name, nn.Linear(columns, rows, layer.bias is not None))
    return model


def edits(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[Edit]:
    """What has to be built anew for tensors of other shapes than the model's.

    Args:
        model: of the architecture without them.
        tensors: of a checkpoint, by name.
    """
    found = {}
    for name, layer in model.named_modules():
        given = tensors.get(f"{name}.weight")
        if not isinstance(layer, nn.Linear | nn.Embedding) or given is None or given.ndim != 2:
            continue
        if given.shape != layer.weight.shape:
            found[name] = list(given.shape)
    return [Edit("resize", found)] if found else []
