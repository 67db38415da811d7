"""What AIMET fits the weights of pruned layers on: points of calibration images, chosen at random."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tracker.aimet.compressor import replaced
from tracker.codecs.base import Context
from tracker.errors import TrackerError
from tracker.nested import cloned

POINTS = 10  # of each image, a number that AIMET has fixed


@dataclass
class Images:
    """Calibration images as AIMET wants them: batches, each with a label that it does not look at."""

    batches: list[tuple[Tensor, int]] = field(default_factory=list)
    count: int = 0

    @property
    def batch_size(self) -> int:
        """That of the first batch; only the last one may be smaller."""
        return len(self.batches[0][0])

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter(self.batches)


def images(context: Context, samples: int) -> Images:
    """As many calibration images as the samples need.

    Raises:
        TrackerError: the model's input is not one tensor of images, or there are none.
    """
    found, wanted = Images(), math.ceil(samples / POINTS)
    for inputs in context.calibration():
        values = list(inputs.values()) if isinstance(inputs, dict) else inputs
        tensors = list(values) if isinstance(values, tuple | list) else [values]
        if len(tensors) != 1 or not isinstance(tensors[0], Tensor) or tensors[0].ndim != 4:
            raise TrackerError(
                "codec.prune: AIMET prunes channels only of models whose input is one tensor of images; leave prune out"
            )
        taken = cloned(tensors[0])[: wanted - found.count].float()
        found.batches.append((taken, 0))
        found.count += len(taken)
        if found.count >= wanted:
            break
    if not found.count:
        raise TrackerError("codec.prune fits weights on calibration inputs, and there are none; add some to the data")
    return found


@contextlib.contextmanager
def points(samples: int, given: Images) -> Iterator[None]:
    """Let AIMET take more points of each image where there are few images."""
    from aimet_torch.common.input_match_search import InputMatchSearch

    original, count = InputMatchSearch.subsample_data, math.ceil(samples / given.count)

    def subsample(attributes: Any, inputs: Any, outputs: Any, wanted: int) -> Any:
        return original(attributes, inputs, outputs, max(count, wanted))

    with replaced(InputMatchSearch, "subsample_data", staticmethod(subsample)):
        yield


@contextlib.contextmanager
def generators() -> Iterator[None]:
    """The random generators that AIMET uses, put back at the end."""
    import numpy as np

    state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(state)
