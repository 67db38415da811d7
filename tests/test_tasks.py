"""Metrics against formulas, scikit-learn and known values; the bootstrap against cases with a known answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import convolve
from scipy.stats import norm
from sklearn import metrics as sk
from torch import Tensor

from tracker.anchors.digits import Digits
from tracker.anchors.images import luminance, rgb
from tracker.errors import TrackerError
from tracker.evaluation import Batches
from tracker.scenarios.decision import decide
from tracker.settings import Transparency
from tracker.tasks.base import Evaluation, Task
from tracker.tasks.bootstrap import drop_interval
from tracker.tasks.classification import Classification
from tracker.tasks.custom import Custom
from tracker.tasks.language_modelling import LanguageModelling
from tracker.tasks.regression import Regression
from tracker.tasks.super_resolution import SuperResolution


def identity(inputs: Any) -> Any:
    """The inputs are the outputs already."""
    return inputs


def batched(outputs: Any, targets: Any, size: int) -> Iterator[tuple[Any, Any]]:
    for at in range(0, len(outputs), size):
        yield outputs[at : at + size], targets[at : at + size]


def consistent(task: Task, evaluation: Evaluation) -> None:
    """What the bootstrap relies on: the scores of all samples give the primary metric."""
    assert next(iter(evaluation.metrics)) == task.primary
    assert evaluation.scores is not None
    assert evaluation.scores.dtype == np.float64
    assert task.performance(evaluation.scores) == pytest.approx(evaluation.metrics[task.primary], rel=2e-6)


# --- classification ---


@given(st.integers(1, 40), st.integers(2, 12), st.integers(1, 16), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_accuracy_against_numpy(samples: int, classes: int, size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.permuted(np.tile(np.arange(classes), (samples, 1)), axis=1).astype(np.float32)  # without ties
    labels = generator.integers(0, classes, samples)
    task = Classification()
    found = task.evaluate(identity, batched(torch.from_numpy(logits), torch.from_numpy(labels), size))
    ranks = (logits > logits[np.arange(samples), labels][:, None]).sum(axis=1)
    assert found.metrics["top1"] == pytest.approx((ranks < 1).mean(), abs=1e-6)
    assert ("top5" in found.metrics) == (classes >= 5)
    if classes >= 5:
        assert found.metrics["top5"] == pytest.approx((ranks < 5).mean(), abs=1e-6)
    assert found.scores.tolist() == [[float(rank < 1)] for rank in ranks]
    consistent(task, found)


def test_accuracy_with_ties_is_still_consistent() -> None:
    logits, labels = torch.zeros(20, 7), torch.arange(20) % 7
    consistent(Classification(), Classification().evaluate(identity, batched(logits, labels, 6)))


def test_classification_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(TrackerError, match="has class 9, but the model gives only 3"):
        Classification().evaluate(identity, [(torch.zeros(2, 3), torch.tensor([1, 9]))])
    with pytest.raises(TrackerError, match="class -1"):
        Classification().evaluate(identity, [(torch.zeros(2, 3), torch.tensor([1, -1]))])
    with pytest.raises(TrackerError, match=r"\(batch, classes\)"):
        Classification().evaluate(identity, [(torch.zeros(2, 3, 4), torch.tensor([1, 0]))])
    with pytest.raises(TrackerError, match="class indices"):
        Classification().evaluate(identity, [(torch.zeros(2, 3), torch.tensor([1.0, 0.0]))])
    with pytest.raises(TrackerError, match="class indices"):
        Classification().evaluate(identity, [(torch.zeros(2, 3), torch.tensor([[1], [0]]))])


def test_a_split_without_samples_is_refused() -> None:
    with pytest.raises(TrackerError, match="no samples"):
        Batches([], Digits(name="digits"), Classification())


# --- super-resolution ---


def test_luminance_is_bt601_studio_range() -> None:
    colours = {
        (255, 255, 255): 235,
        (0, 0, 0): 16,
        (255, 0, 0): 81.481,
        (0, 255, 0): 144.553,
        (0, 0, 255): 40.966,
        (128, 128, 128): 16 + 219 * 128 / 255,
    }
    for colour, expected in colours.items():
        y = luminance(rgb(Image.new("RGB", (3, 2), colour)))
        assert y.shape == (1, 2, 3)
        assert float(y[0, 0, 0]) * 255 == pytest.approx(expected, abs=1e-4)


def gaussian_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, equation 13: an 11x11 Gaussian window of deviation 1.5, the image mirrored at its edges."""
    axis = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(axis, axis) / axis.sum() ** 2

    def mean(image: np.ndarray) -> np.ndarray:
        return convolve(image, window, mode="mirror")

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return float(((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


@pytest.mark.parametrize("border", [0, 2, 3])
def test_psnr_and_ssim_against_their_formulas(border: int) -> None:
    generator = np.random.default_rng(1)
    task = SuperResolution(border=border)
    pairs, expected = [], []
    for height, width, noise in ((20, 31, 0.02), (40, 24, 0.1), (25, 25, 0.5)):
        original = generator.random((height, width, 3)).round(2)
        changed = original + noise * generator.standard_normal(original.shape)

        def y(image: np.ndarray) -> np.ndarray:
            return (image @ [65.481, 128.553, 24.966] + 16) / 255

        low, high = y(changed).clip(0, 1), y(original)
        inside = slice(border, -border if border else None)
        low, high = low[inside, inside], high[inside, inside]
        expected.append((-10 * np.log10(((low - high) ** 2).mean()), gaussian_ssim(low, high)))
        output = torch.from_numpy(changed).permute(2, 0, 1).float().unsqueeze(0)
        pairs.append((output, torch.from_numpy(y(original)).float()[None, None]))
    found = task.evaluate(identity, pairs)
    np.testing.assert_allclose(found.scores, expected, rtol=2e-4)
    assert found.metrics["psnr"] == pytest.approx(np.mean([psnr for psnr, _ in expected]), rel=1e-4)
    assert found.metrics["ssim"] == pytest.approx(np.mean([ssim for _, ssim in expected]), rel=1e-4)
    consistent(task, found)


def test_outputs_of_one_channel_are_luminance_already_and_are_clamped() -> None:
    original = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    output = torch.where(original > 0.5, original + 7, original - 7)
    found = SuperResolution(border=0).evaluate(identity, [(output, original)])
    error = (output.clamp(0, 1) - original).square().mean(dim=(1, 2, 3)).double()
    np.testing.assert_allclose(found.scores[:, 0], -10 * np.log10(error.numpy()), rtol=1e-5)


def test_super_resolution_target_and_refusals() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8))
    target = SuperResolution().target(image)
    assert torch.equal(target, luminance(rgb(image)))
    assert target.shape == (1, 30, 20)
    with pytest.raises(TrackerError, match=r"data\.scale"):
        SuperResolution().evaluate(identity, [(torch.zeros(1, 3, 15, 10), target.unsqueeze(0))])
    with pytest.raises(TrackerError, match="too small"):
        SuperResolution(border=10).evaluate(identity, [(target.unsqueeze(0), target.unsqueeze(0))])


# --- regression ---


def test_soft_scores_of_images_are_psnr_without_the_chance_that_errors_agree() -> None:
    """Errors that are independent of the anchor's: on a large image both are the same; on a small one they are not."""
    generator = torch.Generator().manual_seed(0)

    def noise(size: int, deviation: float) -> Tensor:
        return deviation * torch.randn(2, 1, size, size, generator=generator)

    task = SuperResolution(border=2)
    for size, near in ((512, 0.01), (16, 0.5)):
        original = 0.5 + noise(size, 0.02)
        reference = original + noise(size, 0.02)
        output = reference + noise(size, 0.01)
        scores = [task.evaluate(identity, [(given, original)]).scores for given in (reference, output)]
        assert scores[0] is not None and scores[1] is not None
        soft = task.soft(scores[0], [output], [reference])
        assert soft.shape == (2,) and soft == pytest.approx(scores[1][:, 0], abs=near)
        assert task.soft(scores[0], [reference], [reference]) == pytest.approx(scores[0][:, 0], abs=1e-5)
    # By the formula: 10 log10(1 + 0.01^2 / 0.02^2) less than the anchor.
    assert float(np.mean(scores[0][:, 0] - soft)) == pytest.approx(10 * math.log10(1.25), abs=0.2)
    colours = task.soft(scores[0], [output.expand(-1, 3, -1, -1)], [reference.expand(-1, 3, -1, -1)])
    assert colours == pytest.approx(soft, abs=0.7)  # luminance is 219/255 of grey


@pytest.mark.parametrize("metric", ["r2", "rmse", "mae"])
@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 3), (40, 2, 3)], ids=str)
def test_regression_against_scikit_learn(metric: str, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(2)
    target = generator.normal(100, 20, shape) * (1 + np.arange(shape[-1]) if len(shape) > 1 else 1)
    output = target + generator.normal(3, 9, shape)
    task = Regression(metric=metric)
    found = task.evaluate(identity, batched(torch.from_numpy(output), torch.from_numpy(target), 7))
    flat = target.reshape(40, -1), output.reshape(40, -1)
    assert found.metrics["r2"] == pytest.approx(sk.r2_score(*flat, multioutput="variance_weighted"), rel=1e-6)
    assert found.metrics["rmse"] == pytest.approx(sk.mean_squared_error(*flat) ** 0.5, rel=1e-6)
    assert found.metrics["mae"] == pytest.approx(sk.mean_absolute_error(*flat), rel=1e-6)
    consistent(task, found)
    # And on a part of the samples, as the bootstrap asks for it.
    drawn = generator.integers(0, 40, 40)
    part = {"r2": sk.r2_score(flat[0][drawn], flat[1][drawn], multioutput="variance_weighted")}
    part["rmse"] = sk.mean_squared_error(flat[0][drawn], flat[1][drawn]) ** 0.5
    part["mae"] = sk.mean_absolute_error(flat[0][drawn], flat[1][drawn])
    assert task.performance(found.scores[drawn]) == pytest.approx(part[metric], rel=1e-9)


@pytest.mark.parametrize("factor", [1e-9, 1e-3, 1, 1e3])
@pytest.mark.parametrize("outputs", [1, 3])
def test_r2_does_not_depend_on_the_unit(factor: float, outputs: int) -> None:
    generator = np.random.default_rng(4)
    target = generator.normal(0, 1, (60, outputs)) * factor
    for output in (np.zeros_like(target), target + generator.normal(0, 0.1 * factor, target.shape)):
        found = Regression().evaluate(identity, batched(torch.from_numpy(output), torch.from_numpy(target), 7))
        # In a unit in which nothing of scikit-learn's comes near its own limits.
        wanted = sk.r2_score(target / factor, output / factor, multioutput="variance_weighted")
        assert found.metrics["r2"] == pytest.approx(wanted, rel=1e-9)
        assert found.metrics["r2"] == Regression().performance(found.scores)


@pytest.mark.parametrize("outputs", [1, 2])
def test_r2_of_targets_that_do_not_vary(outputs: int, caplog: pytest.LogCaptureFixture) -> None:
    target = torch.full((7, outputs), 0.1, dtype=torch.float64)  # whose mean is not 0.1 to the last digit
    for output in (target, target + 1e-3):
        caplog.clear()
        found = Regression().evaluate(identity, [(output, target)])
        assert found.metrics["r2"] == (1 if output is target else 0) == Regression().performance(found.scores)
        assert "task.metric=rmse" in caplog.text
    assert Regression(metric="mae").evaluate(identity, [(target, target)]).metrics["r2"] == 1
    # One output alone does: the others' errors count all the same.
    target[:, 0] = torch.arange(7)
    output = target + 1
    assert Regression().evaluate(identity, [(output, target)]).metrics["r2"] == pytest.approx(1 - 7 * outputs / 28)


def test_regression_takes_targets_without_the_last_dimension() -> None:
    target = torch.arange(9.0)
    found = Regression().evaluate(identity, [((target + 1).unsqueeze(1), target)])
    assert found.metrics["mae"] == pytest.approx(1)
    assert found.metrics["r2"] == pytest.approx(1 - 9 / float(((target - 4) ** 2).sum()))
    with pytest.raises(TrackerError, match=r"\(9, 2\) where targets are \(9,\)"):
        Regression().evaluate(identity, [(torch.zeros(9, 2), target)])


# --- language modelling ---


def test_perplexity_is_exp_of_the_mean_cross_entropy_of_tokens_that_count() -> None:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, 11, (6, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mask[4, :3] = 0
    table = torch.randn(11, 11, generator=generator) * 2  # a bigram model

    losses = []
    for row, valid in zip(ids.numpy(), mask.numpy(), strict=True):
        for at in range(1, 9):
            if valid[at]:
                scores = table[row[at - 1]].double().numpy()
                losses.append(np.log(np.exp(scores).sum()) - scores[row[at]])
    expected = float(np.exp(np.mean(losses)))

    def predict(inputs: Any) -> torch.Tensor:
        return table[inputs["input_ids"]]

    batches = [({"input_ids": ids[i : i + 4], "attention_mask": mask[i : i + 4]}, torch.zeros(1)) for i in (0, 4)]
    task = LanguageModelling()
    found = task.evaluate(predict, batches)
    assert found.metrics == {"perplexity": pytest.approx(expected, rel=1e-5)}
    assert found.scores[:, 1].tolist() == [8, 4, 8, 8, 6, 8]
    consistent(task, found)
    unmasked = task.evaluate(lambda tokens: table[tokens], [(ids, torch.zeros(1))])
    assert unmasked.metrics["perplexity"] != pytest.approx(expected, rel=1e-3)
    assert unmasked.scores[:, 1].tolist() == [8] * 6


def test_perplexity_of_a_uniform_guess_is_the_vocabulary() -> None:
    found = LanguageModelling().evaluate(lambda ids: torch.zeros(*ids.shape, 50), [(torch.zeros(3, 7).long(), None)])
    assert found.metrics["perplexity"] == pytest.approx(50, rel=1e-5)


def test_language_modelling_refuses() -> None:
    for inputs in (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), {"tokens": torch.zeros(2, 3).long()}):
        with pytest.raises(TrackerError, match="token ids"):
            LanguageModelling().evaluate(identity, [(inputs, None)])
    with pytest.raises(TrackerError, match="vocabulary"):
        LanguageModelling().evaluate(lambda ids: torch.zeros(2, 5, 9), [(torch.zeros(2, 3).long(), None)])


# --- a user's own ---


def fraction_above(predict: Any, batches: Any, limit: float = 0.5, scored: bool = True) -> Any:
    values = np.concatenate([predict(inputs).numpy() for inputs, _ in batches])
    table = {"mean": values.mean(), "above": (values > limit).mean()}
    return (table, values > limit) if scored else table


def fails(predict: Any, batches: Any) -> None:
    raise ValueError("no such luck")


HERE = "tests.test_tasks" if __name__.startswith("tests.") else __name__


def custom(name: str, **options: Any) -> Custom:
    return Custom(function={"_target_": f"{HERE}.{name}", **options}, metric="above", tolerance=0.01)


def test_custom_task() -> None:
    values = torch.tensor([0.1, 0.6, 0.7, 0.9])
    task = custom("fraction_above", limit=0.65)
    found = task.evaluate(identity, [(values, None)])
    assert list(found.metrics) == ["above", "mean"]
    assert found.metrics == {"above": 0.5, "mean": pytest.approx(0.575)}
    assert found.scores.tolist() == [[0], [0], [1], [1]]
    consistent(task, found)
    assert custom("fraction_above", scored=False).evaluate(identity, [(values, None)]).scores is None
    assert Custom(function={}, metric="x", tolerance=0, higher=False).higher_is_better is False


def test_custom_tasks_that_fail() -> None:
    values = [(torch.zeros(3), None)]
    for task, message in (
        (custom("fails"), "raised ValueError: no such luck"),
        (custom("nowhere"), "cannot be found"),
        (custom("identity"), "raised TypeError"),
        (Custom(function={"_target_": f"{HERE}.fraction_above"}, metric="below", tolerance=0), "'below'"),
        (Custom(function={}, metric="x", tolerance=0), "_target_"),
    ):
        with pytest.raises(TrackerError, match=message):
            task.evaluate(identity, values)


# --- the drop ---


@pytest.mark.parametrize(
    ("task", "better", "worse"),
    [
        (Classification(), 0.9, 0.8),
        (SuperResolution(), 37.0, 36.0),
        (LanguageModelling(), 12.0, 20.0),
        (Regression(), 0.9, 0.5),
        (Regression(metric="rmse"), 1.0, 2.0),
        (Regression(metric="mae"), 1.0, 2.0),
        (Custom(function={}, metric="x", higher=False, tolerance=0), 1.0, 2.0),
        (Custom(function={}, metric="x", tolerance=0), 2.0, 1.0),
    ],
    ids=repr,
)
def test_worse_is_a_positive_drop(task: Task, better: float, worse: float) -> None:
    assert task.drop(better, worse) == pytest.approx(abs(better - worse))
    assert task.drop(worse, better) == pytest.approx(-abs(better - worse))


# --- the bootstrap ---


def column(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float64).reshape(-1, 1)


def test_identical_scores_have_no_interval() -> None:
    scores = column(np.random.default_rng(0).random(50))
    assert drop_interval(Classification(), scores, scores.copy(), 0.95, 200, 0) == (0, 0)


def test_the_bootstrap_of_paired_differences_is_nearly_normal() -> None:
    """400 images, of which 20 are lost and 8 are won: the drop is 0.03, its deviation known."""
    anchor, decoded = np.ones(400), np.ones(400)
    decoded[:20] = 0
    anchor[20:28] = 0
    anchor[100:200] = decoded[100:200] = 0  # wrong before and after
    low, high = drop_interval(Classification(), column(anchor), column(decoded), 0.95, 4000, 0)
    deviation = (anchor - decoded).std() / 20
    assert low == pytest.approx(0.03 - 1.96 * deviation, abs=0.002)
    assert high == pytest.approx(0.03 + 1.96 * deviation, abs=0.002)
    unpaired = 2 * 1.96 * np.sqrt((anchor.var() + decoded.var()) / 400)
    assert high - low < unpaired / 2
    narrow = drop_interval(Classification(), column(anchor), column(decoded), 0.5, 4000, 0)
    assert narrow[1] - narrow[0] == pytest.approx(2 * norm.ppf(0.75) * deviation, abs=0.002)


def test_the_interval_covers_as_often_as_it_says() -> None:
    generator, covered = np.random.default_rng(5), 0
    for trial in range(120):
        difference = generator.normal(0.1, 1, 60)
        low, high = drop_interval(Classification(), column(difference), column(np.zeros(60)), 0.9, 200, trial)
        covered += low <= 0.1 <= high
    assert 0.9 - 0.1 < covered / 120 < 0.9 + 0.08  # three standard deviations


def test_the_interval_of_a_metric_that_is_no_mean() -> None:
    """RMSE of constant errors: any draw gives the same drop."""
    scores = np.array([[4.0, 2.0, value] for value in range(10)])
    worse = np.array([[9.0, 3.0, value] for value in range(10)])
    low, high = drop_interval(Regression(metric="rmse"), scores, worse, 0.95, 200, 0)
    assert (low, high) == (pytest.approx(1), pytest.approx(1))
    tokens = np.array([[8 * np.log(10), 8.0], [2 * np.log(10), 2.0]] * 4)
    longer = np.array([[8 * np.log(30), 8.0], [2 * np.log(30), 2.0]] * 4)
    low, high = drop_interval(LanguageModelling(), tokens, longer, 0.95, 200, 0)
    assert (low, high) == (pytest.approx(20), pytest.approx(20))


def test_the_seed_makes_the_bootstrap_repeatable() -> None:
    generator = np.random.default_rng(6)
    pair = column(generator.random(40)), column(generator.random(40))
    first = drop_interval(Classification(), *pair, 0.95, 300, 7)
    assert first == drop_interval(Classification(), *pair, 0.95, 300, 7)
    assert first != drop_interval(Classification(), *pair, 0.95, 300, 8)


# --- the decision ---


def decision(anchor: Any, decoded: Any, tolerance: float, confidence: float | None = None, scored: bool = True) -> Any:
    task = Classification(tolerance=tolerance)
    settings = SimpleNamespace(transparency=Transparency(confidence=confidence), seed=0)
    job: Any = SimpleNamespace(task=task, settings=settings)

    def evaluation(values: Any) -> Evaluation:
        return Evaluation({"top1": float(np.mean(values))}, column(values) if scored else None)

    return decide(job, evaluation(anchor), evaluation(decoded))


def test_without_confidence_the_drop_decides() -> None:
    anchor, decoded = np.ones(200), np.ones(200)
    decoded[0] = 0
    assert decision(anchor, decoded, 0.005).transparent  # 1 - 0.995 is a little more than 0.005 in floating point
    decoded[1] = 0
    found = decision(anchor, decoded, 0.005)
    assert not found.transparent
    assert found.drop == pytest.approx(0.01)
    assert found.interval[0] <= 0.01 <= found.interval[1]
    assert decision(decoded, anchor, 0.0).transparent


def test_with_confidence_the_upper_end_decides() -> None:
    anchor, decoded = np.ones(400), np.ones(400)
    decoded[:8] = 0  # a drop of 0.02, its upper end near 0.035
    upper = decision(anchor, decoded, 0.02, 0.95).interval[1]
    assert 0.03 < upper < 0.04
    assert decision(anchor, decoded, 0.021).transparent
    assert not decision(anchor, decoded, 0.021, 0.95).transparent
    assert not decision(anchor, decoded, upper - 0.001, 0.95).transparent
    assert decision(anchor, decoded, upper + 0.001, 0.95).transparent
    assert decision(anchor, anchor, 0.0, 0.95).transparent


def test_confidence_needs_scores() -> None:
    values = np.ones(10)
    assert decision(values, values, 0.0, scored=False).interval is None
    with pytest.raises(TrackerError, match=r"transparency\.confidence=0\.9"):
        decision(values, values, 0.0, 0.9, scored=False)
    with pytest.raises(TrackerError, match="at least two samples"):
        decision(values[:1], values[:1], 0.0, 0.9)


@pytest.mark.parametrize("confidence", [None, 0.95])
@pytest.mark.parametrize("bad", [[np.nan] * 10, [1.0] * 9 + [np.nan]])
def test_nan_is_never_transparent(confidence: float | None, bad: list[float]) -> None:
    found = decision(np.zeros(10), bad, 1e9, confidence)
    assert np.isnan(found.drop)
    assert not found.transparent
    assert not decision(bad, np.zeros(10), 1e9, confidence).transparent
