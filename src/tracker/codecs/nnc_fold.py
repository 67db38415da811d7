"""BatchNorm folding, a parameter reduction of NNC (ISO/IEC 15938-17): four vectors become a scale and a bias.

NNCodec does the folding. It needs to know which normalisation follows which layer, and its decoder leaves it to the
caller to put scales and biases back into an architecture with normalisation; both are done here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tracker.errors import TrackerError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

FILE = "fold.zst"
LARGEST = 1 << 24
NNCODEC_EPS = 1e-5  # what nncodec's fold_bn adds to the variance, whatever the model does


class Pair(NamedTuple):
    """A layer and the normalisation that alone follows it."""

    layer: str
    norm: str
    eps: float


def foldable(model: torch.nn.Module, names: set[str]) -> list[Pair]:
    """Pairs of a convolution or linear layer and the BatchNorm that is its only successor.

    Args:
        model: traced with torch.fx.
        names: the tensors that are coded; layers with any other, or with one that is also used elsewhere, are left
            alone.

    Raises:
        TrackerError: the model cannot be traced.
    """
    from torch import fx, nn

    from tracker.bitstream.state import aliases
    from tracker.frameworks.pytorch import state_tensors

    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:  # torch.fx raises whatever the model's own code raises on proxies
        raise TrackerError(
            f"codec.nnc.bnf needs a model that torch.fx can trace, and this one fails ({error})"
        ) from error
    modules = dict(model.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    tied = aliases(state_tensors(model))
    shared = {*tied, *tied.values(), *(str(node.target) for node in graph.nodes if node.op == "get_attr")}
    count = {node.target: sum(other.target == node.target for other in calls) for node in calls}
    pairs = []
    for node in calls:
        norm, before = modules.get(str(node.target)), node.args[0] if node.args else None
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not isinstance(before, fx.Node):
            continue
        layer: Any = modules.get(str(before.target)) if before.op == "call_module" else None
        # A transposed convolution has its output channels in the second dimension, where NNC's scale does not reach.
        plain = isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if not plain or len(before.users) != 1 or count[node.target] != 1 or count[before.target] != 1:
            continue
        # On (N, C, L) a normalisation after a linear layer works on C, and the layer's outputs are L.
        if len(layer.weight) != norm.num_features:
            continue
        members = {f"{before.target}.weight", *(f"{node.target}.{part}" for part in NORM_PARTS)}
        if members <= names and not shared & {*members, f"{before.target}.bias"}:
            pairs.append(Pair(str(before.target), str(node.target), norm.eps))
    return pairs


NORM_PARTS = {"weight": "bn.gamma", "bias": "bn.beta", "running_mean": "bn.mean", "running_var": "bn.var"}


def blocks(pairs: list[Pair], arrays: dict[str, np.ndarray], escape: Callable[[str], str]) -> dict[str, Any]:
    """NNCodec's ``block_id_and_param_type`` for the pairs; variances take the model's own epsilon in."""
    types = {name: "weight" if array.ndim > 1 else "unspecified" for name, array in arrays.items()}
    block_of: dict[str, str | None] = dict.fromkeys(arrays)
    for number, pair in enumerate(pairs):
        members = {f"{pair.layer}.weight": "weight", f"{pair.layer}.bias": "bias"}
        members |= {f"{pair.norm}.{part}": kind for part, kind in NORM_PARTS.items()}
        for name, kind in members.items():
            if escape(name) in arrays:
                types[escape(name)], block_of[escape(name)] = kind, f"block{number}"
        variance = escape(f"{pair.norm}.running_var")
        arrays[variance] = arrays[variance] + (pair.eps - NNCODEC_EPS)
    return {"block_identifier": block_of, "parameter_type": types}


def write(pairs: list[Pair], folder: Path) -> None:
    """Tell the receiver the pairs."""
    import zstandard

    text = json.dumps([list(pair) for pair in pairs], separators=(",", ":"))
    (folder / FILE).write_bytes(zstandard.ZstdCompressor(level=19).compress(text.encode()))


def unfold(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Decoded tensors under the architecture's own names: the normalisation keeps only its shift.

    The scale is in the layer's weights already. Where the layer has a bias of its own, the shift is there.
    """
    import torch
    import zstandard

    found = dict(tensors)
    if not (folder / FILE).is_file():
        return found
    packed = (folder / FILE).read_bytes()
    if not 0 <= zstandard.frame_content_size(packed) <= LARGEST:
        raise TrackerError(f"{folder / FILE} is damaged; get the bitstream again")
    text = zstandard.ZstdDecompressor().decompress(packed, max_output_size=LARGEST)
    for layer, norm, eps in json.loads(text):
        own_bias = f"{layer}.bias" in found
        shift = found[f"{layer}.bias"] if own_bias else found.pop(f"{layer}.weight.bias")
        found[f"{norm}.bias"] = torch.zeros_like(shift) if own_bias else shift
        found[f"{norm}.weight"] = torch.ones_like(shift)
        found[f"{norm}.running_mean"] = torch.zeros_like(shift)
        found[f"{norm}.running_var"] = torch.full_like(shift, 1 - eps)
    return found
