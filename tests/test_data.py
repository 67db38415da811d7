"""Data sets: splits, digests, all layouts of CIFAR-10, and files that are hostile or broken."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_diabetes, load_digits, load_sample_images

from tracker.anchors.digits import Digits as DigitsAnchor
from tracker.anchors.images import rgb
from tracker.cache import extracted
from tracker.data.arrays import Arrays, Diabetes
from tracker.data.base import Data, Split, files_digest, open_image
from tracker.data.digits import COUNTS, Digits
from tracker.data.folders import Cifar10, ImageFolder
from tracker.data.super_resolution import SuperResolution
from tracker.data.text import Text
from tracker.errors import TrackerError
from tracker.evaluation import Batches, evaluate
from tracker.frameworks.pytorch import FRAMEWORK as PYTORCH
from tracker.tasks.classification import Classification

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SPLITS: list[Split] = ["calibration", "search", "report"]


def content(sample: Any) -> bytes:
    """What two samples are compared by."""
    if isinstance(sample, tuple):
        return b"|".join(content(part) for part in sample)
    if isinstance(sample, Image.Image):
        return f"{sample.mode}{sample.size}".encode() + sample.tobytes()
    if isinstance(sample, torch.Tensor):
        return sample.numpy().tobytes()
    return repr(sample).encode()


def contents(data: Data, split: Split) -> list[bytes]:
    samples = data.samples(split)
    return [content(samples[i]) for i in range(len(samples))]


def check_splits(data: Data, everything: set[bytes] | None = None) -> None:
    """The splits do not overlap, are what `all` and the whole are made of, and repeat; so do their digests."""
    parts = {split: contents(data, split) for split in SPLITS}
    for split, part in parts.items():
        assert part, split
        assert part == contents(data, split)
        assert len(set(part)) == len(part)
    assert not set(parts["calibration"]) & (set(parts["search"]) | set(parts["report"]))
    assert not set(parts["search"]) & set(parts["report"])
    assert sorted(contents(data, "all")) == sorted(parts["search"] + parts["report"])
    if everything is not None:
        assert set().union(*parts.values()) == everything
    digests = [data.digest(split) for split in (*SPLITS, "all")]
    assert len(set(digests)) == 4
    assert digests == [data.digest(split) for split in (*SPLITS, "all")]
    assert all(len(digest) == 64 and int(digest, 16) for digest in digests)


# --- digits, and the default anchor ---


def test_digits_splits() -> None:
    data = Digits()
    check_splits(data)
    parts = {name: data.arrays(name) for name in COUNTS}
    assert {name: len(images) for name, (images, _) in parts.items()} == COUNTS
    images = torch.cat([images for images, _ in parts.values()])
    labels = torch.cat([labels for _, labels in parts.values()])
    whole = load_digits()
    order = np.lexsort(np.column_stack([labels, images.reshape(-1, 64) * 16]).T)
    expected = np.lexsort(np.column_stack([whole.target, whole.data]).T)
    assert np.array_equal((images.reshape(-1, 64) * 16).numpy()[order], whole.data[expected])
    assert np.array_equal(labels.numpy()[order], whole.target[expected])
    assert float(images.max()) == 1
    assert images.shape[1:] == (1, 8, 8)


def test_the_default_anchor_is_good_and_trains_to_the_same_bits(monkeypatch, tmp_path: Path) -> None:
    anchor, task, data = DigitsAnchor(name="digits"), Classification(), Digits()
    weights = dict(anchor.weights())
    model = anchor.build()
    PYTORCH.fill(model, weights, "weights")
    found = evaluate(anchor, model, task, Batches(data.samples("report"), anchor, task), "cpu", "digits")
    assert found.metrics["top1"] > 0.95
    assert len(found.scores) == 400

    monkeypatch.setenv("TRACKER_CACHE", str(tmp_path))
    torch.manual_seed(1234)  # training must not depend on the caller's seed or threads, nor change them
    expected = torch.get_rng_state()
    again = anchor.weights()
    assert torch.equal(torch.get_rng_state(), expected)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    short = DigitsAnchor(name="digits", epochs=1)
    other = DigitsAnchor(name="digits", epochs=1, seed=1)
    assert not torch.equal(short.weights()["0.weight"], other.weights()["0.weight"])


def test_a_model_that_cannot_take_the_inputs_is_told_in_one_line() -> None:
    anchor, task = DigitsAnchor(name="digits", epochs=1), Classification()
    batches = Batches(Diabetes().samples("report"), anchor, task)
    with pytest.raises(TrackerError, match="do anchor=digits and the data belong together") as refused:
        evaluate(anchor, anchor.build(), task, batches, "cpu", "digits")
    assert "\n" not in str(refused.value)


def test_a_damaged_cache_is_trained_anew(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRACKER_CACHE", str(tmp_path))
    anchor = DigitsAnchor(name="digits", epochs=1, width=4)
    first = anchor.weights()
    [file] = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    assert all(torch.equal(tensor, first[name]) for name, tensor in anchor.weights().items())


# --- CIFAR-10 in its three layouts ---


def cifar_arrays(part: str) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0 if part == "train" else 1)
    count = 60 if part == "train" else 40
    labels = np.arange(count) % 10
    generator.shuffle(labels)
    return generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), labels


def write_folders(root: Path) -> None:
    for part in ("train", "test"):
        images, labels = cifar_arrays(part)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / "cifar10" / part / CLASSES[label] / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


def write_archives(root: Path) -> None:
    write_folders(root)
    for part, name in (("train", "cifar10_train5k.tar.xz"), ("test", "cifar10_test.tar.xz")):
        with tarfile.open(root / name, "w:xz") as archive:
            archive.add(root / "cifar10" / part, f"cifar10/{part}")
    shutil.rmtree(root / "cifar10")


def write_batches(root: Path, change: Callable[[dict], Any] = lambda batch: batch) -> None:
    """As https://www.cs.toronto.edu/~kriz/cifar.html describes: rows of 1024 red, then green, then blue values."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(exist_ok=True)
    images, labels = cifar_arrays("train")
    parts = {f"data_batch_{k}": slice(12 * k - 12, 12 * k) for k in range(1, 6)}
    for name, at in parts.items():
        batch = {b"data": images[at].transpose(0, 3, 1, 2).reshape(-1, 3072), b"labels": labels[at].tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=4))
    images, labels = cifar_arrays("test")
    batch = {b"data": images.transpose(0, 3, 1, 2).reshape(-1, 3072), b"labels": labels.tolist()}
    (folder / "test_batch").write_bytes(pickle.dumps(change(batch), protocol=4))


