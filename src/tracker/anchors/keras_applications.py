"""Any model of keras.applications, by its name."""

from __future__ import annotations

import importlib
import inspect
import io
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from tracker.anchors.images import rgb
from tracker.anchors.keras_base import KerasAnchor, seeded
from tracker.anchors.keras_file import load_weights
from tracker.anchors.zoo import one_line, unknown
from tracker.errors import TrackerError
from tracker.frameworks.keras import load

USUAL_SIZE = 224


class KerasApplications(KerasAnchor):
    """A model of keras.applications with its published weights, those of a file, or random ones.

    An image is scaled so that its shorter side is `size` over `crop`, cut to its centre, and given to the
    ``preprocess_input`` of the model's module.
    """

    model: str = Field(description="such as MobileNetV2")
    pretrained: str | None = Field(
        default="imagenet", description="imagenet, or a file (.weights.h5, .h5); null: random weights"
    )
    size: int | None = Field(default=None, ge=1, description="of the square input; by default the model's own")
    crop: float = Field(default=0.875, gt=0, le=1, description="share of the shorter side that is kept")
    options: dict[str, Any] = Field(default={}, description="further keyword arguments of the model's function")
    seed: int = Field(default=0, ge=0, description="of random weights")

    def build(self) -> Any:
        """The architecture with random weights; nothing is downloaded.

        Raises:
            TrackerError: there is no such model, or size or options do not suit it.
        """
        return self._make(None)

    def weights(self) -> Mapping[str, Tensor]:
        """The published weights, from Keras's folder or downloaded into it; those of a file; or random ones.

        Raises:
            TrackerError: they cannot be had.
        """
        if self.pretrained == "imagenet":
            return self._state(self._published())
        model = self.build()
        if self.pretrained is not None:
            load_weights(model, Path(self.pretrained).expanduser(), "anchor.pretrained")
        return self._state(model)

    def architecture(self, folder: Path) -> dict[str, Any]:
        """As `Anchor`; where the weights came from does not matter."""
        return {**super().architecture(folder), "pretrained": None}

    def preprocess(self, sample: Any) -> Any:
        """Scaled, cut, and as the model's ``preprocess_input`` gives it; shape (size, size, 3)."""
        from torchvision.transforms import functional

        size = self._size
        image = functional.resize(rgb(sample), [round(size / self.crop)], antialias=True)
        image = functional.center_crop(image, [size, size])
        pixels = image.clamp(0, 1).mul(255).movedim(0, -1).contiguous().numpy()
        return torch.from_numpy(np.ascontiguousarray(self._preprocess_input(pixels, data_format="channels_last")))

    def preprocessing(self) -> str:
        """In words."""
        return f"shorter side {self._size}/{self.crop}, centre, preprocess_input of {self._builder.__module__}"

    @cached_property
    def _builder(self) -> Callable[..., Any]:
        applications = load().applications
        names = [name for name, item in vars(applications).items() if inspect.isfunction(item)]
        if self.model not in names:
            listing = 'python -c "import keras; print(*dir(keras.applications))"'
            raise unknown(self.model, names, "anchor.model", listing)
        return getattr(applications, self.model)

    @cached_property
    def _preprocess_input(self) -> Callable[..., Any]:
        module = self._builder.__module__.rsplit(".", 1)[-1]
        return importlib.import_module(f"keras.src.applications.{module}").preprocess_input

    @cached_property
    def _size(self) -> int:
        if self.size is not None:
            return self.size
        return int(self.build().input_shape[1] or USUAL_SIZE)

    def _make(self, weights: str | None) -> Any:
        options = dict(self.options)
        if self.size is not None:
            options.setdefault("input_shape", (self.size, self.size, 3))
        try:
            with seeded(self.seed):
                return self._builder(weights=weights, **options)
        except (TypeError, ValueError) as error:
            raise TrackerError(
                f"anchor.size or anchor.options does not suit {self.model}: {one_line(error)}"
            ) from error

    def _published(self) -> Any:
        try:
            # Keras prints to standard output, which is for results.
            with redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):
                return self._make("imagenet")
        except TrackerError:
            raise
        except Exception as error:  # Keras raises a plain Exception where a download fails
            raise TrackerError(
                f"the weights of {self.model} cannot be downloaded ({one_line(error, 200)}); get the file by hand and "
                "name it by anchor.pretrained=FILE, or set anchor.pretrained=null for random weights"
            ) from error
