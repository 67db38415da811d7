"""Keras 3 on TensorFlow: models are keras.Model, tensors are their weights, output channel first."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from tracker.errors import TrackerError
from tracker.frameworks.base import Framework, refuse_misfits
from tracker.frameworks.keras_layout import Layout, layout
from tracker.frameworks.keras_names import layers_by_name, stable, unique

if TYPE_CHECKING:
    import numpy as np

# Types that numpy has not, and integers of their width, which torch and numpy both have.
WIDE = {"bfloat16": (torch.bfloat16, torch.int16, "uint16")}


@functools.cache
def load() -> Any:
    """The module keras, on TensorFlow, which is told to print nothing and to take a GPU's memory as it needs it.

    Raises:
        TrackerError: TensorFlow is not installed or cannot be imported, or Keras runs on something else already.
    """
    loaded = sys.modules.get("keras")
    if loaded is None:
        os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        import keras
        import tensorflow
    except ModuleNotFoundError as error:
        raise TrackerError(
            "an anchor of Keras needs tensorflow, which is not installed: pip install 'tracker[tensorflow]'"
        ) from error
    except Exception as error:  # a broken installation fails in ways of its own
        reason = " ".join(str(error).split())[:200]
        raise TrackerError(f"tensorflow cannot be imported ({reason}); install it anew") from error
    if not keras.__version__.startswith("3."):
        raise TrackerError(f"an anchor of Keras needs Keras 3, not {keras.__version__}: pip install 'keras>=3'")
    if keras.backend.backend() != "tensorflow":
        raise TrackerError(
            f"Keras runs on {keras.backend.backend()} in this process, and tracker needs TensorFlow: take "
            "KERAS_BACKEND out of the environment and of your code"
        )
    tensorflow.get_logger().setLevel("ERROR")
    for gpu in tensorflow.config.list_physical_devices("GPU"):
        try:
            tensorflow.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            break  # TensorFlow is at work already; its user has decided
    return keras


class Entry(NamedTuple):
    """A weight: the variable, and how its values are laid out in the tensor."""

    variable: Any
    layout: Layout


def entries(model: Any) -> dict[str, Entry]:
    """A model's weights by name, in the order of its layers.

    Raises:
        TrackerError: it has no weights yet.
    """
    if not model.built:
        raise TrackerError(
            "the Keras model has no weights yet: give it an Input layer, or call it once on an input where it is built"
        )
    found: dict[str, Entry] = {}
    seen: set[int] = set()
    # Nested layers come behind their owner, and own what they have; an owner's list has theirs as well.
    owned = list(layers_by_name(model).items())
    parts: dict[str, dict[str, Entry]] = {}
    for path, item in [*reversed(owned), ("", model)]:
        part: dict[str, Entry] = {}
        for variable in item.weights:
            if id(variable) not in seen:
                seen.add(id(variable))
                name = unique(variable.name, part)
                part[name] = Entry(variable, layout(item, variable.name, len(variable.shape)))
        parts[path] = part
    for path in ["", *(path for path, _ in owned)]:
        for name, entry in parts[path].items():
            found[f"{path}/{name}" if path else name] = entry
    return found


def read(variable: Any) -> Tensor:
    """A variable's values."""
    import numpy as np

    values: np.ndarray = np.array(variable)  # a copy
    wide = WIDE.get(variable.dtype)
    if wide is not None:
        dtype, integers, bits = wide
        return torch.from_numpy(values.view(bits).astype(np.int16, copy=False)).view(integers).view(dtype)
    try:
        return torch.from_numpy(values)
    except TypeError as error:
        raise TrackerError(
            f"the weight {variable.path} is {variable.dtype}, which PyTorch's tensors cannot hold; save the model with "
            "weights of float32"
        ) from error


def write(variable: Any, values: Tensor) -> None:
    """Give a variable values."""
    import numpy as np

    wide = WIDE.get(variable.dtype)
    if wide is not None:
        import ml_dtypes

        dtype, integers, _ = wide
        variable.assign(values.to(dtype).view(integers).numpy().view(getattr(ml_dtypes, variable.dtype)))
        return
    variable.assign(values.numpy().astype(np.dtype(variable.dtype), copy=False))


def settle(model: Any) -> None:
    """Let normalisations of inputs compute with the weights that they have now; they keep what they make of them."""
    for item in model._flatten_layers():
        if isinstance(item, load().layers.Normalization) and item.built and item.input_mean is None:
            item.finalize_state()


