"""Is the decoded model transparent?"""

from __future__ import annotations

from dataclasses import dataclass

from tracker.errors import TrackerError
from tracker.scenarios.job import Job
from tracker.tasks.base import Evaluation
from tracker.tasks.bootstrap import drop_interval

SHOWN_CONFIDENCE = 0.95  # of the interval that is logged where the configuration does not ask for one


@dataclass(frozen=True)
class Decision:
    """The drop and what follows from it.

    Attributes:
        drop: in the primary metric's unit, worse is positive.
        interval: its two-sided confidence interval, where there are per-sample scores.
        confidence: of the interval.
        transparent: the drop (or, if the configuration asks for confidence, the interval's upper end) is within the
            tolerance.
    """

    drop: float
    interval: tuple[float, float] | None
    confidence: float
    transparent: bool


def decide(job: Job, anchor: Evaluation, decoded: Evaluation) -> Decision:
    """Compare a decoded model's performance with its anchor's.

    Raises:
        TrackerError: confidence is asked for, but the task has no per-sample scores.
    """
    task, wanted = job.task, job.settings.transparency
    confidence = wanted.confidence or SHOWN_CONFIDENCE
    drop = task.drop(anchor.metrics[task.primary], decoded.metrics[task.primary])
    interval = None
    if anchor.scores is not None and decoded.scores is not None and len(anchor.scores) == len(decoded.scores) > 1:
        interval = drop_interval(task, anchor.scores, decoded.scores, confidence, wanted.resamples, job.settings.seed)
    if wanted.confidence is not None and interval is None:
        raise TrackerError(
            f"transparency.confidence={wanted.confidence} needs scores of at least two samples, and the task "
            f"{task.name} gives none; leave it out, or return scores from task.function"
        )
    bound = interval[1] if wanted.confidence is not None and interval is not None else drop
    # A NaN compares as false, so a model that gives NaN is never transparent. The allowance is for the rounding of
    # a difference such as 0.81 - 0.805, which is not exactly 0.005.
    return Decision(drop, interval, confidence, bool(bound <= task.tolerance + 1e-12))
