"""The bound by which an evaluation stops early: it may not reject what the full evaluation would accept."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t

from tracker.anchors.digits import Digits
from tracker.codecs.records import Target
from tracker.data.digits import Digits as DigitsData
from tracker.evaluation import Batches, evaluate
from tracker.scenarios.decision import Judge, likely
from tracker.scenarios.mixed import Mixed
from tracker.settings import Aim, Transparency
from tracker.tasks.base import Evaluation
from tracker.tasks.chances import LARGEST, SMALLEST, temperature
from tracker.tasks.classification import Classification
from tracker.tasks.rejection import Rejection
from tracker.tasks.super_resolution import SuperResolution


def drops(worse: int, better: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Per-sample drops of a top-1 accuracy: 1 where only the anchor is right, -1 where only the model is."""
    values = np.zeros(count)
    values[:worse], values[worse : worse + better] = 1, -1
    return generator.permutation(values)


@pytest.mark.parametrize(("worse", "better", "count"), [(25, 20, 1000), (105, 100, 1000), (5, 0, 1000), (60, 55, 1000)])
def test_a_model_at_the_tolerance_is_rejected_no_more_often_than_stated(worse: int, better: int, count: int) -> None:
    """The hardest case: a drop of exactly the tolerance. Ville's inequality allows 1 - confidence."""
    generator = np.random.default_rng(0)
    confidence, repeats = 0.9, 600
    rejected = sum(
        Rejection(0.005, -1, 1, count, confidence).add(drops(worse, better, count, generator)) for _ in range(repeats)
    )
    assert rejected <= repeats * (1 - confidence) + 3 * np.sqrt(repeats * confidence * (1 - confidence))


def test_a_hopeless_model_is_rejected_after_few_samples() -> None:
    generator = np.random.default_rng(0)
    rejection = Rejection(0.005, -1, 1, 5000, 0.999)
    assert rejection.add(drops(3000, 50, 5000, generator))
    assert rejection.seen < 60
    assert rejection.drop > 0.3


def test_what_cannot_be_made_good_any_more_is_rejected_for_certain() -> None:
    """Six samples lost of 1000, and all of the others could at best be no worse: the range is 0 to 1."""
    rejection = Rejection(0.005, 0, 1, 1000, 0.999999)
    lost = np.zeros(1000)
    lost[:6] = 1
    assert rejection.add(lost)
    assert rejection.seen <= 7


def test_a_transparent_model_is_looked_at_to_the_end() -> None:
    generator = np.random.default_rng(0)
    rejection = Rejection(0.005, -1, 1, 5000, 0.999)
    assert not rejection.add(drops(100, 110, 5000, generator))
    assert rejection.seen == 5000
    assert rejection.drop == pytest.approx(-10 / 5000)


@pytest.fixture(scope="module")
def job(cache: object) -> Any:
    """What `Mixed` and `Judge` need of one: the digits, in small batches."""
    settings = SimpleNamespace(target=Aim(), transparency=Transparency(), seed=0)
    task = Classification(batch_size=16)
    return SimpleNamespace(anchor=Digits(name="digits"), task=task, data=DigitsData(), settings=settings)


@pytest.fixture(scope="module")
def trained(job: Any) -> torch.nn.Module:
    model = job.anchor.build()
    model.load_state_dict(dict(job.anchor.weights()))
    return model


def test_a_split_in_random_order_is_left_early_and_else_gives_what_it_gives_in_its_own(
    job: Any, trained: torch.nn.Module
) -> None:
    samples = job.data.samples("search")
    mixed = Mixed(job, samples, "cpu")
    plain = evaluate(job.anchor, trained, job.task, Batches(samples, job.anchor, job.task), "cpu", "plain")
    assert plain.scores is not None
    whole = mixed.whole(trained, "whole")
    again = mixed.evaluate(trained, plain, 0.005, 0.95, "whole")
    for found in (whole, again):
        assert isinstance(found, Evaluation) and found.metrics == plain.metrics
        assert np.array_equal(found.scores, plain.scores)
    left = mixed.evaluate(job.anchor.build(), plain, 0.005, 0.95, "left")
    assert isinstance(left, Rejection) and left.seen < len(samples) / 4 and left.drop > 0.3