class Keras(Framework):
    """Models that are keras.Model."""

    name: ClassVar[str] = "keras"
    title: ClassVar[str] = "Keras"

    def fill(self, model: Any, tensors: Mapping[str, Tensor], what: str) -> None:
        """Assign every weight."""
        import numpy as np

        found = entries(checked(model))
        for name in tensors.keys() & found.keys():
            variable, order = found[name]
            if tuple(tensors[name].shape) != order.shape(tuple(variable.shape)):
                raise TrackerError(
                    f"{what} do not fit the architecture: {name} is {tuple(tensors[name].shape)}, but the model has "
                    f"{order.shape(tuple(variable.shape))}"
                )
        missing, unexpected = sorted(found.keys() - tensors.keys()), sorted(tensors.keys() - found.keys())
        refuse_misfits(what, missing, unexpected)
        for variable, _ in found.values():
            if "float" in variable.dtype:
                variable.assign(np.full(variable.shape, np.nan, np.float32))
        for name, (variable, order) in found.items():
            write(variable, order.to_variable(tensors[name].detach().cpu(), tuple(variable.shape)))
        settle(model)

    def state(self, model: Any, given: Collection[str]) -> dict[str, Tensor]:
        """All weights; random seeds and the state of metrics and optimisers are none."""
        return {name: order.to_tensor(read(variable)) for name, (variable, order) in entries(checked(model)).items()}

    def ready(self, model: Any, device: str) -> Any:
        """The model as it is: TensorFlow places it, and `predict` runs it in evaluation mode."""
        return model

    def dtype(self, model: Any) -> torch.dtype | None:
        """None: Keras casts inputs itself."""
        return None

    def copy(self, model: Any) -> Any:
        """The architecture built again from its configuration, with copied weights.

        Raises:
            TrackerError: it has no configuration (a subclass of keras.Model without ``get_config``).
        """
        from tracker.frameworks import keras_graph

        try:
            if keras_graph.is_graph(model):
                twin = keras_graph.rebuilt(model, {})
            else:
                twin = type(model).from_config(model.get_config())
                twin.build_from_config(model.get_build_config())
                twin.built = True  # Keras leaves it at False where a class has no build() of its own
            found = entries(twin)
            for name, (variable, _) in entries(model).items():
                found[name].variable.assign(variable)
            settle(twin)
        except Exception as error:  # a user's own class raises what it likes
            raise TrackerError(
                f"the Keras model {type(model).__name__} cannot be copied ({' '.join(str(error).split())[:160]}); give "
                "its class get_config() and from_config(), or make it of keras.Input and keras.Model(inputs, outputs)"
            ) from error
        return twin

    def describe(self, model: Any) -> str:
        """The configuration as JSON, with layer names that do not depend on what was built before.

        A model without a configuration is described by its layers'.
        """
        try:
            config = json.loads(model.to_json())
        except Exception:  # a subclass without get_config, or with one that is not complete
            parts = ((path, type(item).__name__, _config(item)) for path, item in layers_by_name(model).items())
            return json.dumps([type(model).__name__, *parts], default=str)
        config.pop("compile_config", None)
        return json.dumps(stable(config), sort_keys=True)

    def layers(self, model: Any) -> dict[str, int]:
        """Classes of layers."""
        named = layers_by_name(model)
        owners = dict.fromkeys(name.rpartition("/")[0] for name in entries(model))
        return dict(Counter(type(named.get(path, model)).__name__ for path in owners))


def checked(model: Any) -> Any:
    """A model, if it is one of Keras.

    Raises:
        TrackerError: it is none.
    """
    if not isinstance(model, load().Model):
        raise TrackerError(f"the anchor's model is {type(model).__name__}, not a keras.Model")
    return model


def is_functional(model: Any) -> bool:
    """Whether a model is a graph of layers, made by ``keras.Model(inputs, outputs)``, and its class adds no code."""
    from keras.src.models.functional import Functional

    return isinstance(model, Functional) and type(model).call is Functional.call


def _config(item: Any) -> str:
    try:
        return json.dumps(stable({"class_name": type(item).__name__, "config": item.get_config()}), default=str)
    except Exception:  # a user's own layer
        return ""


FRAMEWORK = Keras()
