"""architecture.json: from what the receiver builds the public architecture, and what it may import for it.

It is an anchor's configuration node without weights. It travels beside the bitstream, in an MLflow model, and is data:
only what ``tracker.anchors`` and packages that are trusted define is imported for it, and all else is refused before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.component import build, locate
from tracker.errors import TrackerError

if TYPE_CHECKING:
    from tracker.anchors.base import Anchor

FILE = "architecture.json"
FOLDER = "architecture"  # files that an architecture needs
LARGEST = 1 << 20
HERE = "./"  # how a node names a file of the folder
ENVIRONMENT = "TRACKER_TRUSTED"
ANCHORS = "tracker.anchors"
# What an anchor's factory may be of without being named.
TRUSTED = ("torchvision.models", "keras.applications", "keras.src.applications")


def write_architecture(anchor: Anchor, path: Path) -> None:
    """Write an anchor's architecture into a model's folder.

    Args:
        anchor: what was compressed.
        path: of the model.

    Raises:
        TrackerError: it cannot travel.
    """
    folder = path / FOLDER
    folder.mkdir()
    node = anchor.architecture(folder)
    if not any(folder.iterdir()):
        folder.rmdir()
    (path / FILE).write_text(json.dumps(node, indent=1, sort_keys=True, default=str) + "\n")


def read_architecture(path: Path, trusted: Collection[str] = ()) -> Anchor:
    """The anchor of a model's folder; it can `build` and `predict`, and has no weights.

    Args:
        path: of the model.
        trusted: packages (or modules) of which anchors, factories and layers may be imported, besides tracker's own
            and those that `allowed` adds.

    Raises:
        TrackerError: there is no such file, it is damaged, or it names what is not trusted or outside the folder.
    """
    from tracker.anchors.base import Anchor

    file, packages = path / FILE, allowed(trusted)
    node = _read(file)
    found = trusted_object(node["_target_"], (ANCHORS, *packages), "anchor")
    if not isinstance(found, type) or not issubclass(found, Anchor):
        raise TrackerError(f"{file} names {node['_target_'][:80]}, which is not an anchor: refused")
    placed = {key: _placed(value, path) for key, value in node.items()}
    anchor = build(placed, "architecture", Anchor)  # type: ignore[type-abstract]
    for word, target in anchor.imports().items():
        trusted_object(target, packages, word)
    return anchor


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > LARGEST:
            raise TrackerError(f"{file} is too large for an architecture: refused")
        node = json.loads(file.read_text())
    except OSError as error:
        raise TrackerError(f"{file} cannot be read ({error.strerror}); give the folder of a model") from error
    except (ValueError, RecursionError) as error:
        raise TrackerError(f"{file} is damaged: it is not JSON; get the model again") from error
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise TrackerError(f"{file} is damaged: it names no _target_; get the model again")
    return node


def allowed(trusted: Collection[str] = ()) -> tuple[str, ...]:
    """The packages that are trusted: `TRUSTED`, those given, and those of the variable ``TRACKER_TRUSTED``."""
    return (*TRUSTED, *named(trusted))


def named(trusted: Collection[str] = ()) -> tuple[str, ...]:
    """The packages that the user has named as trusted."""
    return (*trusted, *os.environ.get(ENVIRONMENT, "").replace(",", " ").split())


def trusted_object(target: str, packages: Collection[str], word: str) -> Any:
    """What a dotted path names, if it is of a trusted package and was defined in one.

    A module's attributes are more than what it defines: ``package.os.system`` is a path as well.

    Args:
        target: the path; nothing is imported where it begins with another package.
        packages: packages or modules.
        word: what it is, for error messages.

    Raises:
        TrackerError: it is of none of them.
    """
    refused = TrackerError(
        f"the model asks for the {word} {target[:80]}, which is of no package that is trusted: if you trust it, set "
        f"{ENVIRONMENT}={target.split('.')[0][:40]}"
    )
    if not _within(target, packages):
        raise refused
    found = locate(target, word)
    if not _within(f"{getattr(found, '__module__', '')}.", packages):
        raise refused
    return found


def _within(path: str, packages: Collection[str]) -> bool:
    return any(path.startswith(f"{package}.") for package in packages)


def _placed(value: Any, path: Path) -> Any:
    """A node's value with the files that it names at their place in the model's folder.

    Raises:
        TrackerError: a name leads out of it.
    """
    if isinstance(value, str) and value.startswith(HERE):
        name = value.removeprefix(HERE)
        file = path / FOLDER / name
        if Path(name).name != name or name in ("", ".", "..") or "\\" in name or file.is_symlink():
            raise TrackerError(f"{path / FILE} names the file {value[:80]!r}, which is not in its folder: refused")
        return str(file)
    if isinstance(value, Mapping):
        return {key: _placed(item, path) for key, item in value.items()}
    return value
