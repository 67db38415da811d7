"""Spatial SVD: a convolution of k x l as one of k x 1 and one of 1 x l.

On PyTorch through AIMET's ModelCompressor (https://quic.github.io/aimet-pages). The method: Jaderberg et al. 2014,
"Speeding up Convolutional Neural Networks with Low Rank Expansions" (BMVC).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tracker.decomposition.options import Decomposition

if TYPE_CHECKING:
    from torch import nn


class Svd(Decomposition):
    """Spatial SVD of convolutions of one group without dilation."""

    key: ClassVar[str] = "svd"
    kind: ClassVar[str] = "spatial_svd"

    @staticmethod
    def types() -> tuple[type[nn.Module], ...]:
        """Two-dimensional convolutions."""
        from torch import nn

        return (nn.Conv2d,)
