"""manifest.json: which coder made the files of a bitstream, and one SHA-256 over all of them and itself.

Where a transform changed the architecture, the manifest also says how, as data: see `tracker.structure`. It counts as
a part of the bitstream, so it is short: about 150 bytes, and some 30 for each changed layer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracker.errors import TrackerError
from tracker.structure.base import Edit

FORMAT = "tracker-1"
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 1 << 20
KEYS = {"coder", "codec", "files", "format", "sha256"}
STRUCTURE, FOLLOWS = "structure", "follows"  # the keys that may be missing


@dataclass(frozen=True)
class Follows:
    """What an update of a model applies to; see `tracker.update`.

    Attributes:
        state: the first digits of the digest of a receiver's state.
        adds: whether what is decoded is added to that.
    """

    state: str
    adds: bool


@dataclass(frozen=True)
class Manifest:
    """A manifest whose digest has been verified.

    Attributes:
        coder: dotted path of the class that decodes the files.
        codec: names of the stages that made the bitstream.
        files: names of the files beside the manifest.
        sha256: the bitstream's digest (hex).
        structure: changes of the architecture, in order.
        follows: what an update applies to; None of a whole model.
    """

    coder: str
    codec: list[str]
    files: list[str]
    sha256: str
    structure: list[Edit] = field(default_factory=list)
    follows: Follows | None = None


def write_manifest(
    folder: Path, coder: str, codec: list[str], structure: Sequence[Edit] = (), follows: Follows | None = None
) -> Manifest:
    """Write the manifest for the files that are in a folder."""
    files = sorted(path.name for path in folder.iterdir())
    body: dict[str, Any] = {"codec": codec, "coder": coder, "files": files, "format": FORMAT}
    if structure:
        body[STRUCTURE] = [[edit.kind, edit.layers] for edit in structure]
    if follows:
        body[FOLLOWS] = [follows.state, follows.adds]
    digest = _digest(folder, body)
    (folder / MANIFEST).write_bytes(_canonical({**body, "sha256": digest}))
    return Manifest(coder, codec, files, digest, list(structure), follows)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bitstream, after its digest was compared with the files.

    Raises:
        TrackerError: there is no manifest, it is damaged, it names files outside the folder, or a byte of it or of the
            files is not as it was written.
    """
    path = folder / MANIFEST
    try:
        if path.exists() and not _plain_file(path):
            raise TrackerError(f"{path} is not a plain file: refused")
        if path.stat().st_size > LARGEST_MANIFEST:
            raise TrackerError(f"{path} is too large for a manifest")
        raw = path.read_bytes()
        content = json.loads(raw)
    except OSError as error:
        raise TrackerError(f"{path} cannot be read ({error.strerror}); give the folder of a bitstream") from error
    except (ValueError, RecursionError) as error:
        raise TrackerError(f"{path} is damaged: it is not JSON; get the bitstream again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TrackerError(f"{path} is damaged, or of a format other than {FORMAT}; get the bitstream again")
    if not _well_formed(content) or raw != _canonical(content):
        raise TrackerError(f"{path} is damaged; get the bitstream again")
    if len(set(content["files"])) != len(content["files"]):
        raise TrackerError(f"{path} names a file twice; get the bitstream again")
    for name in content["files"]:
        if Path(name).name != name or name in ("", ".", "..", MANIFEST) or "\\" in name:
            raise TrackerError(f"{path} names {name[:80]!r}, which is not a plain file name: refused")
        if not _plain_file(folder / name):
            raise TrackerError(f"{folder / name[:80]} is missing, or not a plain file; get the bitstream again")
    if strange := sorted({path.name for path in folder.iterdir()} - {*content["files"], MANIFEST}):
        raise TrackerError(f"{folder} holds {strange[0]!r}, which is no part of the bitstream: take it away")
    digest = content.pop("sha256")
    if digest != _digest(folder, content):
        raise TrackerError(f"{folder}: the bitstream is damaged: its SHA-256 is not {digest}; get it again")
    structure = [Edit(kind, layers) for kind, layers in content.get(STRUCTURE, [])]
    follows = Follows(*content[FOLLOWS]) if FOLLOWS in content else None
    return Manifest(content["coder"], content["codec"], content["files"], digest, structure, follows)


def bitstream_bytes(folder: Path) -> int:
    """The size of a bitstream: all files that the decoder reads, the manifest included."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _plain_file(path: Path) -> bool:
    """Neither a link nor a device nor a pipe, which would hang whoever reads it."""
    try:
        return path.is_file() and not path.is_symlink()
    except OSError:  # such as a name that is too long
        return False


def _well_formed(content: dict[str, Any]) -> bool:
    lists = all(
        isinstance(content.get(key), list) and all(isinstance(item, str) for item in content[key])
        for key in ("codec", "files")
    )
    texts = all(isinstance(content.get(key), str) for key in ("coder", "sha256"))
    structure = content.get(STRUCTURE, [])
    edits = isinstance(structure, list) and all(
        isinstance(edit, list) and len(edit) == 2 and isinstance(edit[0], str) and isinstance(edit[1], dict)
        for edit in structure
    )
    follows = content.get(FOLLOWS, ["", False])
    update = isinstance(follows, list) and list(map(type, follows)) == [str, bool]
    return lists and texts and edits and update and set(content) - {STRUCTURE, FOLLOWS} == KEYS


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _digest(folder: Path, body: dict[str, Any]) -> str:
    """SHA-256 over the manifest without its digest, then each file's size and content."""
    digest = hashlib.sha256(_canonical(body))
    for name in body["files"]:
        path = folder / name
        digest.update(path.stat().st_size.to_bytes(8, "big"))
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
