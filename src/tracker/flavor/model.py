"""Save, log and load: the functions that MLflow expects of a flavor."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import yaml

from tracker.bitstream.manifest import bitstream_bytes, read_manifest
from tracker.component import build
from tracker.errors import TrackerError
from tracker.flavor.architecture import check_plain, read_architecture, rebuild, write_architecture
from tracker.flavor.carried import carry
from tracker.flavor.mlmodel import FLAVOR_NAME, read_flavor
from tracker.flavor.predictor import Predictor
from tracker.structure.base import check_kinds
from tracker.trust import ENVIRONMENT, SHOWN, named

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature
    from mlflow.models.model import ModelInfo

    from tracker.anchors.base import Anchor

BITSTREAM = "bitstream"
# What a receiver imports; the framework and a zoo's package come with the anchor.
RECEIVER = ("mlflow", "nncodec", "numpy", "torch", "torchvision", "safetensors", "zstandard", "pydantic")
EXTRAS = {"keras": ("tensorflow",)}
ZOOS = ("timm", "transformers")
NO_REQUIREMENT = "# tracker: it was installed from a folder; TRACKER_REQUIREMENT says where a receiver gets it"


def save_model(
    bitstream: str | Path,
    path: str | Path,
    anchor: Anchor | Mapping[str, Any],
    conda_env: Mapping[str, Any] | str | None = None,
    code_paths: Sequence[str] | None = None,
    mlflow_model: Model | None = None,
    signature: ModelSignature | None = None,
    input_example: Any = None,
    pip_requirements: Sequence[str] | str | None = None,
    extra_pip_requirements: Sequence[str] | str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Save a bitstream as an MLflow model.

    Args:
        bitstream: the folder with manifest.json; its digest is verified.
        path: of the model's folder, which must not exist or be empty.
        anchor: whose architecture the receiver builds: the component, or its configuration node.
        conda_env: as for MLflow's own flavors; so are all of the following.
        code_paths: of an anchor of the user's own, so that the receiver has it.
        mlflow_model: to be added to.
        signature: of the model's inputs and outputs, as `tracker.flavor.signature` finds them.
        input_example: a batch of what the anchor's ``preprocess`` gives.
        pip_requirements: instead of `get_default_pip_requirements`.
        extra_pip_requirements: besides them.
        metadata: of the user's own.

    Raises:
        TrackerError: the bitstream is damaged.
    """
    from mlflow import pyfunc
    from mlflow.models import Model
    from mlflow.models.model import MLMODEL_FILE_NAME
    from mlflow.models.utils import _save_example
    from mlflow.utils.environment import (
        _CONDA_ENV_FILE_NAME,
        _PYTHON_ENV_FILE_NAME,
        _validate_env_arguments,
    )
    from mlflow.utils.model_utils import _validate_and_copy_code_paths, _validate_and_prepare_target_save_path

    from tracker.anchors.base import Anchor

    _validate_env_arguments(conda_env, pip_requirements, extra_pip_requirements)
    manifest = read_manifest(Path(bitstream))
    if not isinstance(anchor, Anchor):
        anchor = build(anchor, "anchor", Anchor)  # type: ignore[type-abstract]
    path = Path(path).absolute()
    _validate_and_prepare_target_save_path(str(path))
    code = _validate_and_copy_code_paths(code_paths, str(path))
    shutil.copytree(bitstream, path / BITSTREAM)
    write_architecture(anchor, path)
    model = mlflow_model if mlflow_model is not None else Model()
    if signature is not None:
        model.signature = signature
    if input_example is not None:
        _save_example(model, input_example, str(path))
    if metadata is not None:
        model.metadata = dict(metadata)
    pyfunc.add_to_model(
        model,
        loader_module=__package__,
        conda_env=_CONDA_ENV_FILE_NAME,
        python_env=_PYTHON_ENV_FILE_NAME,
        code=code,
        model_config={"device": "auto"},  # MLflow hands on only those that a model names
    )
    model.add_flavor(
        FLAVOR_NAME,
        data=BITSTREAM,
        sha256=manifest.sha256,
        codec=manifest.codec,
        framework=anchor.framework,
        tracker_version=importlib.metadata.version("tracker"),
        code=code,
    )
    model.model_size_bytes = bitstream_bytes(Path(bitstream))
    model.save(str(path / MLMODEL_FILE_NAME))
    _write_environment(path, anchor, conda_env, pip_requirements, extra_pip_requirements)


