"""Second moments of what a layer multiplies its weights with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Input vectors of which a covariance is measured: for 576 inputs, four times as many as 2^14 give a tenth less error at
# the network's outputs. They are taken some at a time, as squares of an image have nine times its values.
VECTORS, CHUNK = 1 << 16, 1 << 13
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def second_moments(module: Any, given: tuple[Tensor | None, Tensor], group: int) -> tuple[Tensor, Tensor | None]:
    """Of what a layer multiplies its weights with: shapes (inputs of an output, inputs of an output).

    Args:
        module: the layer.
        given: what enters it in the anchor, or None, and here.
        group: of its channels.

    Returns:
        Of what is here with itself, and of the anchor's with it.
    """
    own = Entered(module, given[1], group)
    reference = Entered(module, given[0], group) if given[0] is not None else None
    moments = torch.zeros(own.width, own.width, device=given[1].device)
    crossed = torch.zeros_like(moments) if reference is not None else None
    for begin in range(0, own.count, CHUNK):
        vectors = own.vectors(begin, begin + CHUNK)
        before = reference.vectors(begin, begin + CHUNK) if reference is not None else None
        # Padding may be anything: what attention makes of a sequence that is masked as a whole is NaN.
        usable = vectors.isfinite().all(1) if before is None else (vectors.isfinite() & before.isfinite()).all(1)
        vectors = torch.where(usable[:, None], vectors, 0.0)
        moments.addmm_(vectors.T, vectors)
        if before is not None and crossed is not None:
            crossed.addmm_(torch.where(usable[:, None], before, 0.0).T, vectors)
    share = 1 / max(own.count, 1)
    return moments * share, crossed * share if crossed is not None else None


class Entered:
    """The vectors that a layer multiplies its weights with: all, or `VECTORS` of them that are evenly spread.

    Attributes:
        count: of vectors.
        width: of each.
    """

    def __init__(self, module: Any, given: Tensor, group: int) -> None:
        """Nothing is copied yet."""
        if isinstance(module, CONVOLUTIONS):
            channels = given.shape[1] // module.groups
            self.view = squares(module, given[:, group * channels : (group + 1) * channels])
            self.places = self.view.shape[: len(module.kernel_size) + 1]
        else:
            vectors = given.movedim(1, -1) if isinstance(module, TRANSPOSED) else given
            self.view = vectors.reshape(-1, vectors.shape[-1])
            self.places = self.view.shape[:1]
        of = math.prod(self.places)
        self.count, self.width = min(of, VECTORS), math.prod(self.view.shape[len(self.places) :])
        self.chosen = torch.linspace(0, of - 1, self.count, dtype=torch.float64, device=given.device).long()

    def vectors(self, begin: int, end: int) -> Tensor:
        """Some of them, shape (vectors, inputs of an output), float32."""
        return self.view[torch.unravel_index(self.chosen[begin:end], self.places)].flatten(1).float()


def squares(module: Any, given: Tensor) -> Tensor:
    """A view of the squares under a convolution's kernel: shape (batch, places..., channels, kernel...)."""
    dims = len(module.kernel_size)
    if isinstance(module.padding, str):
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        pads = [(t // 2, t - t // 2) if module.padding == "same" else (0, 0) for t in total]
    else:
        pads = [(p, p) for p in module.padding]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    found = F.pad(given, [side for pair in reversed(pads) for side in pair], mode=mode)
    for dim, size in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        kernel, stride, dilation = size
        found = found.unfold(2 + dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    return found.permute(0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))
