"""A user's own model: a factory and its weights, or a torch.export program."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from tracker.anchors import exported
from tracker.anchors.base import Anchor
from tracker.anchors.files import read_weights
from tracker.anchors.images import rgb
from tracker.anchors.zoo import one_line
from tracker.component import call, locate, made
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import is_program
from tracker.trust import ZOOS, within


class OwnModel(Anchor):
    """The base of anchors whose preprocessing the user names.

    First `transform`, then images become RGB tensors in 0..1 (tensors and texts stay), then `mean` and `deviation`.
    """

    transform: dict[str, Any] = Field(
        default={},
        description="_target_: a function that is called with each sample and the other keys, or a class that is made "
        "with the other keys and then called with each sample",
    )
    mean: list[float] | None = Field(default=None, description="per channel, after the transform; needs deviation")
    deviation: list[float] | None = Field(default=None, description="per channel; needs mean")

    def preprocess(self, sample: Any) -> Any:
        """The transform, the conversion, and the normalisation.

        Raises:
            TrackerError: the transform raises, or mean and deviation do not suit its result.
        """
        if self._transform is not None:
            try:
                sample = self._transform(sample)
            except TrackerError:
                raise
            except Exception as error:  # a user's code
                raise TrackerError(
                    f"anchor.transform: {self.transform['_target_']} raised {type(error).__name__}: {one_line(error)}"
                ) from error
        if hasattr(sample, "convert"):  # a PIL image
            sample = rgb(sample)
        if self.mean is None and self.deviation is None:
            return sample
        if self.mean is None or self.deviation is None:
            raise TrackerError("anchor.mean and anchor.deviation belong together; set both or neither")
        if not isinstance(sample, Tensor) or not {len(self.mean), len(self.deviation)} <= {1, len(sample)}:
            raise TrackerError(
                f"anchor.mean and anchor.deviation have {len(self.mean)} and {len(self.deviation)} values, which do "
                f"not suit a sample of {tuple(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__}"
            )
        ones = [1] * (sample.ndim - 1)
        return (sample - torch.tensor(self.mean).view(-1, *ones)) / torch.tensor(self.deviation).view(-1, *ones)

    def preprocessing(self) -> str:
        """The transform by its path and keys, and the normalisation."""
        transform = json.dumps(self.transform, sort_keys=True, default=str) if self._transform else "none"
        return f"transform {transform}, mean {self.mean}, deviation {self.deviation}"

    def predict(self, model: nn.Module, inputs: Any) -> Tensor:
        """The output for a batch; a torch.export program gets it in the parts that it was exported for."""
        return exported.run(model, inputs) if is_program(model) else super().predict(model, inputs)

    def architecture(self, folder: Path) -> dict[str, Any]:
        """As `Anchor`, without the preprocessing: who runs the model elsewhere gives it what it takes."""
        node = super().architecture(folder)
        return {key: value for key, value in node.items() if key not in ("transform", "mean", "deviation")}

    def imports(self) -> dict[str, str]:
        """The transform, and the factory where there is one."""
        named = {"transform": self.transform, "factory": getattr(self, "factory", {})}
        return {key: str(node["_target_"]) for key, node in named.items() if node.get("_target_")}

    def check_received(self, folder: Path) -> None:
        """A zoo's function is asked for an architecture only.

        Raises:
            TrackerError: it is asked for trained weights, which it would read from a file or download.
        """
        factory = getattr(self, "factory", {})
        asked = [key for key in factory if key.startswith(("weights", "pretrained")) and factory[key]]
        if asked and within(str(factory.get("_target_")), ZOOS):
            raise TrackerError(
                f"anchor.factory asks for trained weights ({asked[0][:80]}={str(factory[asked[0]])[:80]}), and a "
                "receiver takes none: leave it null"
            )

    @cached_property
    def _transform(self) -> Callable[[Any], Any] | None:
        path = self.transform.get("_target_")
        if not path:
            return None
        target = locate(str(path), "anchor.transform._target_")
        keywords = {key: value for key, value in self.transform.items() if key != "_target_"}
        if not isinstance(target, type):
            return functools.partial(target, **keywords)
        made = call(self.transform, "anchor.transform")
        if not callable(made):
            raise TrackerError(f"anchor.transform._target_={path}: its objects cannot be called with a sample")
        return made


class Checkpoint(OwnModel):
    """A model that a factory of the user's builds, with weights of a file; or a torch.export program."""

    weights_file: Path = Field(description=".safetensors, a state dict (.pt, .pth), or a torch.export program (.pt2)")
    factory: dict[str, Any] = Field(
        default={}, description="_target_: what returns the torch.nn.Module; the other keys are its keyword arguments"
    )

    def build(self) -> nn.Module:
        """What the factory returns, or the program.

        Raises:
            TrackerError: there is no factory, it raises, or it returns something else; or as `read_program`.
        """
        if self._is_program:
            return exported.read_program(self.weights_file, "anchor.weights_file")
        if not self.factory.get("_target_"):
            raise TrackerError(
                "anchor.factory._target_ is not set: name the function or class that builds the architecture of "
                f"{self.weights_file.name} (only a torch.export program, .pt2, needs none)"
            )
        return made(self.factory, "anchor.factory", nn.Module, "torch.nn.Module")

    def weights(self) -> Mapping[str, Tensor]:
        """The tensors of `weights_file`."""
        if self._is_program:
            return self.build().state_dict()
        return read_weights(self.weights_file, "anchor.weights_file", "the weights of your model")

    def architecture(self, folder: Path) -> dict[str, Any]:
        """The factory; or the program without its weights."""
        node = super().architecture(folder)
        if self._is_program:
            exported.write_architecture(self.weights_file, folder / "program.pt2.zst")
            return {**node, "weights_file": "./program.pt2.zst"}
        return {**node, "weights_file": "none.safetensors"}  # `build` does not read it

    @property
    def _is_program(self) -> bool:
        return ".pt2" in self.weights_file.suffixes
