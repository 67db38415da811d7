"""Figures that look right and are not: each of these was, or could be, wrong without an error."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from tracker.anchors import Anchor
from tracker.anchors.digits import Digits
from tracker.bitstream import decode_bitstream, encode_bitstream
from tracker.bitstream.state import write_side
from tracker.codecs.base import Context
from tracker.codecs.chain import build_codec
from tracker.codecs.nnc_steps import step_size
from tracker.data.digits import Digits as DigitsData
from tracker.data.folders import ImageFolder
from tracker.data.super_resolution import SuperResolution
from tracker.errors import TrackerError
from tracker.evaluation import Batches, evaluate
from tracker.memory import peak_memory_mib, reset_peak
from tracker.tasks.classification import Classification
from tracker.tasks.custom import Custom
from tracker.tracking.anchors import task_digest

CONTEXT = Context(lambda model, inputs: model(inputs), list, 0, "cpu")


class Fake:
    """As much of a job as `task_digest` looks at."""

    def __init__(self, data=None, anchor=None) -> None:
        node = {"_target_": "tracker.anchors.digits.Digits"}
        self.settings = SimpleNamespace(anchor=node, task=node, data=node)
        self.task, self.data, self.anchor = Classification(), data or DigitsData(), anchor or Digits(name="digits")


@pytest.mark.parametrize("file", ["side.zst", "fold.zst", "notes.txt"])
def test_a_file_that_the_manifest_does_not_name_is_refused(tmp_path: Path, file: str) -> None:
    codec = build_codec({"nnc": {"_target_": "tracker.codecs.nnc.Nnc"}})
    assert codec is not None
    folder = tmp_path / "bitstream"
    folder.mkdir()
    model = nn.Linear(8, 8, bias=False)
    manifest, _ = encode_bitstream(codec, model.state_dict(), model, folder, CONTEXT)
    assert manifest.files == ["model.nnc"]
    decode_bitstream(folder, sha256=manifest.sha256)
    other = tmp_path / "other"
    other.mkdir()
    write_side({"weight": torch.zeros((), dtype=torch.int64)}, {}, {}, other)
    (folder / file).write_bytes((other / "side.zst").read_bytes())
    with pytest.raises(TrackerError, match=file):
        decode_bitstream(folder, sha256=manifest.sha256)


def test_the_same_images_at_another_scale_are_another_task(tmp_path: Path) -> None:
    Image.new("RGB", (48, 48)).save(tmp_path / "a.png")
    model = nn.Linear(1, 1)
    digests = {
        task_digest(Fake(SuperResolution(root=tmp_path, folder=".", scale=scale)), str(model), "same", "cpu")
        for scale in (2, 3, 4)
    }
    assert len(digests) == 3


def test_another_activation_or_anchor_field_is_another_anchor_but_another_path_is_not() -> None:
    relu, gelu = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.GELU())
    digest = task_digest(Fake(), str(relu), "same", "cpu")
    assert digest != task_digest(Fake(), str(gelu), "same", "cpu")
    assert digest != task_digest(Fake(anchor=Digits(name="digits", epochs=3)), str(relu), "same", "cpu")
    assert digest != task_digest(Fake(), str(relu), "other", "cpu")
    assert digest == task_digest(Fake(anchor=Digits(name="renamed")), str(relu), "same", "cpu")


def test_a_model_that_writes_into_its_input_is_measured_the_same_twice() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            return self.linear(x.sub_(0.5).flatten(1))

    anchor, task = Digits(name="digits"), Classification()
    batches = Batches(DigitsData().samples("search"), anchor, task)
    first, second, third = (evaluate(anchor, InPlace(), task, batches, "cpu", "") for _ in range(3))
    assert first.metrics == second.metrics == third.metrics


def test_training_images_are_not_taken_for_classes_or_for_figures(tmp_path: Path) -> None:
    for part in ("train", "validation"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / part / label / "1.png")
    with pytest.raises(TrackerError, match=r"data\.test"):
        ImageFolder(root=tmp_path).samples("report")
    with pytest.raises(TrackerError, match=r"data\.train"):
        ImageFolder(root=tmp_path, test="train").samples("report")
    assert len(ImageFolder(root=tmp_path, test="validation").samples("all")) == 2


def three_hits(predict, batches):
    return {"hits": 3.0}, [1.0, 0.0, 0.0, 0.0]


def test_scores_that_are_not_the_metric_are_refused() -> None:
    task = Custom(function={"_target_": f"{__name__}.three_hits"}, metric="hits", tolerance=0)
    with pytest.raises(TrackerError, match="mean"):
        task.evaluate(lambda x: x, [])


def test_errors_of_loader_workers_are_one_line(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for k in range(5):
            (tmp_path / label / f"{k}.png").write_bytes(b"no image")
    anchor: Anchor = Digits(name="digits")
    batches = Batches(ImageFolder(root=tmp_path).samples("report"), anchor, Classification(workers=1))
    with pytest.raises(TrackerError) as caught:
        list(batches)
    assert "is not an image" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_the_peak_of_a_job_is_its_own() -> None:
    reset_peak()
    before = peak_memory_mib()
    block = torch.ones(64 * 2**20)  # 256 MiB
    assert peak_memory_mib() > before + 200
    del block
    reset_peak()
    assert peak_memory_mib() < before + 100


def test_a_clipped_step_size_is_the_one_in_the_table(tmp_path: Path) -> None:
    codec = build_codec({"nnc": {"_target_": "tracker.codecs.nnc.Nnc", "qp": -100, "use_dq": False}})
    assert codec is not None
    weight = torch.linspace(-1e6, 1e6, 64).reshape(8, 8)
    _, [record] = encode_bitstream(codec, {"weight": weight}, nn.Module(), tmp_path, CONTEXT)
    assert record.step_size is not None
    assert 1e6 / record.step_size < 2**31 < 1e6 / step_size(-100, 2)
    assert torch.allclose(decode_bitstream(tmp_path)["weight"], weight, atol=record.step_size)
