"""Fine-tuning: the drop recovered without labels, and never a worse model than before."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
from pathlib import Path

import pytest
import torch
from conftest import Here, runs
from torch import Tensor, nn

from tracker.anchors.digits import Digits
from tracker.codecs.base import Context
from tracker.codecs.finetune import Finetune
from tracker.codecs.finetune_inputs import side
from tracker.codecs.records import Transformed
from tracker.data.digits import Digits as DigitsData
from tracker.errors import TrackerError
from tracker.tasks.classification import Classification

DATA = DigitsData(name="digits")


def images(split: str) -> list[Tensor]:
    samples = DATA.training() if split == "training" else DATA.samples(split)
    return list(torch.stack([samples[index][0] for index in range(len(samples))]).split(128))


@pytest.fixture(scope="module")
def context(cache: Path) -> Context:
    anchor = Digits(name="digits")
    model = anchor.build()
    model.load_state_dict(anchor.weights())
    return Context(
        anchor.predict,
        lambda: images("calibration"),
        0,
        "cpu",
        training=lambda: images("training"),
        agreement=Classification(name="classification", tolerance=0.005).agreement,
        anchor=model.eval(),
    )


def damaged(model: nn.Module, rank: int = 6) -> nn.Module:
    """A copy whose convolutions have lost all but a few of their singular values."""
    changed = copy.deepcopy(model)
    for module in changed.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 1:
            u, s, v = torch.linalg.svd(module.weight.data.flatten(1), full_matrices=False)
            module.weight.data = ((u[:, :rank] * s[:rank]) @ v[:rank]).view_as(module.weight)
    return changed


def accuracy(model: nn.Module) -> float:
    pictures, classes = DATA.arrays("report")
    with torch.no_grad():
        return float((model(pictures).argmax(1) == classes).double().mean())


def tuned(context: Context, **options: object) -> Transformed:
    return Finetune(**options).apply(damaged(context.anchor), context)


def scores(given: Transformed) -> list[float]:
    return [row["agreement"] for row in given.tables["epochs"]]


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_a_drop_is_recovered(context: Context, loss: str) -> None:
    before = accuracy(damaged(context.anchor))
    given = tuned(context, loss=loss)
    after = accuracy(given.model)
    assert before < 0.6
    assert after > 0.93
    assert given.metrics["finetune/loss_after"] < given.metrics["finetune/loss_before"]
    assert given.metrics["finetune/agreement_after"] == max(scores(given))
    assert [row["epoch"] for row in given.tables["epochs"]] == [0, 1, 2, 3, 4, 5]
    assert not given.edits
    assert not given.model.training
    assert list(given.model.state_dict()) == list(context.anchor.state_dict())


def test_the_same_seed_gives_the_same_weights_and_leaves_everything_else(context: Context) -> None:
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    kept = copy.deepcopy(context.anchor.state_dict())
    first, second = tuned(context, epochs=1), tuned(context, epochs=1)
    other = Finetune(epochs=1).apply(damaged(context.anchor), dataclasses.replace(context, seed=1))
    weights = [torch.cat([p.flatten() for p in given.model.parameters()]) for given in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in context.anchor.state_dict().items())


def test_it_is_never_worse_than_before(context: Context) -> None:
    model = copy.deepcopy(context.anchor)
    given = Finetune(epochs=1, learning_rate=1.0, clip=1e6).apply(model, context)
    assert max(scores(given)[1:]) < 1.0
    assert given.metrics["finetune/epoch"] == 0
    for name, tensor in given.model.state_dict().items():
        assert torch.equal(tensor, context.anchor.state_dict()[name]), name


def test_frozen_norms_keep_their_statistics(context: Context) -> None:
    def means(model: nn.Module) -> Tensor:
        return torch.cat([m.running_mean for m in model.modules() if isinstance(m, nn.BatchNorm2d)])

    before = means(context.anchor)
    assert torch.equal(means(tuned(context, epochs=1, norm="frozen").model), before)
    assert not torch.equal(means(tuned(context, epochs=1).model), before)


def test_half_precision_and_frozen_parameters_come_back_as_they_were(context: Context) -> None:
    model = damaged(context.anchor).half()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    given = Finetune(epochs=2).apply(model, context)
    assert {tensor.dtype for tensor in given.model.parameters()} == {torch.float16}
    assert not any(parameter.requires_grad for parameter in given.model.parameters())
    assert scores(given)[-1] > scores(given)[0]


def test_time_budget(context: Context) -> None:
    given = tuned(context, epochs=10000, seconds=1.0)
    assert len(given.tables["epochs"]) < 500


def test_random_squares_and_inputs_of_several_sizes() -> None:
    torch.manual_seed(0)
    anchor = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)).eval()
    model = copy.deepcopy(anchor)
    model[0].weight.data.mul_(0.5)
    sizes = [torch.rand(1, 1, 20 + index, 30) for index in range(6)]

    def agreement(output: Tensor, reference: Tensor) -> float:
        return float(1 - (output - reference).square().mean() / reference.var())

    context = Context(
        lambda m, x: m(x), lambda: sizes, 0, "cpu", training=lambda: sizes, agreement=agreement, anchor=anchor
    )
    for crop in (None, 16, 1000):
        given = Finetune(epochs=20, learning_rate=0.01, crop=crop).apply(copy.deepcopy(model), context)
        assert given.metrics["finetune/agreement_after"] > given.metrics["finetune/agreement_before"]
    with pytest.raises(TrackerError, match="use mse"):
        Finetune(loss="kl").apply(copy.deepcopy(model), context)


def fully_convolutional() -> tuple[nn.Module, nn.Module, Context]:
    """An anchor that takes images of any size, one that has lost a part of it, and large images."""
    torch.manual_seed(0)
    anchor = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()
    model = copy.deepcopy(anchor)
    model[2].weight.data[:, ::2] = 0
    photographs = [torch.rand(1, 3, 200, 130 + index) for index in range(3)]
    return anchor, model, Context(lambda m, x: m(x), lambda: photographs, 0, "cpu", lambda: photographs, anchor=anchor)


def test_an_epoch_that_makes_it_worse_is_taken_back() -> None:
    _, model, context = fully_convolutional()
    given = Finetune(epochs=2, learning_rate=1.0).apply(model, context)
    rows = given.tables["epochs"]
    rates = [row["learning rate"] for row in rows[1:]]
    assert rates[0] == 1.0
    assert rates[-1] < 0.5
    assert rates == sorted(rates, reverse=True)
    assert [row["epoch"] for row in rows[-2:]] == [1, 2]
    for row, then in itertools.pairwise(rows[1:]):
        assert (then["learning rate"] < row["learning rate"]) == (row["loss"] > 1.5 * rows[0]["loss"])
    assert given.metrics["finetune/loss_after"] < given.metrics["finetune/loss_before"]


@pytest.mark.parametrize("crop", ["auto", None])
def test_large_images_are_trained_on_in_squares(crop: str | None) -> None:
    anchor, _, context = fully_convolutional()
    seen: list[torch.Size] = []

    def predict(model: nn.Module, inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(inputs.shape)
        return model(inputs)

    context = dataclasses.replace(context, predict=predict)
    Finetune(epochs=1, crop=crop).apply(copy.deepcopy(anchor), context)
    if crop is None:
        assert sorted(seen) == [(1, 3, 200, 130 + index) for index in range(3)]
    else:  # 3 x 2 squares of 64 in each of the three photographs, 4 at once
        assert seen == [(4, 3, 64, 64)] * 4 + [(2, 3, 64, 64)]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), 64),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), None),
        (nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Conv2d(3, 2, 1)), None),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 200 * 200, 2)), None),
    ],
    ids=["convolution", "classifier", "output of one size", "input of one size"],
)
def test_which_networks_can_be_trained_on_squares(model: nn.Module, expected: int | None) -> None:
    assert side(lambda m, x: m(x), model, torch.rand(2, 3, 200, 200)) == expected
    assert side(lambda m, x: m(x), model, torch.rand(2, 3, 100, 200)) is None
    assert side(lambda m, x: m(x), model, {"x": torch.rand(2, 3)}) is None


def test_what_cannot_be_trained_is_refused(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TrackerError, match="keras"):
        Finetune().check_model(object(), "keras")
    with pytest.raises(TrackerError, match="floating-point parameters"):
        Finetune().check_model(nn.ReLU(), "pytorch")
    detached = Context(
        lambda m, x: m(x).detach(), context.calibration, 0, "cpu", context.training, context.agreement, context.anchor
    )
    with pytest.raises(TrackerError, match="do not depend on its parameters"):
        Finetune().apply(damaged(context.anchor), detached)
    broken = damaged(context.anchor)
    broken[0].weight.data.fill_(float("inf"))
    with caplog.at_level(logging.WARNING):
        Finetune(norm="frozen").apply(broken, context)
    assert "lower the learning_rate" in caplog.text


class Fourier(nn.Module):
    """A layer with a complex weight in front of a plain one."""

    def __init__(self, dtype: torch.dtype = torch.complex64) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 5, dtype=dtype))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x).unsqueeze(1) * self.kernel.to(torch.complex64)
        return self.last(torch.fft.irfft(spectrum, n=8).sum(1).tanh())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters_are_trained_and_stay_complex(dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        anchor, inputs = Fourier(dtype).eval(), list(torch.randn(128, 8).split(32))
    context = Context(
        lambda m, x: m(x), lambda: inputs, 0, "cpu", training=lambda: inputs,
        agreement=Classification(name="classification", tolerance=0.005).agreement, anchor=anchor,
    )  # fmt: skip
    student = copy.deepcopy(anchor)
    student.kernel.data = student.kernel.data * 0.5j
    before = student.kernel.detach().clone()
    Finetune().check_model(student, "pytorch")
    given = Finetune(epochs=8, learning_rate=0.03).apply(student, context)
    assert given.model.kernel.dtype == dtype and anchor.kernel.dtype == dtype
    change = given.model.kernel.detach() - before
    assert bool(change.real.any()) and bool(change.imag.any())
    assert given.metrics["finetune/loss_after"] < 0.5 * given.metrics["finetune/loss_before"]


class Strict(nn.Linear):
    """It has an extra state, and loads nothing that does not say its version."""

    _version = 3

    def get_extra_state(self) -> dict[str, float]:
        return {"mean": 0.5}

    def set_extra_state(self, state: dict[str, float]) -> None:
        assert state == {"mean": 0.5}

    def _load_from_state_dict(self, state: object, prefix: str, metadata: dict[str, int], *rest: object) -> None:
        assert metadata.get("version") == 3
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_versions_and_extra_states_of_modules() -> None:
    inputs = [torch.randn(16, 4)]
    anchor, student = Strict(4, 2).eval(), Strict(4, 2).eval()
    context = Context(lambda m, x: m(x), lambda: inputs, 0, "cpu", training=lambda: inputs, anchor=anchor)
    given = Finetune(epochs=1).apply(student, context)
    assert given.metrics["finetune/loss_after"] < given.metrics["finetune/loss_before"]


def test_command_line(here: Here, ready: Path) -> None:
    done = here("+codec=[finetune,zstd]", "codec.finetune.epochs=1", "task.split=search")
    assert done.returncode == 0, done.stderr
    (run,) = runs(ready, "compression")
    assert run.data.metrics["finetune/agreement_after"] == 1
    folder = ready / "mlruns" / "artifacts" / run.info.run_id / "artifacts"
    assert (folder / "stages" / "finetune" / "epochs.json").is_file()
    assert (folder / "plots" / "finetune-loss.png").is_file()


@pytest.mark.parametrize(
    ("option", "word"),
    [("epochs=0", "epochs"), ("learning_rate=-1", "learning_rate"), ("loss=ce", "loss"), ("seconds=0", "seconds")],
)
def test_bad_options_are_one_line(option: str, word: str) -> None:
    from tracker.component import build

    name, _, value = option.partition("=")
    with pytest.raises(TrackerError, match=f"codec.finetune.{word}"):
        build({"_target_": "tracker.codecs.finetune.Finetune", name: value}, "codec.finetune", Finetune)
