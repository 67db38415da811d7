"""A split in random order, on which a model is evaluated only until its drop cannot be small enough any more."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracker.data.base import Decoded, Samples
from tracker.evaluation import Batches, Outputs, evaluate, evaluate_until
from tracker.scenarios.job import Job
from tracker.tasks.base import Evaluation
from tracker.tasks.rejection import Rejection


class Mixed:
    """The samples of a split, in the random order that the test for an early end asks for."""

    def __init__(self, job: Job, samples: Samples, device: str) -> None:
        """Nothing is read yet.

        Args:
            job: its anchor and its task.
            samples: of the split.
            device: to compute on.
        """
        self.job, self.task, self.device = job, job.task, device
        self.order = np.random.default_rng(0).permutation(len(samples))
        self.batches = Batches(Decoded(self.order.tolist(), samples.__getitem__), job.anchor, job.task)
        self.references: list[Tensor] | None = None

    def anchor(self, model: Any, label: str) -> Evaluation:
        """As `whole`, of the model that others are compared with: by soft scores, where the task has some."""
        task = self.job.task
        outputs = Outputs() if task.by_outputs or task.calibrates else None
        found = evaluate(self.job.anchor, model, task, self.batches, self.device, label, outputs)
        scores = found.scores
        if outputs is not None and outputs.batches and scores is not None:
            if task.calibrates:
                self.task, found = task.calibrated(torch.cat(outputs.batches), found)
            else:
                self.references, found = outputs.batches, dataclasses.replace(found, soft=scores[:, 0])
        return self._sorted(found)

    def whole(self, model: Any, label: str, outputs: Outputs | None = None) -> Evaluation:
        """A model's performance on all samples, with scores in the data set's order and no extras."""
        job = self.job
        return self._sorted(evaluate(job.anchor, model, self.task, self.batches, self.device, label, outputs))

    def evaluate(
        self,
        model: Any,
        anchor: Evaluation,
        drop: float,
        confidence: float | None,
        label: str,
        soft: bool = False,
    ) -> Evaluation | Rejection:
        """A model's performance, unless it becomes clear on the way that the drop is too large.

        Args:
            model: of the job's anchor.
            anchor: its performance on the same samples, in the data set's order.
            drop: the largest one that is wanted.
            confidence: the probability of not rejecting what the full evaluation would accept; None to evaluate all.
            label: for the progress bar.
            soft: whether the drop is that of the soft scores.

        Returns:
            As `whole`, or why that is not known.
        """
        task, scores = self.task, _deciding(anchor, soft)
        if soft and self.references is not None:
            return self._by_outputs(model, anchor, self.references, label)
        between = task.score_range
        if confidence is None or scores is None or between is None:  # nothing would end it, so no outputs are kept
            return self.whole(model, label)
        width, expected, seen = between[1] - between[0], scores[self.order], 0
        rejection = Rejection(drop, -width, width, len(scores), confidence)

        def enough(part: Evaluation) -> bool:
            nonlocal seen
            found = _deciding(part, soft)
            if found is None:
                return False
            drops = expected[seen : seen + len(found)] - found
            seen += len(found)
            return rejection.add(drops if task.higher_is_better else -drops)

        found = evaluate_until(self.job.anchor, model, task, self.batches, self.device, label, enough)
        return rejection if found is None else self._sorted(found)

    def _by_outputs(self, model: Any, anchor: Evaluation, references: list[Tensor], label: str) -> Evaluation:
        outputs = Outputs()
        found = self.whole(model, label, outputs)
        assert anchor.scores is not None
        soft = self.job.task.soft(anchor.scores[self.order], outputs.batches or (), references)
        return dataclasses.replace(found, soft=self._in_order(soft))

    def _sorted(self, found: Evaluation) -> Evaluation:
        """With scores in the data set's order."""
        scores, soft = self._in_order(found.scores), self._in_order(found.soft)
        return dataclasses.replace(found, scores=scores, soft=soft, extras={})

    def _in_order(self, mixed: np.ndarray | None) -> np.ndarray | None:
        if mixed is None:
            return None
        found = np.empty_like(mixed)
        found[self.order] = mixed
        return found


def _deciding(found: Evaluation, soft: bool) -> np.ndarray | None:
    """The scores whose mean drop decides, shape (N,)."""
    if soft:
        return found.soft
    return None if found.scores is None else found.scores[:, 0]
