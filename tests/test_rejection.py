"""The bound by which an evaluation stops early: it may not reject what the full evaluation would accept."""

from __future__ import annotations

import numpy as np
import pytest

from tracker.tasks.rejection import Rejection


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
