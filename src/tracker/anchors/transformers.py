"""Any model of Hugging Face transformers, an optional extra: from the hub, its cache, or a folder."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from tracker.anchors.base import Anchor
from tracker.anchors.zoo import offline_where_unreachable, one_line, optional, seeded, unknown
from tracker.errors import TrackerError

LONGEST = 512
IMAGES = ("Image", "Segmentation", "Detection", "Depth")


class Transformers(Anchor):
    """A model of transformers in safetensors; no code of its repository is run, and nothing is unpickled.

    Texts go through the model's tokenizer, images through its image processor, as `auto_class` takes the one or the
    other.
    """

    model: str = Field(description="a name on the hub, or a folder with config.json, model.safetensors, tokenizer.json")
    auto_class: str = Field(default="AutoModelForCausalLM", pattern=r"^AutoModel\w*$")
    revision: str | None = Field(default=None, description="a branch, tag or commit on the hub")
    pretrained: bool = Field(
        default=True, description="false: seeded random weights; config.json is needed all the same"
    )
    max_length: int | None = Field(
        default=None, ge=2, description="tokens of a passage, cut or padded to; by default 512, or the model's limit"
    )
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    seed: int = Field(default=0, ge=0, description="of random weights")

    def build(self) -> nn.Module:
        """The architecture, from the configuration alone.

        Raises:
            TrackerError: transformers is not installed, or there is no such model.
        """
        import torch

        try:
            with seeded(self.seed):
                model = self._auto_class.from_config(self._config)
        except Exception as error:  # transformers raises what it likes
            raise self._impossible(error) from error
        return model.to(getattr(torch, self.dtype))

    def weights(self) -> Mapping[str, Tensor]:
        """The trained weights; tied names share their tensor.

        Raises:
            TrackerError: they cannot be had, or do not have all that `auto_class` needs.
        """
        if not self.pretrained:
            return self.build().state_dict()
        config = self._config
        try:
            model, report = self._auto_class.from_pretrained(
                self.model, config=config, use_safetensors=True, output_loading_info=True, **self._common
            )
        except Exception as error:  # transformers, huggingface_hub and safetensors each have their own
            raise self._impossible(error) from error
        missing = sorted(report["missing_keys"])
        if missing:
            raise TrackerError(
                f"anchor.model={self.model} lacks {len(missing)} tensors of {self.auto_class}, such as {missing[0]}: "
                "choose the anchor.auto_class that it was trained for"
            )
        import torch

        return model.to(getattr(torch, self.dtype)).state_dict()

    def architecture(self, folder: Path) -> dict[str, Any]:
        """As `Anchor`; config.json travels.

        Raises:
            TrackerError: as `build`.
        """
        source = Path(self.model) / "config.json"
        if not Path(self.model).is_dir():
            try:
                source = Path(self._transformers.utils.cached_file(self.model, "config.json", revision=self.revision))
            except Exception as error:  # as above
                raise self._impossible(error) from error
        (folder / "config").mkdir()
        shutil.copyfile(source, folder / "config" / "config.json")
        return {**super().architecture(folder), "model": "./config", "pretrained": False}

    def check_received(self, folder: Path) -> None:
        """The model is a folder that travels.

        Raises:
            TrackerError: it is a name on the hub, or a folder elsewhere.
        """
        if Path(self.model).parent != folder or not Path(self.model).is_dir():
            raise TrackerError(
                f"the model's architecture names the transformers model {self.model[:80]!r}, which did not come with "
                "it, and a receiver downloads nothing: refused"
            )

    def preprocess(self, sample: Any) -> dict[str, Tensor]:
        """A text as token ids and mask of `max_length`, or an image as pixels."""
        if self._images:
            image = sample if isinstance(sample, Tensor) else sample.convert("RGB")
            return {"pixel_values": self._processor(images=image, return_tensors="pt")["pixel_values"][0]}
        if not isinstance(sample, str):
            raise TrackerError(
                f"anchor.auto_class={self.auto_class} takes texts, but the data set gives {type(sample).__name__}; "
                "choose data=text, or an AutoModelForImageClassification"
            )
        encoded = self._processor(
            sample, truncation=True, padding="max_length", max_length=self._length, return_tensors="pt"
        )
        # Some tokenizers give more than their model takes, such as token_type_ids.
        return {name: encoded[name][0] for name in ("input_ids", "attention_mask")}

    def preprocessing(self) -> str:
        """The image processor's settings; or the length, and the tokenizer's digest."""
        if self._images:
            return " ".join(self._processor.to_json_string().split())
        backend = getattr(self._processor, "backend_tokenizer", None)
        content = backend.to_str() if backend is not None else repr(sorted(self._processor.get_vocab().items()))
        return f"max_length {self._length}, tokenizer {hashlib.sha256(content.encode()).hexdigest()}"

    @property
    def _common(self) -> dict[str, Any]:
        return {"revision": self.revision or "main", "trust_remote_code": False}

    @property
    def _images(self) -> bool:
        return any(word in self.auto_class for word in IMAGES)

    @cached_property
    def _transformers(self) -> Any:
        if not Path(self.model).is_dir():
            offline_where_unreachable()
        transformers = optional("transformers")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        return transformers

    @cached_property
    def _auto_class(self) -> Any:
        found = getattr(self._transformers, self.auto_class, None)
        if found is None or not hasattr(found, "from_config"):
            names = [name for name in dir(self._transformers) if name.startswith("AutoModel")]
            listing = "https://huggingface.co/docs/transformers/model_doc/auto"
            raise unknown(self.auto_class, names, "anchor.auto_class", listing)
        return found

    @cached_property
    def _config(self) -> Any:
        try:
            config = self._transformers.AutoConfig.from_pretrained(self.model, **self._common)
        except Exception as error:  # as above
            raise self._impossible(error) from error
        if hasattr(config, "use_cache"):
            config.use_cache = False  # keys and values of past tokens serve generation, and would fill the memory here
        return config

    @cached_property
    def _processor(self) -> Any:
        auto = self._transformers.AutoImageProcessor if self._images else self._transformers.AutoTokenizer
        try:
            processor = auto.from_pretrained(self.model, **self._common)
        except Exception as error:  # as above
            raise self._impossible(error) from error
        if not self._images:
            processor.padding_side = "right"  # positions count from the first token
            if processor.pad_token is None:
                processor.pad_token = processor.eos_token or processor.convert_ids_to_tokens(0)
        return processor

    @cached_property
    def _length(self) -> int:
        limit = getattr(self._config, "max_position_embeddings", None) or 2**31
        if self.max_length is not None and self.max_length > limit:
            raise TrackerError(f"anchor.max_length={self.max_length}: {self.model} takes at most {limit} tokens")
        return self.max_length or min(LONGEST, limit)

    def _impossible(self, error: Exception) -> TrackerError:
        """The one line for whatever transformers raised."""
        if isinstance(error, TrackerError):
            return error
        text = one_line(error)
        if "trust_remote_code" in str(error) or "custom code" in str(error):
            return TrackerError(f"anchor.model={self.model} needs code of its repository, which tracker does not run")
        if Path(self.model).is_dir():
            return TrackerError(f"the model in {self.model} cannot be loaded as {self.auto_class}: {text}")
        if self.model.startswith((".", "/", "~")):
            return TrackerError(f"anchor.model={self.model}: there is no such folder")
        return TrackerError(
            f"anchor.model={self.model} cannot be had ({one_line(error, 120)}): get config.json, model.safetensors and "
            f"the tokenizer's files from https://huggingface.co/{self.model}, put them into one folder, and set "
            "anchor.model=FOLDER"
        )
