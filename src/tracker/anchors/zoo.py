"""What the anchors from model zoos share: optional packages, names, seeds, and downloads that may be impossible."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from tracker.errors import TrackerError

HUB_SECONDS = 5.0


def optional(package: str) -> Any:
    """An optional package, which is also the name of tracker's extra.

    Raises:
        TrackerError: it is not installed, or is broken.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != package:
            raise TrackerError(f"{package} needs {error.name}, which is not installed; install it") from error
        raise TrackerError(
            f"anchor={package} needs the package {package}, which is not installed: pip install 'tracker[{package}]'"
        ) from error
    except ImportError as error:
        raise TrackerError(f"the package {package} cannot be imported ({one_line(error)}); install it anew") from error


def unknown(name: str, names: Iterable[str], key: str, listing: str) -> TrackerError:
    """The error for a name that is not among `names`, with the nearest ones, or how to list all of them."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return TrackerError(f"{key}={name} is not there; {hint}all names: {listing}")


def one_line(error: BaseException, length: int = 240) -> str:
    """An exception's message without its line breaks, and not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else text[: length - 1] + "…"


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch for the block, and put its generator back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for the block, and put it back afterwards."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def tensors_only() -> contextlib.AbstractContextManager[None]:
    """Within the block, ``torch.load`` unpickles tensors and plain containers only, whatever its caller asks for."""
    return environment("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")


def offline_where_unreachable() -> None:
    """Tell huggingface_hub at once that there is no network, where there is none; its cache is used all the same.

    By itself it tries every file six times, which takes most of a minute before its error is seen.
    """
    import requests

    if os.environ.get("HF_HUB_OFFLINE"):
        return
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        requests.head(endpoint, timeout=HUB_SECONDS, allow_redirects=False)
    except requests.RequestException:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
        constants: Any = sys.modules.get("huggingface_hub.constants")
        if constants is not None:
            constants.HF_HUB_OFFLINE = True