LAYOUTS = {"folders": write_folders, "archives": write_archives, "batches": write_batches}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cifar10_splits(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path)
    data = Cifar10(root=tmp_path, calibration_per_class=5)
    check_splits(data)
    assert [len(data.samples(split)) for split in SPLITS] == [50, 20, 20]
    for split in SPLITS:
        labels = [data.samples(split)[i][1] for i in range(len(data.samples(split)))]
        assert sorted(labels) == sorted(list(range(10)) * (5 if split == "calibration" else 2))
    # Independently: the first half of each class's test images, in their order, is the search split.
    images, labels = cifar_arrays("test")
    first = [i for k in range(10) for i in np.flatnonzero(labels == k)[:2]]
    samples = data.samples("search")
    for at, index in enumerate(first):
        image, label = samples[at]
        assert np.array_equal(np.array(image.convert("RGB")), images[index])
        assert label == labels[index]


def test_the_layouts_of_cifar10_hold_the_same_samples(tmp_path: Path) -> None:
    found = {}
    for layout, write in LAYOUTS.items():
        (tmp_path / layout).mkdir()
        write(tmp_path / layout)
        data = Cifar10(root=tmp_path / layout, calibration_per_class=3)
        found[layout] = {split: contents(data, split) for split in (*SPLITS, "all")}
    assert found["folders"] == found["archives"] == found["batches"]


