"""The checkpoints that are sent: files, what a training run left in a folder, or runs and versions of MLflow."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracker.anchors.base import Anchor
from tracker.anchors.files import read_weights
from tracker.errors import TrackerError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = {"pytorch": (".safetensors", ".pt", ".pth", ".ckpt"), "keras": (".safetensors", ".keras", ".weights.h5")}
KEY = "scenario.checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """One of them.

    Attributes:
        name: for people.
        read: its tensors, by their names in the architecture.
    """

    name: str
    read: Callable[[], Mapping[str, Tensor]]


def checkpoints(references: Sequence[str], anchor: Anchor) -> list[Checkpoint]:
    """All checkpoints, in order; none is read yet.

    Args:
        references: files; folders, whose files are taken in the order of their names, numbers as such; MLflow's
            ``runs:/RUN_ID`` (the weights of an anchor's run), ``runs:/RUN_ID/NAME`` and ``models:/NAME/VERSION``; and
            ``models:/NAME``, all of its versions.
        anchor: whose model they are of.

    Raises:
        TrackerError: there are fewer than two, or one is missing.
    """
    found: list[Checkpoint] = []
    for reference in references:
        if re.match(r"(runs|models):/", reference):
            found += _logged(reference, anchor)
            continue
        path = Path(reference).expanduser()
        if path.is_dir():
            files = sorted((file for file in path.iterdir() if _is_weights(file, anchor)), key=_natural)
            if not files:
                raise TrackerError(
                    f"{KEY}: {path} holds no checkpoints ({', '.join(SUFFIXES[anchor.framework])}); name another folder"
                )
            found += [_file(file, anchor) for file in files]
        elif path.is_file():
            found.append(_file(path, anchor))
        else:
            raise TrackerError(
                f"{KEY}: {path} does not exist; name files, folders of them, or MLflow's runs and models"
            )
    if len(found) < 2:
        raise TrackerError(
            f"{KEY}: there is {len(found)} of them, and an update needs two: one before it, and one after"
        )
    return found


def _is_weights(file: Path, anchor: Anchor) -> bool:
    return file.is_file() and not file.name.startswith(".") and file.name.endswith(SUFFIXES[anchor.framework])


def _natural(file: Path) -> list[tuple[int, str]]:
    """An order in which epoch 10 comes after epoch 9."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _file(path: Path, anchor: Anchor) -> Checkpoint:
    def read() -> Mapping[str, Tensor]:
        if path.suffix == ".safetensors" or anchor.framework != "keras":
            return read_weights(path, KEY, "a checkpoint of the anchor's architecture")
        from tracker.anchors.keras_file import load_weights
        from tracker.frameworks.keras import FRAMEWORK

        model = anchor.build()
        load_weights(model, path, KEY)
        return FRAMEWORK.state(model, ())

    return Checkpoint(path.name, read)


def _logged(reference: str, anchor: Anchor) -> list[Checkpoint]:
    """Those of an MLflow reference.

    Raises:
        TrackerError: the store has it not.
    """
    from tracker.tracking import store
    from tracker.tracking.anchors import read_weights as read_anchor

    uri = store.tracking_uri()
    client = store.connect(uri)
    kind, _, rest = reference.partition(":/")
    name, _, inner = rest.strip("/").partition("/")
    try:
        if kind == "models" and not inner and "@" not in name:
            versions = client.search_model_versions(f"name = '{name}'")
            numbers = sorted(int(version.version) for version in versions)
            if not numbers:
                raise TrackerError(f"{KEY}: the store has no registered model {name!r}")
            return [_of_model(f"models:/{name}/{number}", anchor) for number in numbers]
        if kind == "runs" and not inner:
            if client.get_run(name).data.tags.get("tracker.kind") != "anchor":
                raise TrackerError(f"{KEY}: {reference} is no anchor's run; name a model of it, runs:/{name}/MODEL")
            return [Checkpoint(reference, lambda: read_anchor(client, name))]
    except TrackerError:
        raise
    except Exception as error:  # every store has its own
        reason = " ".join(str(error).split())[:160]
        raise TrackerError(f"{KEY}: {reference} is not in the store {store.without_secrets(uri)} ({reason})") from error
    return [_of_model(reference, anchor)]


def _of_model(uri: str, anchor: Anchor) -> Checkpoint:
    """A model that MLflow keeps."""
    if anchor.framework == "keras":
        from tracker.anchors.keras_mlflow import KerasMLflow as Kind
    else:
        from tracker.anchors.mlflow import MLflow as Kind  # type: ignore[assignment]
    return Checkpoint(uri, lambda: Kind(name="checkpoint", uri=uri).weights())
