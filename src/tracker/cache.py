"""The cache: what can be made again, kept between runs. ``TRACKER_CACHE`` moves it."""

from __future__ import annotations

import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tracker.errors import TrackerError

if TYPE_CHECKING:
    import torch


def cache_folder() -> Path:
    """``$TRACKER_CACHE``, else ``$XDG_CACHE_HOME/tracker``, else ``~/.cache/tracker``; made where it is missing."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(os.environ.get("TRACKER_CACHE") or Path(base) / "tracker")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackerError(f"the cache {folder} cannot be made ({error.strerror}); set TRACKER_CACHE") from error
    return folder


def keep_libraries_tidy() -> None:
    """Let libraries write to the cache what they would write elsewhere below the home folder, as far as they ask.

    Whatever the user has set stays.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else ~/.config/mlflow
    try:
        folder = cache_folder()
    except TrackerError:  # told by whoever needs it
        return
    folders = {"MPLCONFIGDIR": "matplotlib", "TORCHINDUCTOR_CACHE_DIR": "torchinductor", "NUMBA_CACHE_DIR": "numba"}
    for name, inner in folders.items():
        os.environ.setdefault(name, str(folder / inner))


def cached_tensors(key: str, make: Callable[[], Mapping[str, torch.Tensor]]) -> Mapping[str, torch.Tensor]:
    """Tensors by key, made once even when several processes ask at the same time.

    Args:
        key: a file name's stem.
        make: called when there is nothing under the key, or what is there cannot be read.
    """
    from filelock import FileLock
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    path = cache_folder() / f"{key}.safetensors"
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            try:
                return load_file(path)
            except (SafetensorError, OSError):
                path.unlink()
        tensors = make()
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return tensors


def extracted(archive: Path) -> Path:
    """The folder with an archive's content, extracted once into the cache.

    The folder is named after the archive's name, size and time of change, so a changed archive is extracted anew.

    Raises:
        TrackerError: the archive is damaged or holds paths that climb out of the folder.
    """
    import tempfile

    from filelock import FileLock

    stat = archive.stat()
    folder = cache_folder() / f"{archive.name}-{stat.st_size}-{stat.st_mtime_ns}"
    with FileLock(folder.with_suffix(".lock")):
        if folder.is_dir():
            return folder
        partial = Path(tempfile.mkdtemp(prefix=folder.name, suffix=".partial", dir=folder.parent))
        try:
            with tarfile.open(archive) as tar:
                _unpack(tar, partial)
                while tar.fileobj is not None and tar.fileobj.read(1 << 20):
                    pass  # to the end, where the compressed stream has its checksum
            partial.replace(folder)
        except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
            raise TrackerError(f"{archive} cannot be extracted ({error}); get it again") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _unpack(tar: tarfile.TarFile, folder: Path) -> None:
    """Extract an archive, and nothing outside a folder.

    Raises:
        tarfile.TarError: a member would be outside, or is no plain file or folder.
    """
    if hasattr(tarfile, "data_filter"):
        tar.extractall(folder, filter="data")
        return
    # Python before 3.11.4, which Debian 12 has, only knows how to trust an archive. Links are refused, so no path leads
    # through one, and files are written as new ones, so that neither their mode nor their owner is the archive's.
    whole = folder.resolve()
    for member in tar:
        target = (whole / member.name).resolve()
        if not target.is_relative_to(whole):
            raise tarfile.ExtractError(f"{member.name!r} would be outside the folder")
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        content = tar.extractfile(member) if member.isfile() else None
        if content is None:
            raise tarfile.ExtractError(f"{member.name!r} is neither a file nor a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with content, target.open("wb") as file:
            shutil.copyfileobj(content, file)
