"""Images in one folder per class: CIFAR-10 as JPEG or in torchvision's format, and any ImageFolder."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from tracker.data.base import (
    Data,
    Decoded,
    Samples,
    Split,
    archived,
    arrays_digest,
    data_root,
    files_digest,
    open_image,
)
from tracker.errors import TrackerError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".webp", ".tif", ".tiff"}
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Labelled(NamedTuple):
    """An image's file and its class index."""

    path: Path
    label: int


def class_names(folder: Path) -> list[str]:
    """The names of a folder's folders, in alphabetical order."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def class_folder(folder: Path) -> list[list[Labelled]]:
    """The images anywhere below a folder's folders, in the order of their names; class index = alphabetical order.

    Raises:
        TrackerError: the folder has no classes, or a class has no images.
    """
    names = class_names(folder)
    if not names:
        raise TrackerError(f"{folder} has no folder per class; expected {folder}/CLASS/IMAGE.jpg")
    classes = []
    for label, name in enumerate(names):
        images = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise TrackerError(f"{folder / name} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        classes.append([Labelled(path, label) for path in images])
    return classes


def evaluation_part(classes: Sequence[Sequence[Any]], split: Split) -> list[Any]:
    """Of each class's items the first half is the search split, the rest the report split; ``all`` is both."""
    chosen: list[Any] = []
    for items in classes:
        half = len(items) // 2
        chosen += {"search": items[:half], "report": items[half:], "all": items}[split]
    return chosen


def decode_labelled(item: Labelled) -> tuple[Any, int]:
    """The image and its class."""
    return open_image(item.path), item.label


