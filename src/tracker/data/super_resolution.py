"""Pairs of a low-resolution image and the original, for super-resolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

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
from tracker.data.folders import IMAGE_SUFFIXES
from tracker.errors import TrackerError


class SuperResolution(Data):
    """Original images of a folder, reported on whole; calibration and search use other photographs.

    The folder below the root is `folder` (or ``folder.tar.xz``, extracted once into the cache), or the root itself. A
    file ``NAME_GT.ext`` is an original, with its bicubically down- and up-scaled version in ``NAME_GT_scale_N.ext``.
    Of any other file the low-resolution version is made here, by Pillow's bicubic filter.

    Calibration and search images are the photographs that scikit-learn and scikit-image bring along (see
    `photographs`), or the images of `calibration_folder` (even ones to calibrate, odd ones to search).
    """

    name: str = "super_resolution"
    root: Path | None = None
    folder: str = "set5"
    scale: Literal[2, 3, 4] = 2
    upscaled: bool = True
    calibration_folder: Path | None = None

    def _folder(self) -> Path:
        root = data_root(self.root, f"{self.folder}/ with the images, or {self.folder}.tar.xz")
        if (root / self.folder).is_dir():
            return root / self.folder
        if (archive := root / f"{self.folder}.tar.xz").is_file():
            return archived(archive, self.folder)
        if self.folder in (".", ""):
            return root
        raise TrackerError(f"data.root={root} holds neither {self.folder}/ nor {self.folder}.tar.xz; set data.folder")

    def _originals(self) -> list[Path]:
        folder = self._folder()
        images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        originals = [path for path in images if "_GT_scale_" not in path.stem]
        if not originals:
            raise TrackerError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        return originals

    def _prepared(self, path: Path) -> Path | None:
        """The low-resolution version on disk, where there is one."""
        candidate = path.with_name(f"{path.stem}_scale_{self.scale}{path.suffix}")
        if not path.stem.endswith("_GT") or not self.upscaled:
            return None
        if not candidate.is_file():
            raise TrackerError(f"{candidate} is missing: the input that belongs to {path.name} at scale {self.scale}")
        return candidate

    def _pair(self, path: Path) -> tuple[Any, Any]:
        original = open_image(path).convert("RGB")
        prepared = self._prepared(path)
        if prepared is None:
            return degraded(original, self.scale, self.upscaled)
        low = open_image(prepared).convert("RGB")
        if low.size != original.size:
            raise TrackerError(f"{prepared} is {low.size}, but its original {path.name} is {original.size}")
        return low, original

    def _others(self, split: Split) -> list[Any]:
        """Photographs apart from the reported ones."""
        if self.calibration_folder is not None:
            folder = data_root(self.calibration_folder, "photographs to calibrate and search on")
            paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
            chosen = paths[0 if split == "calibration" else 1 :: 2]
            if not chosen:
                raise TrackerError(f"data.calibration_folder={folder} needs at least two images")
            return [open_image(path).convert("RGB") for path in chosen]
        return photographs(split)

    def samples(self, split: Split) -> Samples:
        """(low-resolution PIL image, original PIL image); the first has the original's size where `upscaled`."""
        if split in ("report", "all"):
            return Decoded(self._originals(), self._pair)
        return Decoded(self._others(split), lambda image: degraded(image, self.scale, self.upscaled))

    def digest(self, split: Split) -> str:
        """Over names and contents of originals and inputs, or over the photographs."""
        if split in ("report", "all"):
            originals = self._originals()
            inputs = [found for path in originals if (found := self._prepared(path))]
            return files_digest([*originals, *inputs], self._folder())
        return arrays_digest(*self._others(split))


def photographs(split: Split) -> list[Any]:
    """Colour photographs that installed packages bring along, as PIL images.

    To search on: the four that scikit-image has without loss (astronaut, chelsea, coffee, motorcycle), halved in size.
    They are then as sharp as the images that super-resolution is reported on: a codec costs most where edges are sharp.
    To calibrate and train on: the left halves of scikit-learn's two (china, flower).
    """
    from PIL import Image
    from skimage import data
    from sklearn.datasets import load_sample_images

    if split == "calibration":
        return [Image.fromarray(array[:, : array.shape[1] // 2]) for array in load_sample_images().images]
    chosen = [data.astronaut(), data.chelsea(), data.coffee(), data.stereo_motorcycle()[0]]
    return [halved(Image.fromarray(array)) for array in chosen]


def halved(image: Any) -> Any:
    """An image of half the size in either direction."""
    from PIL import Image

    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


def degraded(original: Any, scale: int, upscaled: bool) -> tuple[Any, Any]:
    """The bicubic low-resolution version of an image, and the image cut to a multiple of the scale."""
    from PIL import Image

    width, height = (size - size % scale for size in original.size)
    original = original.crop((0, 0, width, height))
    low = original.resize((width // scale, height // scale), Image.Resampling.BICUBIC)
    return (low.resize((width, height), Image.Resampling.BICUBIC) if upscaled else low), original
