"""Layers of Keras models as pairs of layers: the weights, as AIMET's splitters compute them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tracker.frameworks.keras import FRAMEWORK
from tracker.frameworks.keras_names import layers_by_name

if TYPE_CHECKING:
    from torch import Tensor


def pair_of(kind: str) -> Any:
    """How layers are split: the receiver's module of a kind."""
    return importlib.import_module(f"tracker.structure.keras_{kind}").PAIR


def decomposed(model: Any, pair: Any, kind: str, ranks: Mapping[str, int]) -> Any:
    """The model built as the receiver builds it, with the weights of the decomposition."""
    known, tensors = layers_by_name(model), FRAMEWORK.state(model, ())
    for name, rank in ranks.items():
        weight = tensors.pop(f"{name}/kernel")
        first, second = split(weight, rank, kind)
        tensors[f"{name}.0/kernel"], tensors[f"{name}.1/kernel"] = first, second
        if known[name].use_bias:
            tensors[f"{name}.1/bias"] = tensors.pop(f"{name}/bias")
    changed = pair.rebuild(model, dict(ranks))
    FRAMEWORK.fill(changed, tensors, "the decomposed weights")
    return changed


def split(weight: Tensor, rank: int, kind: str) -> tuple[Tensor, Tensor]:
    """The weights of a pair by singular value decomposition, as AIMET's splitters compute them.

    Args:
        weight: output channel first; (out, in, height, width) or (out, in).
        rank: channels between the two.
        kind: ``spatial_svd``: the singular values are shared between the two; ``weight_svd``: the second has them.
    """
    values = weight.float().numpy()
    if kind == "spatial_svd":
        out, into, height, width = values.shape
        matrix = values.transpose(1, 2, 0, 3).reshape(into * height, out * width)
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        root = np.sqrt(s[:rank])
        first = (u[:, :rank] * root).reshape(into, 1, height, rank).transpose(3, 0, 2, 1)
        second = (root[:, None] * v[:rank]).reshape(rank, out, width, 1).transpose(1, 0, 3, 2)
    else:
        out, into, *kernel = values.shape
        u, s, v = np.linalg.svd(values.swapaxes(0, 1).reshape(into, -1), full_matrices=False)
        first = u[:, :rank].T.reshape(rank, into, *[1] * len(kernel))
        second = (s[:rank, None] * v[:rank]).reshape(rank, out, *kernel).swapaxes(0, 1)
    pair = (torch.from_numpy(np.ascontiguousarray(part)).to(weight.dtype) for part in (first, second))
    return next(pair), next(pair)
