"""Differences of a model's tensors as NNC's incremental updates, and what the coder carries from one to the next.

A unit of a difference names its parent: a device, the tensor's number and how many updates there were of it before
(ISO/IEC 15938-17, second edition: parent_node_id_type, put_node_depth). With temporal context adaptation (NNCodec's
``tca``) the integers of the parent at the same place choose the contexts of the arithmetic coder.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tracker.codecs.nnc_guard import Implausible, checked_shapes
from tracker.codecs.nnc_workers import each
from tracker.memory import physical_bytes

if TYPE_CHECKING:
    from torch import Tensor

INTEGERS, NODE = "integers:", "node:"  # before names of what is carried; of a node: its depth and the tensor's number


def parents(carried: Mapping[str, Tensor]) -> dict[str, Any]:
    """NNCodec's ``approx_param_base``, by escaped names."""
    nodes = {name.removeprefix(NODE): node.tolist() for name, node in carried.items() if name.startswith(NODE)}
    return {
        "parameters": {name: carried[f"{INTEGERS}{name}"].numpy() for name in nodes},
        "put_node_depth": {name: depth for name, (depth, _) in nodes.items()},
        "parameter_id": {name: number for name, (_, number) in nodes.items()},
        "device_id": 0,
    }


def of_tensors(found: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The part of `parents` that some tensors need."""
    parts = {
        key: {name: found[key][name] for name in names if name in found[key]}
        for key in ("parameters", "put_node_depth", "parameter_id")
    }
    return {**parts, "device_id": 0}


def numbers(names: list[str], found: Mapping[str, Any]) -> dict[str, int]:
    """A number for each tensor, which it keeps from update to update."""
    known = found["parameter_id"]
    taken = set(known.values())
    free = (number for number in range(len(known) + len(names)) if number not in taken)
    return {name: known[name] if name in known else next(free) for name in names}


def decode(bitstream: bytes, carried: Mapping[str, Tensor]) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
    """The differences in a bitstream, and what is carried on.

    Raises:
        TrackerError: a tensor's shape is impossible.
    """
    import torch

    try:
        arrays, base = decompress(bitstream, parents(carried), False)
    except Implausible:  # long tensors of few bytes are usual here; whatever becomes of it, in another process
        task = (bitstream, parents(carried), True)  # those before have been changed, as far as it came
        ((_, (arrays, base)),) = each("decode", decompress, {0: 1}, lambda _: task, 1, True)
    after = dict(carried)
    for name, integers in base["parameters"].items():
        after[f"{INTEGERS}{name}"] = torch.from_numpy(np.ascontiguousarray(integers, dtype=np.int32))
        node = (base["put_node_depth"][name], int(base["parameter_id"][name]))
        after[f"{NODE}{name}"] = torch.tensor(node, dtype=torch.int64)
    return arrays, after


def decompress(bitstream: bytes, found: dict[str, Any], apart: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What ``nncodec.nnc.decompress`` gives, and the parents of the next update.

    Args:
        bitstream: of a difference.
        found: of `parents`; changed.
        apart: whether this process may end by it.
    """
    from nncodec import nnc

    length = None if apart else len(bitstream)
    with contextlib.redirect_stdout(io.StringIO()), checked_shapes(physical_bytes(), length):
        arrays = nnc.decompress(bytearray(bitstream), approx_param_base=found, update_base_param=True)
    return arrays, found