class ImageFolder(Data):
    """Any ImageFolder: ``root/TRAIN/CLASS/*`` for calibration and ``root/TEST/CLASS/*`` to evaluate.

    Where the root holds the classes themselves, each class is cut by the order of names: the first fifth for
    calibration, the rest half and half for search and report.
    """

    name: str = "image_folder"
    root: Path | None = None
    train: str = Field(default="train", description="the folder below the root for calibration")
    test: str | None = Field(default=None, description="the folder to evaluate on; by default val or test")
    calibration_per_class: int = Field(default=500, ge=1)

    def _test(self, root: Path) -> Path | None:
        """The folder to evaluate on, where it is apart."""
        names = [self.test] if self.test else ["val", "test"]
        return next((root / name for name in names if (root / name).is_dir()), None)

    def class_names(self) -> list[str]:
        """Those of the folders."""
        root = data_root(self.root, "images in a folder per class")
        return class_names(self._test(root) or root)

    def _items(self, split: Split) -> tuple[list[Labelled], Path]:
        root = data_root(self.root, "images as TRAIN/CLASS/IMAGE and TEST/CLASS/IMAGE, or as CLASS/IMAGE")
        test = self._test(root)
        if test is None and self.test:
            raise TrackerError(f"data.test={self.test}: there is no folder {root / self.test}")
        if test == root / self.train:
            raise TrackerError(f"data.test={test.name} is data.train as well: figures need images of their own")
        if test is None and (root / self.train).is_dir():
            raise TrackerError(
                f"data.root={root} has {self.train}/, but no val/ or test/: name the other one by data.test"
            )
        if test is None:
            classes = class_folder(root)
            if split == "calibration":
                return [item for items in classes for item in items[: len(items) // 5]], root
            return evaluation_part([items[len(items) // 5 :] for items in classes], split), root
        if split == "calibration":
            if not (root / self.train).is_dir():
                raise TrackerError(f"data.train={self.train}: there is no folder {root / self.train} to calibrate on")
            classes = class_folder(root / self.train)
            return [item for items in classes for item in items[: self.calibration_per_class]], root
        return evaluation_part(class_folder(test), split), root

    def training(self) -> Samples:
        """All images below ``root/TRAIN``, however many of them are for calibration."""
        whole = self.model_copy(update={"calibration_per_class": sys.maxsize})
        return whole.samples("calibration")

    def samples(self, split: Split) -> Samples:
        """(PIL image, class)."""
        return Decoded(self._items(split)[0], decode_labelled)

    def digest(self, split: Split) -> str:
        """Over names and contents."""
        items, root = self._items(split)
        return files_digest((item.path for item in items), root)


class Cifar10(Data):
    """CIFAR-10 below a root, in any of three layouts, looked for in this order.

    - ``cifar10/{train,test}/CLASS/NAME.jpg`` (or the same without ``cifar10/``);
    - the same packed as ``cifar10_test.tar.xz`` and ``cifar10_train5k.tar.xz``, extracted once into the cache;
    - torchvision's download, ``cifar-10-batches-py``.

    Calibration is the first 500 training images of each class; of each class's test images, in the order of their
    names, the first half is the search split and the other half the report split.
    """

    name: str = "cifar10"
    root: Path | None = None
    calibration_per_class: int = Field(default=500, ge=1)

    def _source(self, part: str) -> tuple[Path, bool]:
        """The folder of a part (train, test), and whether it is in torchvision's format."""
        root = data_root(self.root, "CIFAR-10 (cifar10/test/CLASS/*.jpg, its archives, or cifar-10-batches-py)")
        for folder in (root / "cifar10" / part, root / part):
            if folder.is_dir():
                return folder, False
        for archive in sorted(root.glob(f"cifar10_{part}*.tar.xz")):
            return archived(archive, f"cifar10/{part}"), False
        if (root / "cifar-10-batches-py").is_dir():
            return root / "cifar-10-batches-py", True
        raise TrackerError(
            f"data.root={root} holds no CIFAR-10 {part} images: expected cifar10/{part}/CLASS/*.jpg, "
            f"cifar10_{part}.tar.xz, or torchvision's cifar-10-batches-py"
        )

    def class_names(self) -> Sequence[str]:
        """Those of the folders, or as they are published."""
        folder, batches = self._source("test")
        return CIFAR10 if batches else class_names(folder)

    def _classes(self, split: Split) -> tuple[list[list[Any]], Path, Any]:
        part = "train" if split == "calibration" else "test"
        folder, batches = self._source(part)
        if not batches:
            return class_folder(folder), folder, None
        images, labels = read_batches(folder, part)
        return (
            [[int(i) for i in (labels == label).nonzero()[0]] for label in range(10)],
            folder,
            (images, labels),
        )

    def _items(self, split: Split) -> tuple[list[Any], Path, Any]:
        classes, folder, arrays = self._classes(split)
        if split == "calibration":
            return [item for items in classes for item in items[: self.calibration_per_class]], folder, arrays
        return evaluation_part(classes, split), folder, arrays

    def training(self) -> Samples:
        """All training images that are there, however many of them are for calibration."""
        whole = self.model_copy(update={"calibration_per_class": sys.maxsize})
        return whole.samples("calibration")

    def samples(self, split: Split) -> Samples:
        """(PIL image of 32x32, class)."""
        items, _, arrays = self._items(split)
        if arrays is None:
            return Decoded(items, decode_labelled)
        from PIL import Image

        images, labels = arrays
        return Decoded(items, lambda i: (Image.fromarray(images[i]), int(labels[i])))

    def digest(self, split: Split) -> str:
        """Over names and contents, or over the arrays of torchvision's format."""
        items, folder, arrays = self._items(split)
        if arrays is None:
            return files_digest((item.path for item in items), folder)
        return arrays_digest(arrays[0][items], arrays[1][items])


class ArraysOnly(pickle.Unpickler):
    """Unpickles plain containers and NumPy arrays, and nothing that could run code.

    CIFAR-10 is published as pickled dicts (https://www.cs.toronto.edu/~kriz/cifar.html).
    """

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        """NumPy's three names that an array needs.

        Raises:
            pickle.UnpicklingError: anything else is asked for.
        """
        if module.split(".")[0] == "numpy" and name in self.ALLOWED:
            return super().find_class(module.replace("numpy._core", "numpy.core"), name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a CIFAR-10 batch")


def read_batches(folder: Path, part: str) -> tuple[Any, Any]:
    """Images (N, 32, 32, 3) uint8 and classes (N,) from ``cifar-10-batches-py``.

    Raises:
        TrackerError: a batch is missing, damaged or not of the format.
    """
    import numpy as np

    names = ["test_batch"] if part == "test" else [f"data_batch_{k}" for k in range(1, 6)]
    images, labels = [], []
    for name in names:
        path = folder / name
        try:
            batch = ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
            images.append(np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[b"labels"], dtype=np.int64))
            if len(images[-1]) != len(labels[-1]):
                raise ValueError(f"{len(images[-1])} images and {len(labels[-1])} labels")
            if labels[-1].size and not 0 <= labels[-1].min() <= labels[-1].max() <= 9:
                raise ValueError("a label is not in 0..9")
        except FileNotFoundError as error:
            raise TrackerError(f"{path} is missing; get CIFAR-10 (python version) again") from error
        except Exception as error:  # whatever a damaged pickle makes the unpickler raise
            raise TrackerError(f"{path} is not a batch of CIFAR-10 ({error}); get it again") from error
    return np.concatenate(images).transpose(0, 2, 3, 1), np.concatenate(labels)
