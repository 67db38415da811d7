"""Channel pruning: input channels of convolutions removed, and the rest fitted to what the layer computed before.

On PyTorch through AIMET's ModelCompressor (https://quic.github.io/aimet-pages). The method: He et al. 2017, "Channel
Pruning for Accelerating Very Deep Neural Networks" (ICCV); AIMET chooses channels by the magnitude of their weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tracker.codecs.base import Context
from tracker.codecs.records import Transformed
from tracker.decomposition.options import ByLayer

if TYPE_CHECKING:
    from torch import nn


class Prune(ByLayer):
    """Channel pruning of convolutions of one group.

    A ratio is the share of a layer's input channels that stay; in mode auto, the model's cost after over before.
    """

    frameworks: ClassVar[frozenset[str]] = frozenset({"pytorch"})
    key: ClassVar[str] = "prune"
    kind: ClassVar[str] = "prune"

    reconstruction_samples: int = Field(
        default=5000,
        ge=10,
        le=1000000,
        description="points of calibration images on which remaining weights are fitted",
    )

    @staticmethod
    def types() -> tuple[type[nn.Module], ...]:
        """Two-dimensional convolutions."""
        from torch import nn

        return (nn.Conv2d,)

    def prepare(self) -> None:
        """Import AIMET."""
        from tracker import aimet

        aimet.load()
        import aimet_torch.compress  # noqa: F401

    def apply(self, model: Any, context: Context) -> Transformed:
        """The model with fewer channels.

        Raises:
            TrackerError: the options do not fit the model, or AIMET cannot prune it.
        """
        from tracker.aimet import prune as aimet_prune

        return aimet_prune.apply(self, model, context)