def test_only_a_target_drop_lets_a_judge_leave_early(job: Any, trained: torch.nn.Module) -> None:
    torch.manual_seed(0)
    poor = job.anchor.build()
    samples = job.data.samples("search")
    found = evaluate(job.anchor, poor, job.task, Batches(samples, job.anchor, job.task), "cpu", "poor")
    by_bytes = Judge(job, trained, "cpu", Target(0.005, bytes=1000))
    exact = by_bytes.anchor.metrics["top1"] - found.metrics["top1"]
    assert by_bytes(poor).drop == pytest.approx(exact)
    by_drop = Judge(job, trained, "cpu", Target(0.005))
    assert by_drop(poor).bound > 0.005 and by_drop(poor).drop != pytest.approx(exact, abs=1e-4)
    assert by_drop(trained).drop == 0 and by_drop(trained).bound == pytest.approx(0.0)


def test_the_likely_drop_is_that_of_another_split_as_often_as_stated() -> None:
    """Soft drops are less noisy than the drops of a metric that they follow; both have the same mean."""
    generator, count, mean, held = np.random.default_rng(0), 500, 0.01, 0
    task = Classification(name="classification")
    for _ in range(400):
        here, there = (generator.choice([-1.0, 0.0, 1.0], count, p=[0.05, 0.89, 0.06]) for _ in range(2))
        soft = 0.5 * here + generator.normal(mean / 2, 0.05, count)
        anchor = Evaluation({"top1": 0.5}, np.full((count, 1), 0.5), soft=np.full(count, 0.5))
        found = Evaluation({"top1": 0.5}, 0.5 - here[:, None], soft=0.5 - soft)
        held += there.mean() <= likely(task, anchor, found, 0.84)[0]
    assert held / 400 == pytest.approx(0.84, abs=0.05)


def test_a_drop_that_noise_does_not_explain_is_no_likely_one() -> None:
    """Where soft scores see nothing of what the metric lost, its lower limit is the bound."""
    scores = np.concatenate([np.zeros(40), np.ones(360)])
    same = np.full(400, 0.8)
    anchor = Evaluation({"top1": 1.0}, np.ones((400, 1)), soft=same)
    found = Evaluation({"top1": 0.9}, scores[:, None], soft=same)
    deviation = float(np.sqrt(0.1 * 0.9 / 399))
    bound, systematic = likely(Classification(name="classification"), anchor, found, 0.84)
    assert bound == systematic == pytest.approx(0.1 - 0.9945 * deviation, rel=1e-2)


def test_the_systematic_drop_is_that_of_soft_scores_on_another_split_as_often_as_stated() -> None:
    """However many single answers change: what they add to the drop there is not in it."""
    generator, count, held = np.random.default_rng(0), 500, 0
    task = Classification(name="classification")
    for _ in range(400):
        hard = generator.choice([-1.0, 0.0, 1.0], count, p=[0.25, 0.5, 0.25])
        soft, there = (generator.normal(0.02, 0.1, count) for _ in range(2))
        anchor = Evaluation({"top1": 0.5}, np.full((count, 1), 0.5), soft=np.full(count, 0.5))
        found = Evaluation({"top1": 0.5}, 0.5 - hard[:, None], soft=0.5 - soft)
        bound, systematic = likely(task, anchor, found, 0.84)
        held += there.mean() <= systematic
        assert systematic <= bound
    assert held / 400 == pytest.approx(0.84, abs=0.06)


