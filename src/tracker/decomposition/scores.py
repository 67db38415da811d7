"""Scores of a greedy search: how they are measured (agreement with the anchor), and where they are kept (the cache)."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.cache import cache_folder
from tracker.errors import TrackerError
from tracker.evaluation import KEPT_BYTES
from tracker.frameworks import load_framework
from tracker.nested import cloned, on_device, tensor_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from tracker.codecs.base import Context

WORST = -1.0


class Agreement:
    """How well a model's outputs agree with the anchor's on calibration inputs: no labels are needed.

    Inputs and the anchor's outputs are kept, up to 256 MiB; what is beyond is made again each time.
    """

    def __init__(self, context: Context, batches: int | None) -> None:
        """Agreement on some batches of a context's calibration inputs.

        Args:
            context: has the anchor, its `predict`, and the measure.
            batches: how many; None for all.

        Raises:
            TrackerError: there is no measure.
        """
        if context.agreement is None:
            raise TrackerError("the task has no agreement(), by which a transform's scores are measured; add one to it")
        self.context, self.batches, self.measure = context, batches, context.agreement
        self.framework = load_framework(context.framework)
        self.anchor: Any = None
        self.kept: list[tuple[Any, Tensor]] = []
        self.complete = False

    def __call__(self, model: Any) -> float:
        """The mean over all samples: 1 for equal outputs.

        A score that is no number, or below -1, counts as -1: a search bisects the range of scores, and one that is off
        by orders of magnitude would leave it blind to all others.

        Args:
            model: on the context's device, in evaluation mode.

        Raises:
            TrackerError: there are no calibration inputs.
        """
        import torch

        total, samples = 0.0, 0
        dtype = self.framework.dtype(model)
        with torch.inference_mode():
            for inputs, reference in self._pairs():
                output = self.context.predict(model, on_device(inputs, self.context.device, dtype))
                score = self.measure(output.float().cpu(), reference)
                total += len(reference) * (max(score, WORST) if math.isfinite(score) else WORST)
                samples += len(reference)
        if not samples:
            raise TrackerError("there are no calibration inputs to measure agreement on; add some to the data")
        return total / samples

    def _pairs(self) -> Iterator[tuple[Any, Tensor]]:
        """Inputs and the anchor's outputs, on the CPU."""
        yield from ((cloned(inputs), reference) for inputs, reference in self.kept)
        if self.complete:
            return
        if self.anchor is None:
            # A copy: the anchor's own model stays where it is.
            copied = self.framework.copy(self.context.anchor)
            self.anchor = self.framework.ready(copied, self.context.device)
        dtype = self.framework.dtype(self.anchor)
        size = sum(map(tensor_bytes, self.kept))
        full = False
        for inputs in itertools.islice(self.context.calibration(), len(self.kept), self.batches):
            kept = cloned(inputs)
            output = self.context.predict(self.anchor, on_device(inputs, self.context.device, dtype))
            pair = (kept, output.float().cpu())
            size += tensor_bytes(pair)
            full = full or size > KEPT_BYTES
            if not full:
                self.kept.append(pair)
            yield cloned(kept), pair[1]
        if not full:
            self.complete, self.anchor = True, None


class Scores:
    """Scores by layer and rank, in a file of the cache: what a stopped run has measured is there for the next."""

    def __init__(self, key: str) -> None:
        self.path = cache_folder() / f"scores-{key}.json"
        self.known = self._read()

    def get(self, layer: str, rank: int) -> float | None:
        """A score; None where it is not known."""
        return self.known.get(layer, {}).get(str(rank))

    def put(self, layer: str, rank: int, score: float) -> None:
        """Keep a score: the file is whole at any time, and other processes' scores stay in it."""
        from filelock import FileLock

        with FileLock(self.path.with_suffix(".lock")):
            for name, scores in self._read().items():
                self.known.setdefault(name, {}).update(scores)
            self.known.setdefault(layer, {})[str(rank)] = score
            partial = self.path.with_suffix(f".{os.getpid()}.partial")
            try:
                partial.write_text(json.dumps(self.known), encoding="utf-8")
                partial.replace(self.path)
            finally:
                partial.unlink(missing_ok=True)

    def _read(self) -> dict[str, dict[str, float]]:
        """The file's scores; none where there is no file, or it is not as `put` writes it."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return {
                str(layer): {str(int(rank)): float(score) for rank, score in scores.items() if math.isfinite(score)}
                for layer, scores in found.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


def scores_key(context: Context, model: Any, tensors: Mapping[str, Tensor], *parts: object) -> str:
    """SHA-256 (hex) over what a layer's score at a rank depends on.

    Args:
        context: its key covers the anchor, the task, and the calibration data.
        model: the one whose layers are decomposed.
        tensors: the model's.
        parts: how it is decomposed and measured.
    """
    from tracker.models import weights_digest

    architecture = load_framework(context.framework).describe(model)
    words = [context.key(), weights_digest(tensors), architecture, *map(str, parts)]
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """A file of a stage's folder, for people."""
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
