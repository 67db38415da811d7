"""What a data set is: splits of (input, target) samples, raw, with a digest of their content."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from tracker.cache import extracted
from tracker.component import Component
from tracker.errors import TrackerError

Split = Literal["calibration", "search", "report", "all"]

# Above this many bytes the digest covers names and sizes only: hashing ImageNet would take longer than evaluating.
HASHED_BYTES = 512 * 2**20


class Samples(Protocol):
    """A sequence of (input, target), decoded when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


class Data(Component):
    """A data set.

    Splits: ``calibration`` (inputs used without labels), ``search`` (decisions), ``report`` (figures), and ``all``
    (search and report together). The three do not overlap.
    """

    name: str

    @abstractmethod
    def samples(self, split: Split) -> Samples:
        """The samples of a split, in a fixed order.

        Raises:
            TrackerError: the data cannot be found or is not complete.
        """

    @abstractmethod
    def digest(self, split: Split) -> str:
        """SHA-256 (hex) that identifies the samples of a split."""

    def training(self) -> Samples:
        """Samples to train on, in a fixed order; by default those of the calibration split.

        A data set that has more of them than it calibrates with overrides this. They overlap neither ``search`` nor
        ``report``.
        """
        return self.samples("calibration")

    def class_names(self) -> Sequence[str]:
        """Names of the classes by their index, for plots; empty where there are none."""
        return ()

    def identity(self) -> dict[str, Any]:
        """What makes samples of the files, besides the files: the class and its fields that are no paths."""
        fields = {key: value for key, value in self if key != "name" and not isinstance(value, Path)}
        return {"data": f"{type(self).__module__}.{type(self).__qualname__}", **fields}


class Decoded:
    """Samples that a function makes from items (paths, indices) when they are asked for."""

    def __init__(self, items: Sequence[Any], decode: Any) -> None:
        self.items = items
        self.decode = decode

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.decode(self.items[index])


def shuffled(samples: Samples) -> Samples:
    """The same samples in a mixed order, which is always the same."""
    import numpy as np

    return Decoded(np.random.default_rng(0).permutation(len(samples)).tolist(), samples.__getitem__)


def open_image(path: Path) -> Any:
    """A PIL image, decoded.

    Raises:
        TrackerError: the file is missing or no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise TrackerError(f"{path} is not an image that can be read ({error}); replace or remove it") from error


def data_root(root: Path | None, what: str) -> Path:
    """The folder with the data.

    Args:
        root: the value of ``data.root``.
        what: what it should hold, for the error message.

    Raises:
        TrackerError: it is not set, or does not exist.
    """
    if root is None:
        raise TrackerError(
            f"data.root is not set: give the folder that holds {what}, as data.root=FOLDER or in TRACKER_DATA"
        )
    root = root.expanduser()
    if not root.is_dir():
        raise TrackerError(f"data.root={root} is not a folder: give the folder that holds {what}")
    return root


def archived(archive: Path, inner: str) -> Path:
    """A folder in an archive, which is extracted once into the cache.

    Raises:
        TrackerError: the archive is damaged, or does not hold the folder.
    """
    folder = extracted(archive) / inner
    if not folder.is_dir():
        raise TrackerError(f"{archive} does not hold the folder {inner}/; get it again")
    return folder


def files_digest(paths: Iterable[Path], base: Path) -> str:
    """SHA-256 (hex) over the names (relative to ``base``) and contents of files.

    Beyond 512 MiB in all it covers names and sizes only.
    """
    paths = sorted(paths)
    sizes = [path.stat().st_size for path in paths]
    hashed = sum(sizes) <= HASHED_BYTES
    digest = hashlib.sha256()
    for path, size in zip(paths, sizes, strict=True):
        digest.update(f"{path.relative_to(base)}\0{size}\0".encode())
        if hashed:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def arrays_digest(*arrays: Any) -> str:
    """SHA-256 (hex) over the dtype, shape and bytes of arrays or tensors."""
    import numpy as np

    digest = hashlib.sha256()
    for array in arrays:
        plain = np.ascontiguousarray(array)
        digest.update(f"{plain.dtype}{plain.shape}".encode())
        digest.update(plain.data)
    return digest.hexdigest()
