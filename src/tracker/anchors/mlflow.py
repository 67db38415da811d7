"""Any PyTorch model that MLflow keeps, by its URI."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from tracker.anchors.checkpoint import Checkpoint, OwnModel
from tracker.anchors.exported import read_program
from tracker.anchors.zoo import environment, one_line
from tracker.cache import cache_folder
from tracker.errors import TrackerError


class Logged(OwnModel):
    """The base of anchors that are a logged or registered model of the store that the run itself is logged to."""

    uri: str = Field(min_length=1, description="runs:/RUN_ID/NAME, models:/NAME/VERSION, models:/NAME@ALIAS, ...")
    allow_pickle: bool = Field(default=False, description="unpickling a model runs the code in it")

    def check_received(self, folder: Path) -> None:
        """No receiver builds it: its `build` asks a store, and may unpickle.

        What a receiver can build of such a model `architecture` names by the anchor of a file.

        Raises:
            TrackerError: always.
        """
        raise TrackerError(
            f"the model's architecture is an MLflow model of its own ({type(self).__name__}), which a receiver neither "
            "fetches nor unpickles: refused"
        )

    @cached_property
    def _downloaded(self) -> tuple[Path, dict[str, Any]]:
        """The model's folder, downloaded once, and its flavours with their settings."""
        from tracker.tracking import store

        address = store.tracking_uri()
        store.connect(address)
        import mlflow.artifacts
        from mlflow.models import Model

        try:
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=self.uri, dst_path=self._scratch.name))
            return folder, Model.load(str(folder)).flavors
        except Exception as error:  # every artifact store has its own
            raise TrackerError(
                f"anchor.uri={self.uri} cannot be had from the MLflow store {store.without_secrets(address)} "
                f"({one_line(error, 160)}); set MLFLOW_TRACKING_URI to the store that has it"
            ) from error

    @cached_property
    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        """Removed when the process ends; every new model is read from it."""
        return tempfile.TemporaryDirectory(prefix="mlflow-", dir=cache_folder())


class MLflow(Logged):
    """A PyTorch model of MLflow.

    MLflow's own format since 3.x, a torch.export program, is read without unpickling. A pickled model is refused
    unless `allow_pickle` says that its source is trusted.
    """

    def build(self) -> nn.Module:
        """The model, loaded anew.

        Raises:
            TrackerError: it is not there, is no PyTorch model, is pickled and not allowed to be, or is damaged.
        """
        folder, data = self._files
        if (data / "model.pt2").exists():
            return read_program(data / "model.pt2", "anchor.uri")
        if not self.allow_pickle:
            raise TrackerError(
                f"anchor.uri={self.uri} is a pickled model, and unpickling runs code that it holds; if you trust its "
                "source set anchor.allow_pickle=true, or log it again with serialization_format='pt2'"
            )
        import mlflow.pytorch

        try:
            with environment("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true"):
                model = mlflow.pytorch.load_model(str(folder), map_location="cpu")
        except Exception as error:  # a pickle can raise anything
            raise TrackerError(
                f"anchor.uri={self.uri} cannot be unpickled ({type(error).__name__}: {one_line(error)}); the code of "
                "its classes must be importable from here"
            ) from error
        if not isinstance(model, nn.Module):
            raise TrackerError(f"anchor.uri={self.uri} holds {type(model).__name__}, not a torch.nn.Module")
        return model

    def architecture(self, folder: Path) -> dict[str, Any]:
        """The program, as that of a checkpoint.

        Raises:
            TrackerError: the model is pickled, and a receiver unpickles nothing.
        """
        program = self._files[1] / "model.pt2"
        if not program.exists():
            raise TrackerError(f"anchor.uri={self.uri} is pickled, and a receiver unpickles nothing")
        return Checkpoint(name=self.name, weights_file=program).architecture(folder)

    def weights(self) -> Mapping[str, Tensor]:
        """The model's state dict."""
        return self.build().state_dict()

    @cached_property
    def _files(self) -> tuple[Path, Path]:
        """The model's folder, and the one below it with the weights."""
        folder, flavours = self._downloaded
        if "pytorch" not in flavours:
            keras = flavours.keys() & {"keras", "tensorflow"}
            raise TrackerError(
                f"anchor.uri={self.uri} is no PyTorch model; its flavours: {', '.join(flavours)}"
                + (": take anchor=keras_mlflow" if keras else "")
            )
        return folder, folder / str(flavours["pytorch"].get("model_data", "data"))
