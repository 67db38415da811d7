"""A user's own Keras model: a .keras file, or a factory and the file with its weights."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator
from torch import Tensor

from tracker.anchors.checkpoint import OwnModel
from tracker.anchors.files import read_weights
from tracker.anchors.keras_base import KerasAnchor, channels_first, channels_last
from tracker.anchors.zoo import one_line
from tracker.component import locate, made
from tracker.errors import TrackerError
from tracker.frameworks.keras import entries, load
from tracker.memory import physical_bytes

PLAIN_MODULES = ("keras", "builtins")


class KerasOwn(KerasAnchor, OwnModel):
    """The base of anchors of Keras whose preprocessing the user names.

    Transform, conversion and normalisation are those of `OwnModel`; then the channel becomes the last dimension.
    """

    layout: Literal["channels_last", "as_is"] = Field(
        default="channels_last",
        description="channels_last: images reach the model as (H, W, C), and images that it gives are (C, H, W) again; "
        "as_is: neither is changed",
    )
    custom: dict[str, str] = Field(
        default={}, description="the user's own classes and functions in a .keras file: dotted path by name"
    )

    @field_validator("custom", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return value or {}

    def preprocess(self, sample: Any) -> Any:
        """As `OwnModel`, then the layout."""
        sample = super().preprocess(sample)
        return channels_last(sample) if self.layout == "channels_last" and isinstance(sample, Tensor) else sample

    def preprocessing(self) -> str:
        """As `OwnModel`, and the layout."""
        return f"{super().preprocessing()}, layout {self.layout}"

    def predict(self, model: Any, inputs: Any) -> Tensor:
        """As `KerasAnchor`; images have their channel first, as tasks take them."""
        output = super().predict(model, inputs)
        return channels_first(output) if self.layout == "channels_last" else output

    def imports(self) -> dict[str, str]:
        """As `OwnModel`, and the classes."""
        return super().imports() | {f"class {name}": path for name, path in self.custom.items()}

    def _read(self, file: Path, key: str) -> Any:
        """The model in a .keras file, with the user's own classes."""
        objects = {name: locate(path, f"anchor.custom.{name}") for name, path in self.custom.items()}
        return read_model(file, key, objects)


class KerasFile(KerasOwn):
    """A .keras file; or a factory, with weights of a .weights.h5 (.h5, .safetensors) file."""

    file: Path = Field(description=".keras; or .weights.h5, .h5 or .safetensors with the weights of factory's model")
    factory: dict[str, Any] = Field(
        default={}, description="_target_: what returns the keras.Model; the other keys are its keyword arguments"
    )

    def build(self) -> Any:
        """The model of the file, read anew, or what the factory returns.

        Raises:
            TrackerError: as `read_model`; or there is no factory, it raises, or it returns something else.
        """
        keras = load()
        if self.file.suffix == ".keras" or self.file.is_dir():
            return self._read(self.file, "anchor.file")
        if not self.factory.get("_target_"):
            hint = (
                "if it holds a whole model, save that as .keras: keras.models.load_model(FILE).save('model.keras')"
                if self.file.suffix in (".h5", ".hdf5")
                else "or give a .keras file, which needs none"
            )
            if not self.file.is_file():
                raise TrackerError(f"anchor.file: {self.file} does not exist; give a file of model.save('NAME.keras')")
            raise TrackerError(
                "anchor.factory._target_ is not set: name the function or class that builds the architecture of "
                f"{self.file.name}; {hint}"
            )
        return made(self.factory, "anchor.factory", keras.Model, "keras.Model")

    def architecture(self, folder: Path) -> dict[str, Any]:
        """The factory; or the file with zeros for weights."""
        node = super().architecture(folder)
        if self.file.suffix != ".keras":
            return {**node, "file": "none.safetensors"}  # `build` does not read it
        model, plain = self.build(), folder / "zeros.keras"
        for entry in entries(model).values():
            entry.variable.assign(np.zeros(entry.variable.shape))
        with redirect_stdout(io.StringIO()):
            model.save(plain)
        deflated = folder / "model.keras"
        with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as copy:
            for name in archive.namelist():
                copy.writestr(name, archive.read(name))
        plain.unlink()
        return {**node, "file": "./model.keras"}

    def weights(self) -> Mapping[str, Tensor]:
        """The weights in the file."""
        if self.file.suffix == ".safetensors":
            load()
            return read_weights(self.file, "anchor.file", "the weights of your model")
        model = self.build()
        load_weights(model, self.file, "anchor.file")
        return self._state(model)


