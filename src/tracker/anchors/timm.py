"""Any model of timm (PyTorch Image Models), an optional extra."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from tracker.anchors.base import Anchor
from tracker.anchors.files import read_weights
from tracker.anchors.zoo import offline_where_unreachable, one_line, optional, seeded, tensors_only, unknown
from tracker.errors import TrackerError

SOURCES = ("checkpoint_path", "cache_dir")  # options of timm.create_model that name files


class Timm(Anchor):
    """A model of timm with its published weights, those of a file, or random ones, and timm's own preprocessing."""

    model: str = Field(description="such as resnet18 or resnet18.a1_in1k")
    pretrained: bool = Field(default=True, description="false: seeded random weights")
    checkpoint: Path | None = Field(default=None, description="a file with the weights, in place of a download")
    options: dict[str, Any] = Field(default={}, description="further keyword arguments of timm.create_model")
    seed: int = Field(default=0, ge=0, description="of random weights")

    def build(self) -> nn.Module:
        """The architecture; nothing is downloaded.

        Raises:
            TrackerError: timm is not installed, or has no such model.
        """
        with seeded(self.seed):
            return self._create(pretrained=False)

    def weights(self) -> Mapping[str, Tensor]:
        """The tensors of `checkpoint`, else the published weights, else random ones.

        Raises:
            TrackerError: they cannot be had.
        """
        if self.checkpoint is not None:
            return self._from_file(self.checkpoint)
        model = self.build()
        if not self.pretrained:
            return model.state_dict()
        published = self._settings(model)
        classes = self.options.get("num_classes", published["num_classes"])
        if classes != published["num_classes"]:
            raise TrackerError(
                f"anchor.options.num_classes={classes}: the published weights of {self.model} have "
                f"{published['num_classes']} classes; give your own by anchor.checkpoint, or anchor.pretrained=false"
            )
        return self._published(published)

    def architecture(self, folder: Path) -> dict[str, Any]:
        """As `Anchor`; a model of a hub or a folder becomes timm's own with the options that are written there.

        Raises:
            TrackerError: as `build`.
        """
        node = {**super().architecture(folder), "pretrained": False}
        if ":" not in self.model:
            return node
        model = self.build()
        found = self._settings(model)
        options = {key: found.get(key) for key in ("num_classes", "global_pool")}
        if found.get("input_size"):
            options["in_chans"] = found["input_size"][0]
            if found.get("fixed_input_size"):
                options["img_size"] = list(found["input_size"][1:])
        options |= getattr(model, "_model_args", {})  # of what is written there, and ours
        known = {key: value for key, value in options.items() if value is not None}
        return {**node, "model": found["architecture"], "options": {**known, **self.options}}

    def check_received(self, folder: Path) -> None:
        """The architecture is one of timm's own.

        Raises:
            TrackerError: it, or an option, names a hub, a file or trained weights.
        """
        asked = [key for key in self.options if key in SOURCES or key.startswith("pretrained")]
        if ":" in self.model or asked:
            what = f"option {asked[0][:80]}" if asked else self.model[:80]
            raise TrackerError(
                f"the model's architecture asks timm for {what}, and a receiver takes no weights and downloads "
                "nothing: refused"
            )

    def preprocess(self, sample: Any) -> Any:
        """timm's transform for evaluation."""
        from torchvision.transforms.functional import to_pil_image

        # timm's transforms begin with PIL images.
        image = to_pil_image(sample) if isinstance(sample, Tensor) else sample
        return self._transform(image.convert(self._mode))

    def preprocessing(self) -> str:
        """The transform and its settings."""
        return " ".join(repr(self._transform).split())

    def _published(self, published: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Downloaded, or from the cache of huggingface_hub or torch.hub."""
        offline_where_unreachable()
        repository = published.get("hf_hub_id")
        source = f"https://huggingface.co/{repository}" if repository else published.get("url") or published.get("file")
        if not source:
            raise TrackerError(
                f"timm has no published weights for {self.model}; give yours by anchor.checkpoint=FILE, or take one of "
                f'`python -c "import timm; print(timm.list_pretrained())"`, or anchor.pretrained=false'
            )
        try:
            with seeded(self.seed), tensors_only():
                return self._timm.create_model(self.model, pretrained=True, **self.options).state_dict()
        except Exception as error:  # timm, huggingface_hub, torch.hub and safetensors each have their own
            name = "model.safetensors" if repository else Path(str(source)).name
            raise TrackerError(
                f"{name} of {source} cannot be had ({one_line(error, 120)}); "
                f"get it by hand and name it by anchor.checkpoint=FILE"
            ) from error

    def _from_file(self, file: Path) -> Mapping[str, Tensor]:
        """The tensors of a file, renamed by timm where it is a publisher's original rather than timm's own."""
        tensors = read_weights(file, "anchor.checkpoint", f"the weights of {self.model}")
        model = self.build()
        if tensors.keys() == model.state_dict().keys():
            return tensors
        overlay = {
            "state_dict": dict(tensors),
            "source": "timm",
            "custom_load": False,
            # Otherwise timm would leave a classifier of another size at random.
            "num_classes": getattr(model, "num_classes", None),
        }
        try:
            with seeded(self.seed):
                return self._create(pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
        except TrackerError:
            return tensors  # whoever fills the model tells which names or shapes do not fit

    def _create(self, **keywords: Any) -> nn.Module:
        timm, architecture = self._timm, self.model.split(".")[0]
        if ":" not in self.model and not timm.is_model(architecture):
            listing = 'python -c "import timm; print(*timm.list_models())"'
            raise unknown(architecture, timm.list_models(), "anchor.model", listing)
        if ":" in self.model:
            offline_where_unreachable()
        try:
            with tensors_only():  # an option may name a file
                return timm.create_model(self.model, **keywords, **self.options)
        except Exception as error:  # each of timm's thousand models has its own way to refuse
            raise TrackerError(f"timm cannot build anchor.model={self.model}: {one_line(error)}") from error

    @cached_property
    def _timm(self) -> Any:
        return optional("timm")

    @staticmethod
    def _settings(model: Any) -> dict[str, Any]:
        return dict(model.pretrained_cfg)

    @cached_property
    def _data(self) -> dict[str, Any]:
        data: dict[str, Any] = self._timm.data.resolve_model_data_config(self.build())
        size = self.options.get("img_size")  # timm keeps to what was published, whatever size the model is built for
        if size is not None:
            sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
            data["input_size"] = (data["input_size"][0], *sides)
        return data

    @cached_property
    def _mode(self) -> str:
        return "L" if self._data["input_size"][0] == 1 else "RGB"

    @cached_property
    def _transform(self) -> Callable[[Any], Any]:
        return self._timm.data.create_transform(**self._data, is_training=False)
