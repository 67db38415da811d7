"""architecture.json: from what the receiver builds the public architecture.

It is an anchor's configuration node without weights. It travels beside the bitstream, in an MLflow model, and is data:
only what ``tracker.anchors`` and packages that are trusted define is imported for it, every file that it names is in
the model's folder, and all else is refused before. What an anchor needs beyond that, such as a store, no receiver has:
`Anchor.check_received` says so.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tracker.component import build
from tracker.errors import TrackerError
from tracker.trust import ANCHORS, SHOWN, ZOOS, named, trusted_object

if TYPE_CHECKING:
    from tracker.anchors.base import Anchor

FILE = "architecture.json"
FOLDER = "architecture"  # files that an architecture needs
LARGEST = 1 << 20
HERE = "./"  # how a node names a file of the folder


def write_architecture(anchor: Anchor, path: Path) -> None:
    """Write an anchor's architecture into a model's folder.

    Args:
        anchor: what was compressed.
        path: of the model.

    Raises:
        TrackerError: it cannot travel, or a receiver would refuse it.
    """
    folder = path / FOLDER
    folder.mkdir()
    node = anchor.architecture(folder)
    if not any(folder.iterdir()):
        folder.rmdir()
    (path / FILE).write_text(json.dumps(node, indent=1, sort_keys=True, default=str) + "\n")
    if node["_target_"].startswith(f"{ANCHORS}."):  # a receiver may have another's anchor elsewhere
        _received(_read(path / FILE), path, ANCHORS)


def read_architecture(path: Path, trusted: Collection[str] = ()) -> Anchor:
    """The anchor of a model's folder; it can `predict`, `rebuild` builds it, and it has no weights.

    Args:
        path: of the model.
        trusted: packages (or modules) of which anchors, factories and layers may be imported, besides tracker's own
            and those that `named` adds.

    Raises:
        TrackerError: there is no such file, it is damaged, it names what is not trusted or outside the folder, or a
            receiver cannot build it.
    """
    packages = named(trusted)
    anchor = _received(_read(path / FILE), path, ANCHORS, *packages)
    for word, target in anchor.imports().items():
        trusted_object(target, (*ZOOS, *packages), word)
    return anchor


def rebuild(anchor: Anchor) -> Any:
    """The architecture of an anchor that was received, newly built; nothing is downloaded.

    Raises:
        TrackerError: it cannot be built, or only with something of the network.
    """
    from tracker.anchors.zoo import one_line
    from tracker.flavor.offline import offline

    try:
        with offline():
            return anchor.build()
    except TrackerError:
        raise
    except (Exception, SystemExit) as error:  # such as a layer that is larger than the memory
        reason = f"{type(error).__name__}: {one_line(error, 160)}"
        raise TrackerError(f"the architecture of {anchor.name[:SHOWN]} cannot be built here ({reason})") from error


def check_plain(path: Path, folder: bool = False) -> None:
    """Refuse a link, a pipe or a device: it leads out of a model's folder, or hangs whoever reads it.

    Args:
        path: of something that need not be there.
        folder: whether it must be a folder, with plain files and such folders only; else a plain file.

    Raises:
        TrackerError: it is something else.
    """
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):
        return  # whoever reads it tells
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(mode):
        raise TrackerError(f"{path} is not a plain {'folder' if folder else 'file'}: refused")
    for entry in os.scandir(path) if folder else ():
        check_plain(Path(entry.path), entry.is_dir(follow_symlinks=False))


def _received(node: dict[str, Any], path: Path, *packages: str) -> Anchor:
    """The anchor of a node, its files in place, if it is one that a receiver can build."""
    from tracker.anchors.base import Anchor

    target = node["_target_"]
    found = trusted_object(target, packages, "anchor")
    if not isinstance(found, type) or not issubclass(found, Anchor):
        raise TrackerError(f"{path / FILE} names {target[:SHOWN]}, which is not an anchor: refused")
    check_plain(path / FOLDER, folder=True)
    try:
        placed = {key: _placed(item, path, _is_path(found, key)) for key, item in node.items()}
    except RecursionError as error:
        raise TrackerError(f"{path / FILE} is damaged: it is nested too deep; get the model again") from error
    anchor = build(placed, "architecture", Anchor)  # type: ignore[type-abstract]
    anchor.check_received(path / FOLDER)
    return anchor


def _is_path(anchor: type[Anchor], key: str) -> bool:
    """Whether a field of an anchor is the name of a file."""
    field = anchor.model_fields.get(key)
    return field is not None and Path in (field.annotation, *get_args(field.annotation))


def _read(file: Path) -> dict[str, Any]:
    check_plain(file)
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


def _placed(value: Any, path: Path, is_path: bool = False) -> Any:
    """A node's value with the files that it names at their place in the model's folder.

    Args:
        value: of a key.
        path: of the model.
        is_path: the key is that of a file, so that any text names one; else those that begin with ``./``.

    Raises:
        TrackerError: a name leads out of it.
    """
    if isinstance(value, str) and (is_path or value.startswith(HERE)):
        name = value.removeprefix(HERE)
        if Path(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
            raise TrackerError(f"{path / FILE} names the file {value[:SHOWN]!r}, which is not in its folder: refused")
        return str(path / FOLDER / name)
    if isinstance(value, Mapping):
        return {key: _placed(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_placed(item, path) for item in value]
    return value
