"""Any Keras model that MLflow keeps, by its URI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tracker.anchors.keras_file import KerasFile, KerasOwn, load_weights
from tracker.anchors.mlflow import Logged
from tracker.anchors.zoo import environment, one_line
from tracker.errors import TrackerError
from tracker.frameworks.keras import load


class KerasMLflow(KerasOwn, Logged):
    """A Keras model of MLflow's flavours ``tensorflow`` and ``keras``.

    Its .keras file is read in Keras's safe mode; what MLflow has pickled beside it (custom objects) is left alone
    unless `allow_pickle` says that its source is trusted. Without that, the user's own classes are named by `custom`.
    """

    def build(self) -> Any:
        """The model, loaded anew.

        Raises:
            TrackerError: it is not there, is no Keras model, has pickled parts that are needed, or is damaged.
        """
        keras = load()
        folder, file = self._model
        if not self.allow_pickle:
            try:
                return self._read(file, "anchor.uri")
            except TrackerError as error:
                if (file.parent / "custom_objects.cloudpickle").exists():
                    raise TrackerError(
                        f"{error}; or set anchor.allow_pickle=true to unpickle the classes logged with it, which runs "
                        "code that the model's source chose"
                    ) from error
                raise
        import mlflow.tensorflow

        try:
            with environment("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true"):
                model = mlflow.tensorflow.load_model(str(folder))
        except Exception as error:  # a pickle can raise anything
            raise TrackerError(
                f"anchor.uri={self.uri} cannot be loaded ({type(error).__name__}: {one_line(error)}); the code of its "
                "classes must be importable from here"
            ) from error
        if not isinstance(model, keras.Model):
            raise TrackerError(f"anchor.uri={self.uri} holds {type(model).__name__}, not a keras.Model")
        return model

    def architecture(self, folder: Path) -> dict[str, Any]:
        """The model's file, as that of a Keras file.

        Raises:
            TrackerError: the model needs what is pickled beside it.
        """
        if self.allow_pickle:
            raise TrackerError(f"anchor.uri={self.uri} may be unpickled here, and a receiver unpickles nothing")
        file = KerasFile(name=self.name, file=self._model[1], layout=self.layout, custom=self.custom)
        return file.architecture(folder)

    def weights(self) -> Mapping[str, Tensor]:
        """The model's weights."""
        model = self.build()
        load_weights(model, self._model[1], "anchor.uri")
        return self._state(model)

    @property
    def _model(self) -> tuple[Path, Path]:
        """The model's folder, and the .keras file in it."""
        folder, flavours = self._downloaded
        flavour = flavours.get("tensorflow") or flavours.get("keras")
        if flavour is None:
            torch = ": take anchor=mlflow" if "pytorch" in flavours else ""
            raise TrackerError(f"anchor.uri={self.uri} is no Keras model; its flavours: {', '.join(flavours)}{torch}")
        data = folder / str(flavour.get("data", "data"))
        file = data if data.is_file() else data / "model.keras"
        if not file.is_file():
            raise TrackerError(
                f"anchor.uri={self.uri} has no .keras file (a SavedModel, or of an older Keras): log it again with "
                "mlflow.tensorflow.log_model and Keras 3"
            )
        return folder, file