def test_cifar10_is_what_torchvision_reads(tmp_path: Path) -> None:
    from torchvision.datasets import CIFAR10

    write_batches(tmp_path)
    theirs = CIFAR10.__new__(CIFAR10)  # its constructor wants the published files' checksums
    with (tmp_path / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        batch = pickle.load(file, encoding="bytes")  # noqa: S301
    theirs.data = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    theirs.targets, theirs.transform, theirs.target_transform = batch[b"labels"], None, None
    expected = sorted(content(theirs[i]) for i in range(len(theirs)))
    assert sorted(contents(Cifar10(root=tmp_path), "all")) == expected


def test_lossy_folders_have_the_same_labels_in_the_same_splits(tmp_path: Path) -> None:
    write_folders(tmp_path)
    for path in sorted(tmp_path.rglob("*.png")):
        Image.open(path).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    (tmp_path / "exact").mkdir()
    write_batches(tmp_path / "exact")
    for split in (*SPLITS, "all"):
        labels = [
            [samples[i][1] for i in range(len(samples))]
            for samples in (Cifar10(root=root).samples(split) for root in (tmp_path, tmp_path / "exact"))
        ]
        assert labels[0] == labels[1]


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("place", ["instead", "inside", "as an array's item"])
def test_a_hostile_batch_is_refused_and_not_run(place: str, tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    hostile = Hostile(mark)
    changes: dict[str, Callable[[dict], Any]] = {
        "instead": lambda batch: hostile,
        "inside": lambda batch: {**batch, b"more": [hostile]},
        "as an array's item": lambda batch: {**batch, b"labels": np.array([hostile], dtype=object)},
    }
    write_batches(tmp_path, changes[place])
    with pytest.raises(TrackerError, match="is not allowed in a CIFAR-10 batch"):
        Cifar10(root=tmp_path).samples("report")
    assert not mark.exists()
    # The mark does appear where a pickle is believed, so the test can fail.
    pickle.load(io.BytesIO((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes()))  # noqa: S301
    assert mark.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: {**batch, b"data": batch[b"data"][:, :3000]}, "not a batch of CIFAR-10"),
        (lambda batch: {b"data": batch[b"data"]}, "not a batch of CIFAR-10"),
        (lambda batch: [1, 2], "not a batch of CIFAR-10"),
        (lambda batch: {**batch, b"labels": batch[b"labels"][:-3]}, "40 images and 37 labels"),
        (lambda batch: {**batch, b"labels": [11] * 40}, "not in 0..9"),
    ],
)
def test_broken_batches(change: Callable[[dict], Any], message: str, tmp_path: Path) -> None:
    write_batches(tmp_path, change)
    with pytest.raises(TrackerError, match=message):
        Cifar10(root=tmp_path).samples("report")


def test_cifar10_that_is_not_there(tmp_path: Path) -> None:
    for root, message in ((None, "not set"), (tmp_path / "none", "is not a folder"), (tmp_path, "holds no CIFAR-10")):
        with pytest.raises(TrackerError, match=message):
            Cifar10(root=root).samples("report")
    write_batches(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    assert len(Cifar10(root=tmp_path).samples("report")) == 20
    with pytest.raises(TrackerError, match="data_batch_3 is missing"):
        Cifar10(root=tmp_path).samples("calibration")
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"\x80\x04nonsense")
    with pytest.raises(TrackerError, match="not a batch"):
        Cifar10(root=tmp_path).samples("report")