def test_soft_scores_take_probabilities_that_are_true_whatever_the_outputs_are(job: Any) -> None:
    """Classes drawn from known probabilities: logits that are three times too large are divided by three."""
    generator = torch.Generator().manual_seed(0)
    truth = 1.5 * torch.randn(20_000, 5, generator=generator)
    labels = truth.softmax(1).multinomial(1, generator=generator)[:, 0]
    other = truth + 0.3 * torch.randn(truth.shape, generator=generator)
    missed = other.softmax(1) - torch.eye(5)[labels]

    def evaluated(task: Any, outputs: torch.Tensor) -> Evaluation:
        return task.evaluate(lambda _: outputs, [(None, labels)])

    for outputs, others in ((3 * truth, 3 * other), (0.5 * truth, 0.5 * other), ((2 * truth).softmax(1), 2 * other)):
        given = evaluated(job.task, outputs)
        assert given.soft is None
        task, anchor = job.task.calibrated(outputs, given)
        assert anchor.metrics == given.metrics
        # A calibrated network's mean score follows from its probabilities alone.
        assert anchor.soft.mean() == pytest.approx(float((1 + truth.softmax(1).square().sum(1)).mean() / 2), abs=0.01)
        assert evaluated(task, others).soft == pytest.approx((1 - missed.square().sum(1) / 2).numpy(), abs=0.02)


def test_outputs_that_no_temperature_makes_true_are_judged_by_the_metric_alone(job: Any) -> None:
    """All the same but for a class that is never right: no temperature makes it as unlikely as it is."""
    labels = torch.arange(100) % 4
    outputs = torch.nn.functional.one_hot((labels + 1) % 4, 4).float() * 40
    task, found = job.task.calibrated(outputs, job.task.evaluate(lambda _: outputs, [(None, labels)]))
    assert task is job.task and found.soft is None
    outputs[3] = torch.nan
    task, found = job.task.calibrated(outputs, found)
    assert task is job.task and found.soft is None
    plain = dataclasses.replace(found, extras={})
    assert job.task.calibrated(torch.randn(100, 4), plain) == (job.task, plain)


def test_few_samples_that_are_all_right_leave_a_temperature_within_its_limits() -> None:
    logits = 5 * torch.eye(3)
    assert temperature(logits, torch.arange(3)) == pytest.approx(SMALLEST, rel=1e-3)
    assert temperature(100 * logits, torch.tensor([1, 2, 0])) == pytest.approx(LARGEST, rel=1e-3)


class Grey(SuperResolution):
    """Of tensors."""

    def target(self, sample: Any) -> Any:
        return sample


def test_a_judge_of_images_takes_the_distance_to_the_anchors_outputs() -> None:
    """Six images of which each has another error: what is compared must be the same image."""
    generator = torch.Generator().manual_seed(0)
    originals = [0.5 + 0.01 * torch.randn(1, 24, 24, generator=generator) for _ in range(6)]
    given = [one + 0.01 * (1 + n) * torch.randn(1, 24, 24, generator=generator) for n, one in enumerate(originals)]
    task = Grey(batch_size=2)
    anchor = SimpleNamespace(
        name="same",
        framework="pytorch",
        images_channels_last=False,
        predict=lambda model, inputs: model(inputs),
        preprocess=lambda sample: sample,
    )
    data = SimpleNamespace(samples=lambda split: list(zip(given, originals, strict=True)))
    settings = SimpleNamespace(target=Aim(), transparency=Transparency(), seed=0)
    job: Any = SimpleNamespace(anchor=anchor, task=task, data=data, settings=settings)

    class Off(torch.nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = torch.nn.Parameter(torch.tensor(by))

        def forward(self, inputs: Any) -> Any:
            return inputs + self.by * torch.cos(torch.arange(24.0))

    judge, other = Judge(job, Off(0.0), "cpu", Target(0.1)), Off(0.004)
    assert judge.follows and judge(Off(0.0)).bound == pytest.approx(0.0, abs=1e-9)
    with torch.no_grad():
        outputs = [other(one) for one in given]
    inner = slice(2, -2)

    def squared(ones: list[Any], others: list[Any]) -> np.ndarray:
        pairs = zip(ones, others, strict=True)
        return np.array([float((a - b).square()[..., inner, inner].mean()) for a, b in pairs])

    before, after, apart = squared(given, originals), squared(outputs, originals), squared(outputs, given)
    soft, hard = 10 * np.log10(1 + apart / before), 10 * np.log10(after / before)
    noise = t.ppf(0.84, 5) / np.sqrt(6) * np.hypot(soft.std(ddof=1), hard.std(ddof=1))
    found = judge(other)
    assert found.drop == pytest.approx(hard.mean(), abs=1e-4)
    assert found.bound == pytest.approx(soft.mean() + noise, abs=1e-4)
