"""Whether outputs are probabilities."""

from __future__ import annotations

from torch import Tensor


def are_chances(outputs: Tensor, classes: int = 1) -> bool:
    """Whether a model ends in a softmax, as many of Keras do.

    Args:
        outputs: of a batch.
        classes: the dimension over which they would add up to 1.
    """
    return bool((outputs >= 0).all() and ((outputs.sum(dim=classes) - 1).abs() < 1e-3).all())
