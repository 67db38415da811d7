"""Plots of a run: the numbers that are drawn, against other ways to compute them, and the files that a run leaves."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from conftest import Here, runs
from matplotlib.figure import Figure
from PIL import Image

from tracker.anchors.digits import Digits
from tracker.data.digits import Digits as DigitsData
from tracker.data.folders import Cifar10, ImageFolder
from tracker.plots import errors, style, tensors, weights
from tracker.plots.tensors import Share
from tracker.tasks import classes, examples
from tracker.tasks.base import Evaluation
from tracker.tasks.classification import Classification
from tracker.tasks.pictures import Comparison
from tracker.tasks.super_resolution import SuperResolution


def artifacts(folder: Path, run) -> Path:
    return folder / "mlruns" / "artifacts" / run.info.run_id / "artifacts"


def table(path: Path) -> list[dict]:
    content = json.loads(path.read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def pixels(figure: Figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


# --- rate by tensor ---


def test_the_largest_tensors_are_shown_and_the_rest_is_summed() -> None:
    shares = [Share(f"layer{i}.weight", 100, 10 * i) for i in range(1, 201)] + [Share("counter", 7, None)]
    shown = tensors.largest(shares, most=30)
    assert [share.name for share in shown[:30]] == [f"layer{i}.weight" for i in range(200, 170, -1)]
    others = shown[30]
    assert others.others and others.name == "171 other tensors"
    assert others.bytes == 10 * sum(range(1, 171)) and others.parameters == 170 * 100
    assert others.bits == pytest.approx(8 * others.bytes / 17000)
    assert sum(share.bytes or 0 for share in shown) == sum(share.bytes or 0 for share in shares)
    # One more than fits is no reason for a bar of "1 other tensor".
    assert not any(share.others for share in tensors.largest(shares[:31], most=30))


def test_without_bytes_parameters_are_shown() -> None:
    shares = [Share(f"t{i}", i, None) for i in range(1, 41)]
    shown = tensors.largest(shares, most=30)
    assert shown[0].name == "t40" and shown[-1].parameters == sum(range(1, 11)) and shown[-1].bytes is None
    figure = tensors.by_tensor(shares, "title")
    assert figure is not None and "parameters" in figure.axes[0].get_xlabel()
    assert tensors.by_tensor([], "title") is None


# --- error by layer ---


def test_the_ratio_is_that_of_the_powers() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = {
        "a.weight": torch.randn(64, 64, generator=generator),
        "a.bias": torch.randn(64, generator=generator),
        "b.weight": torch.randn(8, 8, generator=generator),
        "zero.weight": torch.zeros(4, 4),
        "dense/kernel": torch.ones(2, 2),
        "unknown.weight": torch.ones(2, 2),
    }
    noise = {name: 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in reference.items()}
    noise["b.weight"] = torch.zeros(8, 8)
    mean = {name: float(error.double().square().mean()) for name, error in noise.items()}
    found = errors.ratios(reference, {**mean, "unknown.weight": None})
    assert [one.tensor for one in found] == ["a.weight", "a.bias", "b.weight", "dense/kernel"]
    assert [one.layer for one in found] == ["a", "a", "b", "dense"]
    assert [one.main for one in found] == [True, False, True, True]
    # By variances in decibels, not by sums: 40 dB for noise of a hundredth of the deviation.
    w, e = reference["a.weight"].numpy().astype(float), noise["a.weight"].numpy().astype(float)
    assert found[0].decibels == pytest.approx(20 * np.log10(np.linalg.norm(w) / np.linalg.norm(e)))
    assert found[0].decibels == pytest.approx(40, abs=0.5)
    assert found[2].decibels == float("inf")


@pytest.mark.parametrize("layers", [1, 30, 200])
def test_layers_are_drawn_without_names_that_overlap(layers: int) -> None:
    found = [errors.Ratio(f"block{i // 4}.{i}.conv", f"{i}.weight", True, 20.0 + i) for i in range(layers)]
    figure = errors.by_layer(found, "title")
    assert figure is not None
    pixels(figure)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert 1 <= len(boxes) <= errors.MOST_NAMES
    assert all(high.y0 >= low.y1 - 1 for high, low in itertools.pairwise(boxes))
    assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines) == layers


# --- histograms ---


def test_bins_hold_one_level_each() -> None:
    values, step = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 0.1, 0.03
    decoded = (values / step).round() * step
    found = weights.histogram("w", values.view(50, 100), decoded.view(50, 100), step)
    middles = (found.edges[1:] + found.edges[:-1]) / 2
    levels, counts = np.unique(np.round(decoded.double().numpy() / step).astype(int), return_counts=True)
    filled = found.after > 0
    assert middles[filled] == pytest.approx(levels * step)
    assert found.after[filled] == pytest.approx(counts / 5000)
    # Rounding to the nearest level keeps the values of a bin in it.
    assert found.before == pytest.approx(found.after, abs=2e-4)
    assert found.before.sum() == pytest.approx(1) and found.after.sum() == pytest.approx(1)
    assert found.zeros == (0.0, pytest.approx(float((decoded == 0).double().mean())))
    assert found.shape == "50x100"


def test_histograms_of_the_largest_that_can_be_compared() -> None:
    reference = {f"t{i}": torch.full((i, 2), float(i)) for i in range(1, 12)}
    decoded = {**reference, "t11": torch.zeros(3)}  # of another shape
    decoded.pop("t10")
    steps = dict.fromkeys(reference) | {}
    steps.pop("t9")  # its error cannot be told
    assert [one.name for one in weights.histograms(reference, decoded, steps)] == [f"t{i}" for i in range(3, 9)]
    assert weights.before_and_after([], "title") is None


def test_of_a_large_tensor_a_sample_is_counted() -> None:
    values = torch.arange(3 * weights.SAMPLED + 17, dtype=torch.float32).view(1, -1)
    found = weights.histogram("large", values, values, None)
    assert len(found.before) == weights.BINS
    assert found.before == pytest.approx(np.full(weights.BINS, 1 / weights.BINS), rel=1e-3)


# --- what a figure looks like ---


def test_figures_are_white_whatever_the_user_has_configured(tmp_path: Path) -> None:
    made = {"b": lambda: tensors.by_tensor([Share("cost in $ and $", 10, 10)], "money $x_1$")}
    style.draw(made, tmp_path)
    plain = (tmp_path / "b.png").read_bytes()
    dark = {"figure.facecolor": "black", "text.color": "white", "savefig.transparent": True, "font.size": 30}
    with matplotlib.rc_context(dark):
        style.draw(made, tmp_path)
        assert matplotlib.rcParams["text.color"] == "white"
    image = np.asarray(Image.open(tmp_path / "b.png").convert("RGBA"))
    assert (image[..., 3] == 255).all()
    assert (image[[0, 0, -1, -1], [0, -1, 0, -1], :3] == 255).all()
    assert np.array_equal(image, np.asarray(Image.open(io.BytesIO(plain)).convert("RGBA")))


def test_a_plot_that_fails_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Figure:
        raise ValueError("no ink")

    style.draw({"broken": broken, "none": lambda: None, "good": lambda: Figure()}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["good.png"]
    assert "the plot broken is left out: ValueError: no ink" in caplog.text


# --- classes ---


def test_changes_of_classes() -> None:
    labels = np.array([0, 0, 0, 0, 2, 2, 5, 5, 5])
    anchor = np.array([1, 1, 0, 1, 1, 0, 1, 1, 1.0])
    decoded = np.array([1, 0, 1, 0, 1, 1, 1, 1, 1.0])
    rows = classes.changes(anchor, decoded, labels, ["cat", "dog", "owl"])
    assert [row["class"] for row in rows] == ["cat", "5", "owl"]
    assert [row["change"] for row in rows] == [pytest.approx(-0.25), 0, pytest.approx(0.5)]
    assert [(row["became wrong"], row["became right"], row["samples"]) for row in rows] == [
        (2, 1, 4),
        (0, 0, 3),
        (0, 1, 2),
    ]
    assert sum(row["anchor"] * row["samples"] for row in rows) == anchor.sum()
    figure = classes.by_class(rows, "title")
    assert figure is not None and [bar.get_width() for bar in figure.axes[1].patches] == [-25, 0, 50]


def test_of_many_classes_those_that_changed_most_are_shown() -> None:
    rows = [{"class": str(i), "change": change} for i, change in enumerate(np.linspace(-1, 1.5, 1000))]
    shown = classes.most_changed(rows, most=40)
    values = [row["change"] for row in shown]
    assert len(shown) == 40 and values == sorted(values)
    assert min(map(abs, values)) >= sorted(abs(row["change"]) for row in rows)[-40]


def test_a_logged_anchor_has_scores_only() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 7, generator=generator), torch.randint(0, 7, (200,), generator=generator)
    task = Classification()
    decoded = task.evaluate(lambda x: x, [(logits[:150], labels[:150]), (logits[150:], labels[150:])])
    anchor = Evaluation({"top1": 1.0}, np.ones((200, 1)))
    rows = task.pictures(compared(anchor, decoded)).tables["classes"]
    right = (logits.argmax(1) == labels).numpy()
    expected = {str(k): right[labels.numpy() == k].mean() for k in range(7)}
    assert {row["class"]: row["decoded"] for row in rows} == pytest.approx(expected)
    assert all(row["anchor"] == 1 for row in rows)
    assert not task.pictures(compared(decoded, anchor)).tables  # a subclass that keeps no classes


def compared(anchor: Evaluation, decoded: Evaluation) -> Comparison:
    def none(index: int) -> tuple:
        raise AssertionError

    return Comparison(anchor, decoded, tuple, none, none)


def test_names_of_classes_are_those_of_folders(tmp_path: Path) -> None:
    for part, names in (("train", ("b", "a")), ("test", ("b", "a"))):
        for name in names:
            (tmp_path / part / name / "deeper").mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / part / name / "deeper" / "x.png")
    assert ImageFolder(root=tmp_path).class_names() == ["a", "b"]
    assert ImageFolder(root=tmp_path / "test").class_names() == ["a", "b"]
    assert Cifar10(root=tmp_path).class_names() == ["a", "b"]
    assert list(DigitsData().class_names()) == []


# --- images ---


def test_the_worst_the_middle_and_the_best_image_are_shown() -> None:
    assert examples.chosen(np.array([0.1, 0.9, 0.2, -0.3, 0.4])) == [1, 2, 3]
    assert examples.chosen(np.array([0.1, 0.2])) == [1, 0]
    assert examples.chosen(np.array([0.0])) == [0]


def test_the_difference_is_amplified_by_a_power_of_two() -> None:
    generator = np.random.default_rng(0)
    for scale in (0.3, 1e-2, 1e-3):
        difference = generator.uniform(-scale, scale, (40, 40))
        gain = examples.amplification(difference)
        assert np.log2(gain) % 1 == 0 and 0.2 < gain * scale <= 0.51
    assert examples.amplification(np.zeros((4, 4))) == 1
    assert examples.amplification(np.full((4, 4), 1e-9)) == examples.LARGEST_GAIN


def test_the_part_shown_is_where_the_difference_is_greatest() -> None:
    difference = np.zeros((300, 500), np.float32)
    difference[250:270, 300:320] = 1
    rows, columns = examples.window(difference, 100)
    assert rows.start <= 250 and rows.stop >= 270 and columns.start <= 300 and columns.stop >= 320
    assert (rows.stop - rows.start, columns.stop - columns.start) == (100, 100)
    assert examples.window(difference[:50, :70], 100) == (slice(0, 50), slice(0, 70))


@pytest.mark.parametrize(("channels", "shrunk"), [(1, 1), (3, 2)])
def test_images_are_those_of_the_two_models(channels: int, shrunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    originals = torch.rand(4, 1, 300, 40, generator=generator) * 0.8 + 0.1
    given = originals[..., ::shrunk, ::shrunk].expand(-1, channels, -1, -1)
    before, after = originals + 0.01, originals + 0.02 * (originals > 0.5)
    task = SuperResolution()
    runs_of = [task.evaluate(lambda x: x, [(made, originals)]) for made in (before, after)]
    asked = []

    def outputs(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(index)
        return before[index], after[index]

    found = Comparison(*runs_of, tuple, lambda i: (given[i], originals[i]), outputs, "title")
    pictures = task.pictures(found)
    assert asked == []  # nothing runs before it is drawn
    one = task._example(found, 2)
    assert one.psnr[1] == pytest.approx(40, abs=1e-3)
    assert (one.psnr[0] == float("inf")) if shrunk == 1 else (one.psnr[0] is None)
    assert one.cut and one.anchor.shape == (256, 36)
    assert one.difference == pytest.approx(one.gain * (one.decoded - one.anchor), abs=1e-6)
    assert one.given is not None and one.given.shape == (256 // shrunk, 36 // shrunk)
    figure = pictures.figures["images"]()
    assert figure is not None and len(figure.axes) == 12 and len(asked) == 4
    texts = [axes.get_title() for axes in figure.axes]
    assert sum("×" in text for text in texts) == 3 and sum("40.00 dB" in text for text in texts) >= 3


# --- runs ---


def test_a_run_shows_rate_error_weights_and_classes(here: Here, ready: Path) -> None:
    done = here("+codec=nnc", "codec.nnc.qp=-16")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out") == 0
    (run,) = runs(ready, "compression")
    folder = artifacts(ready, run)
    assert {path.name for path in (folder / "plots").iterdir()} == {
        *("tensors.png", "error.png", "weights.png", "classes.png"),
    }
    for path in (folder / "plots").iterdir():
        with Image.open(path) as image:
            assert image.size[0] >= 400 and np.asarray(image.convert("RGBA"))[..., 3].min() == 255
    rows = table(folder / "classes.json")
    assert sum(row["samples"] for row in rows) == 400
    for name in ("anchor", "decoded"):
        mean = sum(row["samples"] * row[name] for row in rows) / 400
        assert mean == pytest.approx(run.data.metrics[f"performance/{name}"])
    # A class's accuracy from the bitstream itself, by another way.
    images, labels = DigitsData().arrays("report")
    model = Digits(name="digits").build()
    from tracker.receiver import decode_model

    model = decode_model(folder / "bitstream", model)
    with torch.inference_mode():
        right = model.eval()(images).argmax(1) == labels
    for row in rows:
        assert row["decoded"] == pytest.approx(float(right[labels == int(row["class"])].double().mean()))
    tag = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert {"path": "classes.json", "type": "table"} in tag


def test_an_anchor_that_was_found_again_gives_the_same_table(here: Here, ready: Path) -> None:
    for _ in range(2):
        assert here("+codec=int8").returncode == 0
    first, second = (artifacts(ready, run) for run in runs(ready, "compression"))
    assert table(first / "classes.json") == table(second / "classes.json")
    assert (first / "plots" / "tensors.png").is_file()  # which shows parameters, as int8 has no bytes by tensor


APPEND = """
import torch
from torch import nn
from tracker.codecs import Transform
from tracker.codecs.records import Transformed
from tracker.structure import Edit

