"""Classifiers of torchvision, unchanged but for the number of classes, trained on photographs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tracker.anchors import Anchor
from tracker.cache import cached_tensors
from untuned.photographs import NAMES, blocks, drawn
from untuned.training import trained


class Vision(Anchor):
    """A network by its name in torchvision's zoo; inputs are the patches, enlarged to `size`."""

    model: str = "mobilenet_v3_small"
    options: dict[str, Any] = Field(default={}, description="of the network's builder")
    size: int = Field(default=64, ge=32)
    steps: int = Field(default=1500, ge=10)
    batch: int = Field(default=64, ge=2)
    rate: float = Field(default=3e-3, gt=0)
    seed: int = Field(default=0, ge=0)

    def build(self) -> nn.Module:
        """(N, 3, size, size) to logits (N, photographs)."""
        from torchvision import models

        if self.model == "vision_transformer":  # the zoo has it for large images only
            return models.VisionTransformer(image_size=self.size, num_classes=len(NAMES), **self.options)
        return models.get_model(self.model, weights=None, num_classes=len(NAMES), **self.options)

    def preprocess(self, sample: Tensor) -> Tensor:
        """Enlarged, around 0."""
        return self._inputs(sample[None])[0]

    def weights(self) -> Mapping[str, Tensor]:
        """From the cache, or after training (a minute or two)."""
        options = [f"{name}{value}" for name, value in sorted(self.options.items())]
        fields = (self.model, *options, self.size, self.steps, self.batch, self.rate, self.seed)
        return cached_tensors("untuned-" + "-".join(map(str, fields)), self._train)

    def _inputs(self, patches: Tensor) -> Tensor:
        if self.size != patches.shape[-1]:
            patches = F.interpolate(patches, size=self.size, mode="bilinear")
        return (patches - 0.5) / 0.25

    def _train(self) -> Mapping[str, Tensor]:
        images, classes = blocks("training")

        def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
            patches, chosen = drawn(images, generator, self.batch)
            return F.cross_entropy(model(self._inputs(patches)), classes[chosen], label_smoothing=0.05)

        return trained(self.build, loss, steps=self.steps, rate=self.rate, seed=self.seed, name=self.name)
