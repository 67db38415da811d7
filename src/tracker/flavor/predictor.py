"""What MLflow serves: arrays in, an array out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tracker.errors import TrackerError
from tracker.frameworks import load_framework

if TYPE_CHECKING:
    from tracker.anchors.base import Anchor


class Predictor:
    """A decoded model behind MLflow's ``predict``: its inputs are what the anchor's ``preprocess`` gives, in batches.

    The whole batch that it is given goes through the model at once.
    """

    def __init__(self, anchor: Anchor, model: Any, device: str) -> None:
        """Keep the model ready.

        Args:
            anchor: whose ``predict`` runs it.
            model: decoded.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
        """
        framework = load_framework(anchor.framework)
        self.anchor, self.device = anchor, device
        self.model, self.dtype = framework.ready(model, device), framework.dtype(model)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """The model's output.

        Args:
            model_input: an array of shape (N, ...), a mapping of such arrays where the model has several inputs, or a
                table with a column of numbers for each value of a sample (one column of lists is an array as well).
            params: none are known.

        Returns:
            Shape (N, ...), such as logits (N, classes).

        Raises:
            TrackerError: the input cannot be an array.
        """
        inputs = self._inputs(model_input)
        with torch.inference_mode():
            output = self.anchor.predict(self.model, inputs)
        return output.float().cpu().numpy() if output.dtype == torch.bfloat16 else output.cpu().numpy()

    def _inputs(self, given: Any) -> Any:
        if isinstance(given, Mapping):
            parts = {str(name): self._tensor(value) for name, value in given.items()}
            numbered = all(name.isdecimal() for name in parts)  # a model that takes its inputs by their places
            return [parts[name] for name in sorted(parts, key=int)] if numbered else parts
        if isinstance(given, tuple | list) and given and all(isinstance(part, Tensor | np.ndarray) for part in given):
            return [self._tensor(part) for part in given]
        return self._tensor(given)

    def _tensor(self, given: Any) -> Tensor:
        if hasattr(given, "to_numpy"):  # a pandas table or column
            given = given.to_numpy()
            if given.dtype == object:  # of lists
                given = np.array([np.asarray(row[0] if given.ndim == 2 else row) for row in given])
        try:
            tensor = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
        except (TypeError, ValueError) as error:
            raise TrackerError(f"the input cannot be an array of numbers: {error}") from error
        if self.dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(self.dtype)
        return tensor.to(self.device)
