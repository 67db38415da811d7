"""Any model of torchvision's zoo, by its name and that of its weights."""

from __future__ import annotations

import contextlib
import http.client
import inspect
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlparse

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision import models

from tracker.anchors.base import Anchor
from tracker.anchors.images import rgb
from tracker.anchors.zoo import one_line, seeded, tensors_only, unknown
from tracker.errors import TrackerError


class Torchvision(Anchor):
    """A model of torchvision's zoo, built and preprocessed as ``torchvision.models.get_model(model, weights)`` has it.

    With weights, auxiliary outputs are what torchvision keeps of them (Inception: kept, GoogLeNet: taken off); in
    evaluation mode none is computed.
    """

    model: str = Field(description="a name in torchvision.models.list_models()")
    weights_enum: str | None = Field(
        default="DEFAULT", description="such as IMAGENET1K_V1; DEFAULT: torchvision's best; null: random weights"
    )
    options: dict[str, Any] = Field(default={}, description="further keyword arguments of the model's builder")
    seed: int = Field(default=0, ge=0, description="of random weights")

    def build(self) -> nn.Module:
        """The architecture, as torchvision builds it for these weights, without them: nothing is downloaded.

        Raises:
            TrackerError: an unknown name, or options that do not suit the model.
        """
        with no_weights():
            return self._random() if self._member is None else self._of(self._member)

    def weights(self) -> Mapping[str, Tensor]:
        """The published weights, from torch.hub's folder or downloaded into it; or random ones.

        Raises:
            TrackerError: an unknown name, no network, or a file that is damaged or of another model.
        """
        model = self._random() if self._member is None else self._trained(self._member)
        return model.state_dict()

    def preprocess(self, sample: Any) -> Any:
        """The weights' own ``transforms()``."""
        if isinstance(sample, Tensor):
            return self._transform(sample)
        return self._transform(sample.convert("RGB"))

    def preprocessing(self) -> str:
        """The transform and its settings."""
        return " ".join(repr(self._transform).split())

    @cached_property
    def _builder(self) -> Callable[..., nn.Module]:
        names = models.list_models()
        if self.model not in names:
            listing = 'python -c "import torchvision; print(*torchvision.models.list_models())"'
            raise unknown(self.model, names, "anchor.model", listing)
        if self.model.startswith("quantized_") and self.weights_enum is not None:
            name = self.model.removeprefix("quantized_")
            raise TrackerError(
                f"anchor.model={self.model}: its weights are integers already; "
                f"take anchor.model={name} and compress that, such as with +codec=int8"
            )
        return models.get_model_builder(self.model)

    @cached_property
    def _member(self) -> models.WeightsEnum | None:
        """The member of the weights' enum; None for random weights."""
        if self.weights_enum is None:
            return None
        assert self._builder is not None  # an unknown model is told before its weights are looked for
        members = models.get_model_weights(self.model).__members__
        name = self.weights_enum.rsplit(".", 1)[-1]
        if name not in members:
            raise TrackerError(
                f"anchor.weights_enum={self.weights_enum} is not there; {self.model} has "
                f"{', '.join(members) or 'none'}, or null for random weights"
            )
        return members[name]

    @cached_property
    def _transform(self) -> Callable[[Any], Any]:
        """Random weights are evaluated on what the default weights take, so that sizes and times are comparable."""
        if self._member is not None:
            return self._member.transforms()
        assert self._builder is not None
        try:
            default = models.get_model_weights(self.model).__members__.get("DEFAULT")
        except ValueError:
            default = None
        return default.transforms() if default is not None else rgb

    def _random(self) -> nn.Module:
        """A model with seeded random weights; nothing is downloaded."""
        accepted = inspect.signature(self._builder).parameters
        options: dict[str, Any] = {"weights": None}
        if "weights_backbone" in accepted:
            options["weights_backbone"] = None  # by default detectors and segmenters download their backbone's
        if self.model.removeprefix("quantized_") in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # their own initialisation takes minutes and warns that it will go
        if self.model.removeprefix("quantized_") == "googlenet":
            options["aux_logits"] = False  # as with weights, so that sizes are comparable
        with seeded(self.seed):
            return self._build(options)

    def _trained(self, member: models.WeightsEnum) -> nn.Module:
        """A model with published weights; the builder changes its architecture to suit them."""
        file = weights_file(member.url)
        if not file.exists():
            download(member.url, file)
        try:
            with tensors_only():
                return self._of(member)
        except pickle.UnpicklingError as error:
            raise TrackerError(
                f"{file} is damaged or holds more than tensors; delete it and get {member.url} again"
            ) from error
        except (RuntimeError, OSError, EOFError, KeyError) as error:
            raise TrackerError(
                f"{file} cannot be read as the weights of {self.model} ({one_line(error, 160)}); "
                f"delete it and get {member.url} again"
            ) from error

    def _of(self, member: models.WeightsEnum) -> nn.Module:
        with seeded(self.seed):
            return self._build({"weights": member, "progress": False})

    def _build(self, options: Mapping[str, Any]) -> nn.Module:
        try:
            return self._builder(**{**options, **self.options})
        except (TypeError, ValueError) as error:
            raise TrackerError(f"anchor.options does not suit {self.model}: {one_line(error)}") from error


@contextlib.contextmanager
def no_weights() -> Iterator[None]:
    """Within the block torchvision's builders make models as for their weights, but get and load none.

    A builder does more for weights than loading them: the number of classes, auxiliary outputs, a norm's epsilon.
    """
    with (
        patch.object(models.WeightsEnum, "get_state_dict", lambda *_, **__: {}),
        patch.object(nn.Module, "load_state_dict", lambda *_, **__: None),
    ):
        yield


def weights_file(url: str) -> Path:
    """Where torch.hub keeps the file of a URL."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def download(url: str, file: Path) -> None:
    """Get a file that torchvision publishes, and check it by the hash in its name.

    Raises:
        TrackerError: it cannot be had; the message says what to put where by hand.
    """
    found = torch.hub.HASH_REGEX.search(file.name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), found.group(1) if found else None, sys.stderr.isatty())
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise TrackerError(
            f"{file.name} cannot be downloaded ({one_line(error, 120)}); get {url} and put it into {file.parent}"
        ) from error
