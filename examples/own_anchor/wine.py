"""An anchor and a metric of a user's own: a small network that tells scikit-learn's three wines apart.

Nothing in the tracker package knows of this file; the configs beside it name its classes and functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_wine
from torch import Tensor, nn

from tracker.anchors import Anchor
from tracker.data import Data
from tracker.data.base import arrays_digest


class Wine(Data):
    """178 wines, 13 standardised features, 3 classes; every third sample is for training and calibration."""

    name: str = "wine"

    def arrays(self, split: str) -> tuple[Tensor, Tensor]:
        """Features (N, 13) and classes (N,)."""
        features, classes = load_wine(return_X_y=True)
        features = (features - features.mean(0)) / features.std(0)
        third = np.arange(len(classes)) % 3
        wanted = {"calibration": third == 0, "search": third == 1, "report": third == 2, "all": third != 0}[split]
        return torch.from_numpy(features[wanted]).float(), torch.from_numpy(classes[wanted]).long()

    def samples(self, split: str) -> list[tuple[Tensor, int]]:
        """(features, class)."""
        features, classes = self.arrays(split)
        return list(zip(features, classes.tolist(), strict=True))

    def digest(self, split: str) -> str:
        """Over both arrays."""
        return arrays_digest(*self.arrays(split))


class WineNet(Anchor):
    """Two linear layers, trained in a second."""

    hidden: int = 64

    def build(self) -> nn.Module:
        """(N, 13) to logits (N, 3)."""
        return nn.Sequential(nn.Linear(13, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 3))

    def weights(self) -> Mapping[str, Tensor]:
        """Trained here; weights of your own would be read from a file (tracker.anchors.files.read_weights)."""
        torch.manual_seed(0)
        model = self.build()
        features, classes = Wine().arrays("calibration")
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(features), classes).backward()
            optimiser.step()
        return model.state_dict()


def balanced_accuracy(predict: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[dict[str, float], np.ndarray]:
    """The mean of the classes' accuracies, and for each sample whether it was right (for the confidence interval)."""
    right, classes = [], []
    for inputs, targets in batches:
        right.append((predict(inputs).argmax(1) == targets).double())
        classes.append(targets)
    hits, labels = torch.cat(right), torch.cat(classes)
    weights = torch.stack([1 / (labels == c).double().sum() for c in range(3)])[labels] * len(labels) / 3
    scores = (hits * weights).numpy()  # their mean is the metric
    return {"balanced_accuracy": float(scores.mean()), "accuracy": float(hits.mean())}, scores
