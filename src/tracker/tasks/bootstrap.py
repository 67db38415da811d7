"""The drop's confidence interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from tracker.tasks.base import Task


def drop_interval(
    task: Task, anchor: np.ndarray, decoded: np.ndarray, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """The paired percentile bootstrap of the drop (Efron and Tibshirani 1993, chapter 13).

    Samples are drawn with replacement, the same ones for anchor and decoded model, and the primary metric's drop is
    taken of each draw.

    Args:
        task: gives the metric over samples and its direction.
        anchor: the anchor's scores, shape (N, K).
        decoded: the decoded model's scores on the same samples, shape (N, K).
        confidence: the interval's coverage, in 0..1; two-sided.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        The lower and the upper end, in the metric's unit; NaN where a score is.
    """
    import numpy as np
    from scipy.stats import bootstrap

    def drop(drawn: np.ndarray) -> float:
        return task.drop(task.performance(anchor[drawn]), task.performance(decoded[drawn]))

    if np.isnan(anchor).any() or np.isnan(decoded).any():
        return float("nan"), float("nan")
    samples = np.arange(len(anchor))
    generator = np.random.default_rng(seed)
    interval = bootstrap(
        (samples,),
        drop,
        n_resamples=resamples,
        batch=100,
        vectorized=False,
        confidence_level=confidence,
        method="percentile",
        rng=generator,
    ).confidence_interval
    return float(interval.low), float(interval.high)