@pytest.fixture(params=["as it is", "without filters"])
def filters(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python's tarfile, and that of Python 3.11.0 to 3.11.3, which knows no filters."""
    if request.param == "without filters":
        whole = tarfile.TarFile.extractall
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
        monkeypatch.setattr(tarfile.TarFile, "extractall", lambda tar, path, members=None: whole(tar, path, members))


MEMBERS = {  # by name: the kind of member, and where a link leads
    "above": ("../climbed", tarfile.REGTYPE, ""),
    "in between": ("a/../../climbed", tarfile.REGTYPE, ""),
    "a folder": ("../climbed", tarfile.DIRTYPE, ""),
    "a link": ("link", tarfile.SYMTYPE, "../climbed"),
    "an absolute link": ("link", tarfile.SYMTYPE, "/etc/passwd"),
    "a hard link": ("link", tarfile.LNKTYPE, "../climbed"),
    "a device": ("device", tarfile.CHRTYPE, ""),
    "a pipe": ("pipe", tarfile.FIFOTYPE, ""),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_archives_with_members_that_harm(case: str, filters: None, cache: Path, tmp_path: Path) -> None:
    archive = tmp_path / "harm.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo("harmless"), io.BytesIO())
        entry = tarfile.TarInfo(MEMBERS[case][0])
        entry.type, entry.linkname = MEMBERS[case][1:]
        tar.addfile(entry, io.BytesIO())
    with pytest.raises(TrackerError, match=r"harm\.tar cannot be extracted"):
        extracted(archive)
    assert not list(cache.rglob("climbed")) and not list(cache.glob("harm.tar*[!k]"))  # but for the lock


def test_archives_are_extracted_without_their_modes(filters: None, tmp_path: Path) -> None:
    archive, content = tmp_path / "plain.tar.gz", bytes(range(256)) * 1000
    with tarfile.open(archive, "w:gz") as tar:
        entry = tarfile.TarInfo("./one/two/file")  # without members for the folders
        entry.size, entry.mode, entry.uid = len(content), 0o6777, 12345
        tar.addfile(entry, io.BytesIO(content))
        entry = tarfile.TarInfo("empty")
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(entry)
    made = extracted(archive)
    assert (made / "one" / "two" / "file").read_bytes() == content and (made / "empty").is_dir()
    stat = (made / "one" / "two" / "file").stat()
    assert stat.st_mode & 0o6022 == 0 and stat.st_uid == os.getuid()
    assert extracted(archive) == made


def test_damaged_and_climbing_archives(filters: None, tmp_path: Path) -> None:
    archive = tmp_path / "cifar10_test.tar.xz"
    archive.write_bytes(b"no archive")
    with pytest.raises(TrackerError, match="cannot be extracted"):
        Cifar10(root=tmp_path).samples("report")
    with tarfile.open(archive, "w:xz") as tar:
        entry = tarfile.TarInfo("../../climbed")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(TrackerError, match="cannot be extracted"):
        Cifar10(root=tmp_path).samples("report")
    with tarfile.open(archive, "w:xz") as tar:
        tar.addfile(tarfile.TarInfo("something/else"), io.BytesIO())
    with pytest.raises(TrackerError, match="does not hold the folder cifar10/test/"):
        Cifar10(root=tmp_path).samples("report")


# --- digests ---


def test_the_digest_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    write_folders(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "else" / "b")
    here, there = Cifar10(root=tmp_path / "a"), Cifar10(root=tmp_path / "else" / "b")
    assert here.digest("report") == there.digest("report")
    reported = there._items("report")[0][0].path
    searched = there._items("search")[0][0].path
    raw = bytearray(reported.read_bytes())
    raw[-20] ^= 1
    before = {split: there.digest(split) for split in (*SPLITS, "all")}
    reported.write_bytes(raw)
    changed = {split for split in before if there.digest(split) != before[split]}
    assert changed == {"report", "all"}
    searched.rename(searched.with_name("zzzz.png"))
    assert there.digest("search") != before["search"]


def test_names_and_contents_cannot_be_mistaken_for_each_other(tmp_path: Path) -> None:
    for number, files in enumerate(({"a": b"bc"}, {"ab": b"c"}, {"a": b"", "bc": b""}, {"a": b"", "b": b"c"})):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, raw in files.items():
            (folder / name).write_bytes(raw)
    digests = {files_digest(list((tmp_path / str(n)).iterdir()), tmp_path / str(n)) for n in range(4)}
    assert len(digests) == 4


def test_one_changed_value_changes_the_digest_of_arrays(tmp_path: Path) -> None:
    inputs, targets = torch.randn(20, 3), torch.arange(20)
    save_file({"inputs": inputs, "targets": targets}, tmp_path / "a.safetensors")
    before = Arrays(path=tmp_path / "a.safetensors").digest("all")
    save_file({"inputs": inputs, "targets": targets}, tmp_path / "b.safetensors")
    assert Arrays(path=tmp_path / "b.safetensors").digest("all") == before
    inputs[:] = torch.nextafter(inputs, torch.tensor(9.0))
    save_file({"inputs": inputs, "targets": targets}, tmp_path / "b.safetensors")
    assert Arrays(path=tmp_path / "b.safetensors").digest("all") != before
    assert Arrays(path=tmp_path / "a.safetensors", seed=1).digest("all") != before


# --- any ImageFolder ---


def write_images(folder: Path, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for name in ("b", "a", "C"):
        for number in range(count):
            path = folder / name / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(path)
        (folder / name / "notes.txt").write_text("not an image")
    (folder / ".hidden").mkdir()


def test_image_folder_with_train_and_test(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 6, 0)
    write_images(tmp_path / "val", 4, 1)
    data = ImageFolder(name="x", root=tmp_path, calibration_per_class=2)
    check_splits(data)
    assert [len(data.samples(split)) for split in SPLITS] == [6, 6, 6]
    (tmp_path / "val").rename(tmp_path / "else")
    with pytest.raises(TrackerError, match=r"data\.test=gone"):
        ImageFolder(name="x", root=tmp_path, test="gone").samples("report")
    assert contents(ImageFolder(name="x", root=tmp_path, test="else"), "all")
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(TrackerError, match=r"data\.train=train"):
        ImageFolder(name="x", root=tmp_path, test="else").samples("calibration")


def test_image_folder_with_classes_alone(tmp_path: Path) -> None:
    write_images(tmp_path, 10, 0)
    data = ImageFolder(name="x", root=tmp_path)
    everything = {content(open_image(path)) for path in tmp_path.rglob("*.png")}
    check_splits(data)
    assert {item.rsplit(b"|", 1)[0] for split in SPLITS for item in contents(data, split)} == everything
    assert [len(data.samples(split)) for split in SPLITS] == [6, 12, 12]


def test_image_folder_has_the_samples_and_classes_of_torchvision(tmp_path: Path) -> None:
    from torchvision import datasets

    write_images(tmp_path / "train", 2, 0)
    write_images(tmp_path / "test", 5, 1)
    (tmp_path / "test" / "a" / "deeper").mkdir()
    (tmp_path / "test" / "a" / "03.png").rename(tmp_path / "test" / "a" / "deeper" / "x.PNG")
    shutil.rmtree(tmp_path / "test" / ".hidden")  # torchvision takes it for a class
    theirs = datasets.ImageFolder(str(tmp_path / "test"), loader=lambda path: open_image(Path(path)))
    expected = sorted(content(theirs[i]) for i in range(len(theirs)))
    assert sorted(contents(ImageFolder(name="x", root=tmp_path), "all")) == expected


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    write_images(tmp_path, 5, 0)
    path = tmp_path / "a" / "04.png"
    good = path.read_bytes()
    for raw in (b"", b"no image", good[:40], good[:-30]):
        path.write_bytes(raw)
        samples = ImageFolder(name="x", root=tmp_path).samples("report")
        with pytest.raises(TrackerError, match=r"a/04\.png is not an image"):
            [samples[i] for i in range(len(samples))]
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrackerError, match="empty has no images"):
        ImageFolder(name="x", root=tmp_path).samples("report")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(TrackerError, match="no folder per class"):
        ImageFolder(name="x", root=tmp_path / "nothing").samples("report")


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("L", (200, 200)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(TrackerError, match="bomb"):
        open_image(path)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
def test_images_of_every_mode_become_rgb(mode: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    original = Image.fromarray(array).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    original.save(path)
    found = rgb(open_image(path))
    assert found.shape == (3, 6, 7)
    assert np.array_equal((found * 255).round().permute(1, 2, 0).numpy(), np.array(original.convert("RGB")))


# --- super-resolution ---


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("upscaled", [True, False])
def test_super_resolution_pairs(scale: int, upscaled: bool, tmp_path: Path) -> None:
    original = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8))
    original.save(tmp_path / "photo.png")
    data = SuperResolution(name="x", root=tmp_path, folder=".", scale=scale, upscaled=upscaled)
    [(low, high)] = [data.samples("report")[0]]
    width, height = 50 // scale * scale, 37 // scale * scale
    assert high.size == (width, height)
    assert high.tobytes() == original.crop((0, 0, width, height)).tobytes()
    assert low.size == ((width, height) if upscaled else (width // scale, height // scale))
    assert low.tobytes() != high.tobytes()
    for split in ("calibration", "search"):
        for low, high in (data.samples(split)[i] for i in range(2)):
            assert low.size == (high.size if upscaled else (high.width // scale, high.height // scale))


def test_super_resolution_with_prepared_inputs(tmp_path: Path) -> None:
    folder = tmp_path / "set5"
    folder.mkdir()
    colours = {"one_GT": 10, "one_GT_scale_2": 20, "one_GT_scale_3": 30, "two_GT": 40, "two_GT_scale_2": 50}
    for name, colour in colours.items():
        Image.new("RGB", (24, 24), (colour,) * 3).save(folder / f"{name}.bmp")
    data = SuperResolution(name="set5", root=tmp_path)
    check_sr = [(low.getpixel((0, 0))[0], high.getpixel((0, 0))[0]) for low, high in data.samples("report")]
    assert check_sr == [(20, 10), (50, 40)]
    with pytest.raises(TrackerError, match="two_GT_scale_3"):
        SuperResolution(name="set5", root=tmp_path, scale=3).digest("report")
    before = data.digest("report")
    Image.new("RGB", (24, 24), (51,) * 3).save(folder / "two_GT_scale_2.bmp")  # the input counts as well
    assert data.digest("report") != before
    Image.new("RGB", (22, 24)).save(folder / "two_GT_scale_2.bmp")
    with pytest.raises(TrackerError, match=r"two_GT_scale_2\.bmp is \(22, 24\)"):
        data.samples("report")[1]


def test_super_resolution_does_not_calibrate_on_what_it_reports(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    Image.new("RGB", (16, 16), (9, 0, 0)).save(tmp_path / "x.png")
    data = SuperResolution(name="x", root=tmp_path, folder=".")
    check_splits_of_sr = [set(contents(data, split)) for split in SPLITS]
    assert not set.intersection(*check_splits_of_sr)
    kept, searched = data.samples("calibration"), data.samples("search")
    for index, photograph in enumerate(load_sample_images().images):
        image = kept[index][1]
        assert image.size == (320, 426)  # half of 640, and 427 cut to a multiple of the scale
        assert np.array_equal(np.array(image), photograph[: image.height, : image.width])
    means = skimage.data.astronaut().reshape(256, 2, 256, 2, 3).mean((1, 3))  # of squares of four pixels
    assert np.abs(np.array(searched[0][1]) - means).mean() < 4
    assert (len(kept), len(searched)) == (2, 4)
    own = data.model_copy(update={"calibration_folder": tmp_path / "photos"})
    reds = [{own.samples(split)[i][1].getpixel((0, 0))[0] for i in range(2)} for split in ("calibration", "search")]
    assert reds == [{0, 2}, {1, 3}]


def test_super_resolution_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrackerError, match=r"neither set5/ nor set5\.tar\.xz"):
        SuperResolution(name="set5", root=tmp_path).samples("report")
    (tmp_path / "set5").mkdir()
    with pytest.raises(TrackerError, match="holds no images"):
        SuperResolution(name="set5", root=tmp_path).samples("report")


# --- arrays, diabetes, text ---


@pytest.mark.parametrize("count", [5, 23, 100])
def test_arrays_are_shuffled_and_cut(count: int, tmp_path: Path) -> None:
    inputs, targets = torch.arange(3 * count).reshape(count, 3).float(), torch.arange(count)
    save_file({"inputs": inputs, "targets": targets}, tmp_path / "x.safetensors")
    data = Arrays(path=tmp_path / "x.safetensors")
    everything = {content((inputs[i], targets[i])) for i in range(count)}
    check_splits(data, everything)
    assert len(data.samples("calibration")) == count // 5
    order = [int(data.samples("all")[i][1]) for i in range(len(data.samples("all")))]
    assert count < 10 or order != sorted(order)
    assert order != [int(t) for _, t in Arrays(path=tmp_path / "x.safetensors", seed=3).samples("all")]


def test_arrays_with_splits_of_their_own(tmp_path: Path) -> None:
    tensors = {}
    for at, split in enumerate(SPLITS):
        tensors |= {f"{split}.inputs": torch.full((at + 2, 4), float(at)), f"{split}.targets": torch.arange(at + 2)}
    save_file(tensors, tmp_path / "x.safetensors")
    data = Arrays(path=tmp_path / "x.safetensors")
    assert [len(data.samples(split)) for split in (*SPLITS, "all")] == [2, 3, 4, 7]
    assert all(float(data.samples("report")[i][0][0]) == 2 for i in range(4))


def test_arrays_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    data = Arrays(path=path)
    with pytest.raises(TrackerError, match="does not exist"):
        data.samples("report")
    path.write_bytes(b"nonsense")
    with pytest.raises(TrackerError, match="not a safetensors file"):
        data.samples("report")
    for tensors, message in (
        ({"inputs": torch.zeros(3), "targets": torch.zeros(4)}, "differ in number"),
        ({"inputs": torch.zeros(3)}, "has no tensor"),
        ({"report.inputs": torch.zeros(3), "report.targets": torch.zeros(2)}, "differ in number"),
        ({"inputs": torch.tensor(1.0), "targets": torch.tensor(1.0)}, "differ in number"),
    ):
        save_file(tensors, path)
        with pytest.raises(TrackerError, match=message):
            data.samples("report")


def test_diabetes() -> None:
    table = load_diabetes()
    rows = {
        content((torch.tensor(x, dtype=torch.float32), torch.tensor([y], dtype=torch.float32)))
        for x, y in zip(table.data, table.target, strict=True)
    }
    check_splits(Diabetes(), rows)
    assert [len(Diabetes().samples(split)) for split in SPLITS] == [88, 176, 178]


def test_text_is_cut_into_passages(tmp_path: Path) -> None:
    words = " ".join(f"wörter{number}" for number in range(400))
    (tmp_path / "a.txt").write_text(words[:1500], encoding="utf-8")
    (tmp_path / "b.txt").write_text(words[1500:], encoding="utf-8")
    (tmp_path / "c.md").write_text("not this one")
    data = Text(root=tmp_path, characters=100)
    text = words[:1500] + "\n" + words[1500:]
    passages = [text[i : i + 100] for i in range(0, len(text), 100)]
    check_splits(data, {content((passage, passage)) for passage in passages})
    assert len(data.samples("calibration")) == -(-len(passages) // 5)
    few = Text(root=tmp_path, characters=100, passages=10)
    assert [len(few.samples(split)) for split in SPLITS] == [2, 4, 4]
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert Text(root=tmp_path / "copy", characters=100).digest("all") == data.digest("all")
    with pytest.raises(TrackerError, match="at least 10"):
        Text(root=tmp_path, characters=1000).samples("report")
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(TrackerError, match="not UTF-8"):
        data.samples("report")
