"""Is the decoded model transparent?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tracker.codecs.records import Judged, Target
from tracker.errors import TrackerError
from tracker.scenarios.job import Job
from tracker.scenarios.mixed import Mixed
from tracker.tasks.base import ROUNDING, Evaluation, Task
from tracker.tasks.bootstrap import drop_interval
from tracker.tasks.rejection import Rejection

CERTAIN = 0.95  # that a model is not given up early whose drop on the whole split is within the target
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


class Judge:
    """What the search split says of models, for stages that find the working point themselves."""

    def __init__(self, job: Job, anchor: Any, device: str, target: Target) -> None:
        """Nothing is evaluated yet.

        Args:
            job: its task and what it asks for.
            anchor: the anchor's model.
            device: to compute on.
            target: that decisions are about.
        """
        self.job, self.model, self.device, self.target = job, anchor, device, target

    @cached_property
    def mixed(self) -> Mixed:
        """The search split, decoded once."""
        return Mixed(self.job, self.job.data.samples("search"), self.device)

    @cached_property
    def anchor(self) -> Evaluation:
        """The anchor's performance on it."""
        return self.mixed.anchor(self.model, "anchor on the search split")

    @cached_property
    def follows(self) -> bool:
        """Whether there are soft scores, which tell about what the primary metric does."""
        return self.anchor.scores is not None and self.anchor.soft is not None

    def __call__(self, model: Any) -> Judged:
        """Evaluate a model; only a part, where it is clear from that that its drop is beyond the target.

        Raises:
            TrackerError: it cannot take the inputs, or its outputs cannot be scored.
        """
        job, task, wanted = self.job, self.job.task, self.job.settings.target
        before, certain = self.anchor, CERTAIN if self.target.bytes is None else None
        soft = wanted.confidence is not None and self.follows
        after = self.mixed.evaluate(model, before, self.target.drop, certain, "search split", soft)
        if isinstance(after, Rejection):
            return _judged(after.drop, max(after.drop, self.target.drop + 2 * ROUNDING))
        drop = task.drop(before.metrics[task.primary], after.metrics[task.primary])
        given, found = before.scores, after.scores
        if wanted.confidence is None or given is None or found is None or not len(given) == len(found) > 1:
            return _judged(drop, drop)
        if soft and before.soft is not None and after.soft is not None:
            return Judged(drop, *likely(task, before, after, wanted.confidence))
        two_sided = max(2 * wanted.confidence - 1, 1e-6)
        draws = job.settings.transparency.resamples
        upper = drop_interval(task, given, found, two_sided, draws, job.settings.seed)[1]
        # Another split of the same size has as much noise again.
        margin = math.sqrt(2) * max(upper - drop, 0.0) * expansion(len(given), wanted.confidence)
        return _judged(drop, drop + margin)


def _judged(drop: float, bound: float) -> Judged:
    return Judged(drop, bound, bound)


def likely(task: Task, anchor: Evaluation, found: Evaluation, confidence: float) -> tuple[float, float]:
    """The largest drop that is likely on another split of the same size, by the mean of the soft scores.

    It has a margin for the noise of both means: the soft one is measured here, and the primary metric's will be there.
    Where the primary metric's drop is larger than its own noise explains, that is the bound.

    Args:
        task: whose primary metric is the mean of the first column of scores.
        anchor: with scores and soft scores.
        found: the same of the model, on the same samples.
        confidence: one-sided.

    Returns:
        That, and the same without the noise that the primary metric will have.
    """
    from scipy.stats import t

    assert anchor.scores is not None and found.scores is not None
    assert anchor.soft is not None and found.soft is not None
    sign = 1 if task.higher_is_better else -1
    smooth, hard = sign * (anchor.soft - found.soft), sign * (anchor.scores[:, 0] - found.scores[:, 0])
    count = len(hard)
    margin = float(t.ppf(confidence, count - 1)) / math.sqrt(count)
    noise, own = margin * float(smooth.std(ddof=1)), margin * float(hard.std(ddof=1))
    soft, unexplained = float(smooth.mean()), float(hard.mean()) - own
    again = min(noise, own)  # that of the soft score on the other split
    return max(soft + math.hypot(noise, own), unexplained), max(soft + math.hypot(noise, again), unexplained)


def expansion(count: int, confidence: float) -> float:
    """By how much a percentile interval of few samples is too narrow (Hesterberg 2015, "What Teachers Should Know About
    the Bootstrap", section 4.1): Student's quantile over the normal one, and the bias of the deviation.

    Args:
        count: of samples, at least 2.
        confidence: one-sided, at least 0.5.
    """
    from scipy.stats import norm, t

    if confidence <= 0.5:
        return 1.0
    return float(t.ppf(confidence, count - 1) / norm.ppf(confidence) * math.sqrt(count / (count - 1)))