def read_model(file: Path, key: str, custom: Mapping[str, Any]) -> Any:
    """The model in a .keras file. Nothing in the file is run: Keras reads it in its safe mode.

    Args:
        file: a zip archive with config.json and the weights.
        key: the config key that names it, for error messages.
        custom: the user's own classes and functions by name.

    Raises:
        TrackerError: there is no such file, it is damaged, or it has a Lambda layer or classes that are not Keras's.
    """
    keras = load()
    config = _config(file, key)
    for name, cls in _foreign(config):
        if cls == "Lambda":
            raise TrackerError(
                f"{key}: {file} has the Lambda layer {name!r}, whose code would have to be run to read it: refused; "
                "make it a layer class of yours, and name that by +anchor.custom.CLASS=my_module.CLASS"
            )
        if name not in custom and cls not in custom:
            raise TrackerError(
                f"{key}: {file} has {cls}, which is not a part of Keras: name your own by "
                f"+anchor.custom.{cls}=my_module.{cls}"
            )
    try:
        with redirect_stdout(io.StringIO()):
            model = keras.saving.load_model(file, custom_objects=dict(custom), compile=False, safe_mode=True)
    except Exception as error:  # whatever Keras, its layers and h5py make of a file that someone else wrote
        raise TrackerError(
            f"{key}: {file} cannot be read as a Keras model ({type(error).__name__}: {one_line(error, 160)}); save it "
            "again with this version of Keras"
        ) from error
    if not isinstance(model, keras.Model):
        raise TrackerError(f"{key}: {file} holds {type(model).__name__}, not a keras.Model")
    return model


def load_weights(model: Any, file: Path, key: str) -> None:
    """Give a model the weights of an HDF5 file.

    Raises:
        TrackerError: there is no such file, it is damaged, or its weights are another model's.
    """
    if not file.is_file():
        raise TrackerError(f"{key}: {file} does not exist; give a file of model.save_weights('NAME.weights.h5')")
    if file.suffix not in (".h5", ".hdf5", ".keras"):
        raise TrackerError(f"{key}: {file} is no file of Keras weights: give .weights.h5, .h5 or .safetensors")
    # Keras leaves what the file has not at its random values, sometimes without a word.
    variables = [entry.variable for entry in entries(model).values() if "float" in entry.variable.dtype]
    for variable in variables:
        variable.assign(np.full(variable.shape, np.nan, np.float32))
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.load_weights(file)
    except Exception as error:  # h5py and Keras raise much
        raise TrackerError(
            f"{key}: {file} cannot be read as weights of this model ({one_line(error, 200)}); is it damaged, or of "
            "another architecture?"
        ) from error
    missing = [name for name, (variable, _) in entries(model).items() if _is_nan(variable)]
    if missing:
        raise TrackerError(
            f"{key}: {file} has not all weights of this model ({len(missing)} missing, such as {missing[0]}); is it of "
            "another architecture, or of another version of Keras?"
        )


def _is_nan(variable: Any) -> bool:
    """Whether all values are NaN."""
    return "float" in variable.dtype and bool(np.isnan(np.asarray(variable, dtype=np.float32)).all())


def _config(file: Path, key: str) -> Any:
    """config.json of a .keras file, its archive checked."""
    if file.is_dir():
        raise TrackerError(
            f"{key}: {file} is a folder (a SavedModel?), which holds no Keras model; give a file of "
            "model.save('NAME.keras')"
        )
    if not file.is_file():
        raise TrackerError(f"{key}: {file} does not exist; give a file of model.save('NAME.keras')")
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(item.file_size for item in archive.infolist()) > physical_bytes():
                raise TrackerError(f"{key}: {file} claims to unpack to more than this machine's memory: refused")
            damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged[:80]} is not as it was written")
            return json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError, NotImplementedError, RecursionError) as error:
        raise TrackerError(
            f"{key}: {file} is damaged, or no .keras file ({one_line(error, 120)}); get it again"
        ) from error
    except Exception as error:  # zlib.error, and what else a forged archive brings about
        raise TrackerError(f"{key}: {file} is damaged ({one_line(error, 120)}); get it again") from error


def _foreign(config: Any) -> Iterator[tuple[str, str]]:
    """(name, class) of what a configuration has that is not Keras's own."""
    if isinstance(config, dict):
        cls, module, inner = config.get("class_name"), config.get("module"), config.get("config")
        if isinstance(cls, str):
            registered = str(config.get("registered_name") or cls)
            if cls == "__lambda__" or (cls == "Lambda" and isinstance(inner, dict)):
                yield str(inner.get("name", "")) if isinstance(inner, dict) else "", "Lambda"
            elif cls == "function" and isinstance(inner, str) and module not in (None, "builtins"):
                if str(module).split(".")[0] not in PLAIN_MODULES:
                    yield str(config.get("registered_name")), inner
            elif ">" in registered or (module is not None and str(module).split(".")[0] not in PLAIN_MODULES):
                yield registered, cls
        for key, item in config.items():
            if key != "compile_config":
                yield from _foreign(item)
    elif isinstance(config, list):
        for item in config:
            yield from _foreign(item)
