"""Scikit-learn's digits: 1,797 images of 8x8 pixels in 10 classes, shipped with the package."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tracker.data.base import Data, Decoded, Samples, Split, arrays_digest

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# Training and calibration are apart as well: the anchor has learned the training images.
COUNTS = {"training": 797, "calibration": 200, "search": 400, "report": 400}


class Digits(Data):
    """Digits, shuffled once (seed 0) and cut into training (797), calibration (200), search and report (400 each)."""

    name: str = "digits"

    def arrays(self, split: Split | Literal["training"]) -> tuple[Tensor, Tensor]:
        """Images (N, 1, 8, 8) float32 in 0..1, and classes (N,) int64."""
        import numpy as np
        import torch

        table = _table()
        order = np.random.default_rng(0).permutation(len(table))
        ends = dict(zip(COUNTS, np.cumsum(list(COUNTS.values())), strict=True))
        wanted = ("search", "report") if split == "all" else (split,)
        index = np.concatenate([order[ends[name] - COUNTS[name] : ends[name]] for name in wanted])
        rows = torch.from_numpy(table[index])
        return rows[:, :-1].reshape(-1, 1, 8, 8).float().div(16), rows[:, -1].long()

    def training(self) -> Samples:
        """The 797 images that the anchor has learned."""
        return self._samples("training")

    def samples(self, split: Split) -> Samples:
        """(image (1, 8, 8), class)."""
        return self._samples(split)

    def _samples(self, split: Split | Literal["training"]) -> Samples:
        images, classes = self.arrays(split)
        return Decoded(range(len(images)), lambda i: (images[i], int(classes[i])))

    def digest(self, split: Split) -> str:
        """Over images and classes."""
        return arrays_digest(*self.arrays(split))


@functools.cache
def _table() -> np.ndarray:
    """Scikit-learn's file, as its ``load_digits`` reads it, without the seconds that its import takes.

    Returns:
        Shape (1797, 65): the pixels in 0..16 and the class.
    """
    import numpy as np

    found = importlib.util.find_spec("sklearn")
    assert found is not None and found.submodule_search_locations is not None  # tracker depends on it
    return np.loadtxt(Path(found.submodule_search_locations[0], "datasets/data/digits.csv.gz"), delimiter=",")
