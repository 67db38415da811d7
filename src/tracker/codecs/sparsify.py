"""Unstructured pruning: the weights of least magnitude become zero, which every coder codes in few bits.

Han, Pool, Tran and Dally 2015, "Learning both Weights and Connections for Efficient Neural Networks", without training
in between; the masks are those of `torch.nn.utils.prune`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.prune import L1Unstructured

from tracker.bitstream.state import aliases, coded_part
from tracker.codecs.base import Context, Transform
from tracker.frameworks import load_framework


class Sparsify(Transform):
    """Set a share of all weights (tensors of two dimensions or more) to zero; norms and biases stay as they are."""

    frameworks: ClassVar[frozenset[str]] = frozenset({"pytorch", "keras"})

    sparsity: float = Field(default=0.5, ge=0, lt=1, description="the share of weights that become zero")
    scope: Literal["model", "tensor"] = Field(
        default="model", description="among what magnitudes are compared: all weights, or those of each tensor"
    )

    def apply(self, model: Any, context: Context) -> Any:
        """Prune the model in place."""
        state = context.state(model)
        weights = {name: tensor for name, tensor in coded_part(state).items() if tensor.ndim > 1}
        together = [list(weights)] if self.scope == "model" else [[name] for name in weights]
        changed = weights.keys() | aliases(state).keys()
        pruned = {name: tensor.clone() for name, tensor in state.items() if name not in changed}
        for names in filter(None, together):
            pruned |= self._pruned({name: weights[name] for name in names})
        load_framework(context.framework).fill(model, pruned, "the pruned tensors")
        return model

    def _pruned(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        every = torch.cat([tensor.flatten().float() for tensor in weights.values()])
        mask = L1Unstructured(self.sparsity).compute_mask(every, torch.ones_like(every)).bool()
        parts = mask.split([tensor.numel() for tensor in weights.values()])
        return {
            name: tensor * part.view(tensor.shape) for (name, tensor), part in zip(weights.items(), parts, strict=True)
        }