class Wide(Transform):
    def apply(self, model, context):
        wide = rebuild(model, {"extra": 10})
        with torch.no_grad():
            wide[-1].weight.copy_(torch.eye(10))
            wide[-1].bias.zero_()
        return Transformed(wide, [Edit("wide", {"extra": 10})])

def rebuild(model, layers):
    return nn.Sequential(*model, nn.Linear(10, layers["extra"]))
"""


def test_a_changed_architecture_is_compared_with_what_the_coder_got(here: Here, ready: Path) -> None:
    (ready / "wide.py").write_text(APPEND)
    (ready / "conf" / "codec").mkdir(parents=True)
    (ready / "conf" / "codec" / "wide.yaml").write_text("# @package codec.wide\n_target_: wide.Wide\n")
    done = here("--config-dir", "conf", "+codec=[wide,zstd]")
    assert done.returncode == 0, done.stderr
    (run,) = runs(ready, "compression")
    folder = artifacts(ready, run)
    names = {path.name for path in (folder / "plots").iterdir()}
    assert names == {"tensors.png", "error.png", "weights.png", "classes.png", "stages.png"}
    assert all(row["change"] == 0 for row in table(folder / "classes.json"))


TASK = """
from tracker.tasks.classification import Classification
from tracker.tasks.pictures import Pictures
from tracker.tasks.base import Task

