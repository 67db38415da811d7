"""A model's signature and its input example, found by running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from torch import Tensor

LOOKED_AT = 5  # samples whose shapes tell which dimensions vary
EXAMPLE_SIDE = 64  # an example is cut to that in the dimensions that vary: it is stored as text


def signature(samples: Sequence[Any], predict: Callable[[Any], np.ndarray]) -> tuple[ModelSignature, Any]:
    """A model's signature, with -1 for the dimensions that vary, and an example of a batch of one.

    Args:
        samples: some inputs without their batch dimension, as the anchor's ``preprocess`` gives them.
        predict: as `tracker.flavor.predictor.Predictor.predict`.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema

    names = list(samples[0]) if isinstance(samples[0], dict) else [None]
    if isinstance(samples[0], tuple | list):
        names = list(range(len(samples[0])))
    shapes = {name: _common([tuple(_part(sample, name).shape) for sample in samples]) for name in names}
    batches: dict[Any, np.ndarray] = {}
    for name in names:
        part = _part(samples[0], name)
        cut = tuple(slice(None) if size != -1 else slice(EXAMPLE_SIDE) for size in shapes[name])
        batches[name] = part[cut].unsqueeze(0).cpu().numpy()
    given = batches[None] if names == [None] else {str(name): batch for name, batch in batches.items()}
    output = predict(given)
    free = any(-1 in shape for shape in shapes.values())
    after = tuple(output.shape[1:]) if not free else (-1,) * (output.ndim - 1)
    inputs = Schema([_spec(batches[name], shapes[name], name) for name in names])
    return ModelSignature(inputs, Schema([_spec(output, after, None)])), given


def _part(sample: Any, name: Any) -> Tensor:
    return sample if name is None else sample[name]


def _common(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The dimensions that all have, -1 where they differ."""
    return tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True))


def _spec(batch: np.ndarray, shape: tuple[int, ...], name: Any) -> Any:
    from mlflow.types.schema import TensorSpec

    return TensorSpec(batch.dtype, (-1, *shape), None if name is None else str(name))
