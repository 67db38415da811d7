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
        violation: how far that is beyond the tolerance; 0 or less where it is within.
    """

    drop: float
    interval: tuple[float, float] | None
    confidence: float
    transparent: bool
    violation: float = 0.0


def check_confidence(job: Job, evaluation: Evaluation) -> None:
    """Refuse to ask for confidence where there is nothing to draw from.

    Raises:
        TrackerError: the task gives no per-sample scores, or those of one sample only.
    """
    confidence = job.settings.transparency.confidence
    if confidence is not None and (evaluation.scores is None or len(evaluation.scores) < 2):
        raise TrackerError(
            f"transparency.confidence={confidence} needs scores of at least two samples, and the task "
            f"{job.task.name} gives none; leave it out, or return scores from task.function"
        )


def decide(job: Job, anchor: Evaluation, decoded: Evaluation, shown: bool = True) -> Decision:
    """Compare a decoded model's performance with its anchor's.

    Args:
        job: its task and what it asks for.
        anchor: the anchor's performance.
        decoded: the decoded model's.
        shown: whether the interval is wanted even where nothing depends on it.

    Raises:
        TrackerError: confidence is asked for, but the task has no per-sample scores.
    """
    check_confidence(job, decoded)
    task, wanted = job.task, job.settings.transparency
    confidence = wanted.confidence or SHOWN_CONFIDENCE
    drop = task.drop(anchor.metrics[task.primary], decoded.metrics[task.primary])
    interval = None
    before, after = anchor.scores, decoded.scores
    asked = shown or wanted.confidence is not None
    if asked and before is not None and after is not None and len(before) == len(after) > 1:
        interval = drop_interval(task, before, after, confidence, wanted.resamples, job.settings.seed)
    bound = max(drop, interval[1]) if wanted.confidence is not None and interval is not None else drop
    # A NaN compares as false, so a model that gives NaN is never transparent. The allowance is for the rounding of
    # a difference such as 0.81 - 0.805, which is not exactly 0.005.
    violation = task.beyond(bound)
    return Decision(drop, interval, confidence, bool(violation <= 0), violation)