def _write_environment(
    path: Path,
    anchor: Anchor,
    conda_env: Mapping[str, Any] | str | None,
    pip_requirements: Sequence[str] | str | None,
    extra: Sequence[str] | str | None,
) -> None:
    """The three files by which MLflow sets up an environment."""
    from mlflow.utils.environment import (
        _CONDA_ENV_FILE_NAME,
        _CONSTRAINTS_FILE_NAME,
        _PYTHON_ENV_FILE_NAME,
        _REQUIREMENTS_FILE_NAME,
        _process_conda_env,
        _process_pip_requirements,
        _PythonEnv,
    )

    if conda_env is None:
        defaults = get_default_pip_requirements(anchor) if pip_requirements is None else None
        environment, requirements, constraints = _process_pip_requirements(defaults, pip_requirements, extra)
    else:
        environment, requirements, constraints = _process_conda_env(conda_env)
    (path / _CONDA_ENV_FILE_NAME).write_text(yaml.safe_dump(environment, default_flow_style=False))
    if constraints:
        (path / _CONSTRAINTS_FILE_NAME).write_text("\n".join(constraints))
    if not any(line.startswith("tracker") for line in requirements):
        requirements = [*requirements, NO_REQUIREMENT]
    (path / _REQUIREMENTS_FILE_NAME).write_text("\n".join(requirements))
    _PythonEnv.current().to_yaml(str(path / _PYTHON_ENV_FILE_NAME))


def log_model(
    bitstream: str | Path,
    anchor: Anchor | Mapping[str, Any],
    name: str = "model",
    registered_model_name: str | None = None,
    await_registration_for: int = 300,
    **options: Any,
) -> ModelInfo:
    """Log a bitstream as an MLflow model of the active run, with the arguments of `save_model` and of MLflow's flavors.

    Args:
        bitstream: the folder with manifest.json.
        anchor: whose architecture the receiver builds.
        name: of the logged model.
        registered_model_name: registers a version of that name.
        await_registration_for: seconds to wait for the version.
        options: further ones of `save_model` and of ``mlflow.models.Model.log``.
    """
    from mlflow.models import Model

    import tracker.flavor

    return Model.log(
        artifact_path=None,
        name=name,
        flavor=tracker.flavor,
        flavor_name=FLAVOR_NAME,
        registered_model_name=registered_model_name,
        await_registration_for=await_registration_for,
        bitstream=bitstream,
        anchor=anchor,
        **options,
    )


def load_model(model_uri: str, dst_path: str | None = None, trusted: Collection[str] = ()) -> Any:
    """The decoded model.

    Args:
        model_uri: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``runs:/RUN_ID/NAME``, ``models:/MODEL_ID`` or a
            folder.
        dst_path: an existing folder to download to.
        trusted: packages besides tracker whose anchors, factories, coders and structure changes may be imported, also
            from the code that travels with the model; the variable ``TRACKER_TRUSTED`` adds to them.

    Returns:
        A torch.nn.Module or a keras.Model, in evaluation mode.

    Raises:
        TrackerError: the model is damaged, of another flavor, or asks for code that is not trusted.
        MlflowException: there is no such model.
    """
    from mlflow.tracking.artifact_utils import _download_artifact_from_uri

    path = Path(_download_artifact_from_uri(artifact_uri=model_uri, output_path=dst_path))
    flavor = read_flavor(path)
    if flavor.get("code") and named(trusted):  # only then is code that travels with a model of any use
        carry(path, str(flavor["code"]), named(trusted))
    return _decoded(path, trusted)[1]


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> Predictor:
    """What ``mlflow.pyfunc.load_model`` and ``mlflow models serve`` call.

    Only the variable ``TRACKER_TRUSTED`` names packages here: what a caller gives as ``model_config`` and what the
    model's own file says reach this function as one.

    Args:
        path: of the model's folder.
        model_config: ``device`` (auto by default).

    Raises:
        TrackerError: as `load_model`.
    """
    from tracker.models import choose_device

    options = dict(model_config or {})
    device = str(options.pop("device", "auto"))
    if options:
        raise TrackerError(
            f"model_config.{str(next(iter(options)))[:SHOWN]} is not an option; there is device, and packages are "
            f"trusted by the variable {ENVIRONMENT}"
        )
    anchor, model = _decoded(Path(path), ())
    return Predictor(anchor, model, choose_device(device))


