"""What an anchor is: an architecture, its trained weights, and the preprocessing that they expect."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PrivateAttr

from tracker.component import Component
from tracker.errors import TrackerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class Anchor(Component):
    """The uncompressed reference model.

    A new anchor overrides `build` and `weights`, and `preprocess` where the data set's samples are not yet what the
    model takes. Everything else (evaluation, identity, storing, rebuilding the decoded model) works on these three.
    """

    framework: ClassVar[str] = "pytorch"  # a module of tracker.frameworks

    name: str
    _channels_last: bool = PrivateAttr(default=False)

    @abstractmethod
    def build(self) -> Any:
        """The architecture, newly built: a torch.nn.Module, or what the anchor's framework has.

        The values of its weights do not matter. It is called again for every decoded model, so
        that none of the anchor's own weights can remain in it.
        """

    @abstractmethod
    def weights(self) -> Mapping[str, torch.Tensor]:
        """The trained weights by their names in the architecture's ``state_dict()``, or as the framework's `state`.

        Raises:
            TrackerError: they cannot be had; the message says which file is missing, from where, and where to put it.
        """

    def preprocess(self, sample: Any) -> Any:
        """A raw input of the data set as the model's input, without the batch dimension.

        Args:
            sample: as the data set gives it: a PIL image, a tensor, a text, ...

        Returns:
            A tensor, or a tuple or dict of tensors.
        """
        return sample

    def preprocessing(self) -> str:
        """What `preprocess` does, in words; a part of the identity under which the anchor's performance is kept."""
        return type(self).__qualname__

    def identity(self) -> dict[str, Any]:
        """What else the measured performance may depend on: the class and its fields, but for
        those that only say where things are."""
        fields = {key: value for key, value in self if key not in ("name", "uri") and not isinstance(value, Path)}
        return {"anchor": f"{type(self).__module__}.{type(self).__qualname__}", **fields}

    def architecture(self, folder: Path) -> dict[str, Any]:
        """A config node from which `build` gives the same architecture elsewhere, without the weights.

        Args:
            folder: for files that it needs beside the node, which names them by ``./NAME``.
        """
        fields = self.model_dump(mode="json")
        paths = [key for key, value in self if isinstance(value, Path)]  # of weights, in the anchors that have any
        kept = {key: value for key, value in fields.items() if key not in paths}
        return {"_target_": f"{type(self).__module__}.{type(self).__qualname__}", **kept}

    def check_received(self, folder: Path) -> None:
        """Refuse fields with which `build` would need more than a receiver has, or do more than build.

        A receiver has the fields that `architecture` gave, but anyone may have written them, and the files in
        `folder`. It opens no store, downloads nothing, takes no trained weights and unpickles nothing. Where a field
        is a `Path`, its file was found to be of the folder before.

        Args:
            folder: with the files that came with the architecture.

        Raises:
            TrackerError: there is such a field, or the anchor's `build` is none for a receiver.
        """

    def imports(self) -> dict[str, str]:
        """Dotted paths that `build` imports because the configuration names them, each by its key."""
        return {}

    def predict(self, model: Any, inputs: Any) -> torch.Tensor:
        """The model's output for a batch.

        Args:
            model: what `build` returned, filled with weights.
            inputs: a batch of what `preprocess` returns, on the model's device.

        Returns:
            The output that the task scores, such as logits of shape (batch, classes).
        """
        if isinstance(inputs, dict):
            output = model(**inputs)
        elif isinstance(inputs, tuple | list):
            output = model(*inputs)
        else:
            output = model(inputs)
        return output_tensor(output)

    @property
    def images_channels_last(self) -> bool:
        """Whether batches of images are given to its models in that memory layout; see `frameworks.layout`."""
        return self._channels_last

    def remember_layout(self, channels_last: bool) -> None:
        """Give images to its models with channels last, or as they are."""
        self._channels_last = channels_last


def output_tensor(output: Any) -> torch.Tensor:
    """The one tensor that counts in a model's output: itself, ``.logits``, ``["out"]``, or the first element."""
    import torch

    if isinstance(output, torch.Tensor):
        return output
    for key in ("logits", "out"):
        found = output.get(key) if isinstance(output, dict) else getattr(output, key, None)
        if isinstance(found, torch.Tensor):
            return found
    if isinstance(output, tuple | list) and output and isinstance(output[0], torch.Tensor):
        return output[0]
    raise TrackerError(
        f"the model returns {type(output).__name__}, in which no tensor to score can be found; "
        "override Anchor.predict in an anchor of your own"
    )
