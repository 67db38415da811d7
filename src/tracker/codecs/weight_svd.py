"""Weight SVD: a layer as a 1x1 convolution (or linear layer) to fewer channels, and the layer from there.

On PyTorch through AIMET's ModelCompressor (https://quic.github.io/aimet-pages).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tracker.decomposition.options import Decomposition

if TYPE_CHECKING:
    from torch import nn


class WeightSvd(Decomposition):
    """Weight SVD of linear layers, and of convolutions of one group."""

    key: ClassVar[str] = "weight_svd"
    kind: ClassVar[str] = "weight_svd"

    @staticmethod
    def types() -> tuple[type[nn.Module], ...]:
        """Two-dimensional convolutions and linear layers."""
        from torch import nn

        return (nn.Conv2d, nn.Linear)