class Silent(Classification):
    pictures = Task.pictures

class Broken(Classification):
    def pictures(self, comparison):
        raise RuntimeError("no camera")

class Own(Classification):
    def pictures(self, comparison):
        from matplotlib.figure import Figure
        before, after = comparison.outputs(3)
        inputs, target = comparison.sample(3)
        return Pictures(
            {"mine": Figure, "late": lambda: 1 / 0},
            {"logits": [{"anchor": float(a), "decoded": float(b), "target": target} for a, b in zip(before, after)]},
        )
"""


def test_a_task_of_ones_own_shows_what_it_likes(here: Here, ready: Path) -> None:
    (ready / "mytask.py").write_text(TASK)
    for name in ("Silent", "Broken", "Own"):
        done = here("+codec=fp16", f"task._target_=mytask.{name}")
        assert done.returncode == 0, done.stderr
        told = done.stdout + done.stderr
        assert ("the pictures of the task are left out: RuntimeError: no camera" in told) == (name == "Broken")
        assert ("the plot late is left out: ZeroDivisionError" in told) == (name == "Own")
    silent, broken, own = (artifacts(ready, run) for run in runs(ready, "compression"))
    usual = {"tensors.png", "error.png", "weights.png"}
    assert {path.name for path in (silent / "plots").iterdir()} == usual
    assert {path.name for path in (broken / "plots").iterdir()} == usual
    assert {path.name for path in (own / "plots").iterdir()} == {*usual, "mine.png"}
    rows = table(own / "logits.json")
    model = Digits(name="digits").build()
    model.load_state_dict(Digits(name="digits").weights())
    images, labels = DigitsData().arrays("report")
    with torch.inference_mode():
        expected = model.eval()(images[3:4])[0]
    assert [row["anchor"] for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)
    assert [row["decoded"] for row in rows] == pytest.approx([row["anchor"] for row in rows], abs=0.1)
    assert {row["target"] for row in rows} == {int(labels[3])}


def test_a_failed_run_keeps_no_table_of_its_task(here: Here, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tracker.scenarios import compression

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(compression, "log_model", fails)
    assert here("+codec=fp16").returncode == 1
    (run,) = runs(ready, "compression")
    assert run.info.status == "FAILED"
    assert not (artifacts(ready, run) / "classes.json").exists() and not (artifacts(ready, run) / "plots").exists()