def _decoded(path: Path, trusted: Collection[str]) -> tuple[Anchor, Any]:
    """The anchor and the decoded model of a folder that holds MLmodel."""
    from tracker.receiver import decode_model

    expected = read_flavor(path)["sha256"]
    check_plain(path / BITSTREAM, folder=True)
    manifest = read_manifest(path / BITSTREAM)  # a damaged one is told before anything is imported for the architecture
    check_kinds(manifest.structure, named(trusted))
    anchor = read_architecture(path, trusted)
    built = rebuild(anchor)
    return anchor, decode_model(path / BITSTREAM, built, anchor.framework, trusted=named(trusted), sha256=expected)


def get_default_pip_requirements(anchor: Anchor | None = None) -> list[str]:
    """What a receiver needs, with the versions that are installed here.

    Args:
        anchor: whose framework and zoo are among them; without one, PyTorch.
    """
    names = list(RECEIVER)
    if anchor is not None:
        names += EXTRAS.get(anchor.framework, ())
        names += [zoo for zoo in ZOOS if zoo == type(anchor).__module__.rsplit(".", 1)[-1]]
    own = own_requirement()
    return [*([own] if own else []), *(_pinned(name) for name in names)]


def own_requirement() -> str | None:
    """Where a receiver gets this package: ``TRACKER_REQUIREMENT``, else what it was installed from.

    That is told by PEP 610: a repository, or an archive of the network. A folder is of no use elsewhere, but for the
    commit that it has of a repository of the network.

    Returns:
        A requirement; None where there is none to tell. The name alone would be a stranger's package on the index.
    """
    if given := os.environ.get("TRACKER_REQUIREMENT"):
        return given
    origin = json.loads(importlib.metadata.distribution("tracker").read_text("direct_url.json") or "{}")
    url, vcs = str(origin.get("url", "")), origin.get("vcs_info", {})
    if url.startswith("file://"):
        return _of_checkout(url2pathname(urlsplit(url).path))
    if not url.startswith("https://"):
        return None
    return f"tracker @ {vcs['vcs']}+{url}@{vcs['commit_id']}" if vcs else f"tracker @ {url}"


def _of_checkout(folder: str) -> str | None:
    """The commit of a git checkout, in the repository that it was cloned from."""
    commands = (["git", "-C", folder, "remote", "get-url", "origin"], ["git", "-C", folder, "rev-parse", "HEAD"])
    try:
        url, commit = (subprocess.run(words, capture_output=True, text=True, check=True).stdout for words in commands)
    except (OSError, subprocess.CalledProcessError):
        return None
    place = urlsplit(url.strip())
    if place.scheme != "https" or not place.hostname:
        return None
    host = place.netloc.rpartition("@")[2]  # without a name and a password
    return f"tracker @ git+https://{host}{place.path}@{commit.strip()}"


def _pinned(name: str) -> str:
    version = importlib.metadata.version(name).partition("+")[0]  # 2.14.1+cpu is on no registry
    return f"{name}=={version}"
