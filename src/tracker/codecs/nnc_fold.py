"""BatchNorm folding, a parameter reduction of NNC (ISO/IEC 15938-17): four vectors become a scale and a bias.

NNCodec can do the folding, but then all scales and shifts have one step size. Its decoder leaves it to the caller to
put them back into an architecture with normalisation.
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
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


class Pair(NamedTuple):
    """A layer and the normalisation that alone follows it."""

    layer: str
    norm: str
    eps: float

    @property
    def members(self) -> set[str]:
        """Their tensors; the layer need not have a bias."""
        return {f"{self.layer}.weight", f"{self.layer}.bias", *(f"{self.norm}.{part}" for part in NORM_PARTS)}


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
        pair = Pair(str(before.target), str(node.target), norm.eps)
        if pair.members - {f"{pair.layer}.bias"} <= names and not shared & pair.members:
            pairs.append(pair)
    return pairs


class Folded(NamedTuple):
    """What is coded in place of layers and their normalisations.

    Attributes:
        arrays: with a scale and a shift behind each layer's weight, and without what these make up for.
        blocks: NNCodec's ``block_id_and_param_type``.
        numbers: those that the tensors have in the model before.
        step_of: of which tensors a scale or a shift has the finest step size, where it is these.
    """

    arrays: dict[str, np.ndarray]
    blocks: dict[str, Any]
    numbers: dict[str, int]
    step_of: dict[str, tuple[str, ...]]


def folded(pairs: list[Pair], arrays: Mapping[str, np.ndarray], escape: Callable[[str], str]) -> Folded:
    """Normalisations as scales and shifts, as NNCodec's own ``bnf`` writes them, which knows but one epsilon.

    Args:
        pairs: see `foldable`.
        arrays: by escaped name.
        escape: from a tensor's name to that.
    """
    import numpy as np

    found, block_of, step_of = dict(arrays), dict[str, str | None](), dict[str, tuple[str, ...]]()
    numbers = {name: number for number, name in enumerate(arrays)}
    types = {name: "weight" if array.ndim > 1 else "unspecified" for name, array in arrays.items()}
    for number, pair in enumerate(pairs):
        weight, bias = escape(f"{pair.layer}.weight"), escape(f"{pair.layer}.bias")
        names = [escape(f"{pair.norm}.{part}") for part in NORM_PARTS]
        gamma, beta, mean, variance = (found.pop(name) for name in names)
        scale, shift = f"{weight}_scaling", bias if bias in arrays else f"{weight}.bias"
        found[scale] = gamma / np.sqrt(variance + np.float32(pair.eps))
        found[shift] = (found.get(shift, np.float32(0)) - mean) * found[scale] + beta
        numbers |= {scale: numbers[names[0]], shift: numbers.get(shift, numbers[names[1]])}
        for name, kind in ((weight, "weight"), (scale, "weight.ls"), (shift, "bias")):
            types[name], block_of[name] = kind, f"block{number}"
        if not mean.any() and np.allclose(variance, 1, atol=1e-4):
            step_of |= {scale: (names[0],), shift: (names[1], bias) if bias in arrays else (names[1],)}
    return Folded(
        found,
        {
            "block_identifier": {name: block_of.get(name) for name in found},
            "parameter_type": {name: types[name] for name in found},
        },
        numbers,
        step_of,
    )


def write(pairs: list[Pair], folder: Path) -> None:
    """Tell the receiver the pairs."""
    import zstandard

    text = json.dumps([list(pair) for pair in pairs], separators=(",", ":"))
    (folder / FILE).write_bytes(zstandard.ZstdCompressor(level=19).compress(text.encode()))


def restated(pairs: list[Pair], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `unfold` would give of tensors that were folded without loss, less what it makes up.

    Args:
        pairs: that are folded.
        tensors: of the model, by name.
    """
    found = dict(tensors)
    for pair in pairs:
        gamma, beta, mean, variance = (found.pop(f"{pair.norm}.{part}").float() for part in NORM_PARTS)
        scale = gamma / (variance + pair.eps).sqrt()
        weight, bias = found[f"{pair.layer}.weight"].float(), found.get(f"{pair.layer}.bias")
        found[f"{pair.layer}.weight"] = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        shift = (0 - mean if bias is None else bias.float() - mean) * scale + beta
        found[f"{pair.norm if bias is None else pair.layer}.bias"] = shift
    return {name: found[name] for name in tensors if name in found}


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
