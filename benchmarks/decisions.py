"""How much of a drop on the search split is noise: top-1 and soft scores on both splits, for many a global qp.

    python benchmarks/decisions.py --data-root FOLDER [--anchor resnet20_cifar10]

Networks that lose at most 0.02 of top-1 on the mean of both splits are compared: the correlation between the splits of
each score's drop, and of the soft scores' drop on one with top-1's drop on the other. The anchor's temperature comes
from the search split. Must hold: both are larger than that of top-1's drop between the splits. Nothing is logged.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from composed import job_of

from tracker.codecs.base import Context
from tracker.codecs.nnc import Nnc
from tracker.evaluation import Batches, Outputs, evaluate
from tracker.frameworks.pytorch import FRAMEWORK, state_tensors
from tracker.rate_distortion.approximated import approximated
from tracker.scenarios.job import Job

QPS = range(-34, -19)
SPLITS = ("search", "report")
LOST = 0.02


def measured(job: Job) -> np.ndarray:
    """Drops: shape (networks, splits, 2), of top-1 and of the soft scores."""
    anchor = job.anchor.build()
    FRAMEWORK.fill(anchor, job.anchor.weights(), "the anchor's weights")
    splits = [Batches(job.data.samples(split), job.anchor, job.task) for split in SPLITS]
    outputs = Outputs()
    found = evaluate(job.anchor, anchor, job.task, splits[0], "cpu", "evaluate", outputs)
    assert outputs.batches is not None, "the outputs are too large to be kept"
    task, _ = job.task.calibrated(torch.cat(outputs.batches), found)

    def scores(model: object) -> np.ndarray:
        found = [evaluate(job.anchor, model, task, batches, "cpu", "evaluate") for batches in splits]
        for one in found:
            assert one.scores is not None and one.soft is not None, "the task has no soft scores"
        return np.array([[one.scores.mean(), one.soft.mean()] for one in found])  # type: ignore[union-attr]

    before, rows = scores(anchor), []
    print("| qp | top-1, search | top-1, report | soft, search | soft, report |\n|---|---|---|---|---|")
    for qp in QPS:
        context = Context(job.anchor.predict, lambda: (), 0, "cpu", coder=Nnc(qp=qp), state=state_tensors)
        rows.append(before - scores(approximated(anchor, context)))
        (a, b), (c, d) = rows[-1].T
        print(f"| {qp} | {a:+.4f} | {b:+.4f} | {c:+.4f} | {d:+.4f} |", flush=True)
    return np.array(rows)


def main() -> None:
    """Measure, and end with status 1 where what must hold does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--anchor", default="resnet20_cifar10")
    chosen = parser.parse_args()
    words = [f"anchor={chosen.anchor}", f"data.root={chosen.data_root.resolve()}"]
    drops = measured(job_of(words, Path()))
    drops = drops[drops[:, :, 0].mean(1) <= LOST]

    def related(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.corrcoef(first, second)[0, 1])

    hard = related(drops[:, 0, 0], drops[:, 1, 0])
    soft = related(drops[:, 0, 1], drops[:, 1, 1])
    across = [related(drops[:, 0, 1], drops[:, 1, 0]), related(drops[:, 1, 1], drops[:, 0, 0])]
    print(f"\ncorrelation between the splits, {len(drops)} networks: top-1 {hard:.2f}, soft {soft:.2f}, ", end="")
    print(f"soft with the other split's top-1 {across[0]:.2f} and {across[1]:.2f}")
    sys.exit(0 if soft > hard and sum(across) / 2 > hard else 1)


if __name__ == "__main__":
    main()
