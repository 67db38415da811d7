"""What images with channels last gain (`tracker.frameworks.layout`): evaluation and training, with and without.

    python benchmarks/layout.py --data-root FOLDER [--anchor resnet20_cifar10]

Per anchor: the ratio of the median times of an evaluation of the search split and of steps of training, measured in
turns in one process, and the largest difference of an output. Must hold: the performance is the same, and neither takes
more than 1.05 of the time. Nothing is logged.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from composed import job_of

from tracker.evaluation import Batches, Outputs, evaluate, settle_layout
from tracker.frameworks import layout
from tracker.frameworks.pytorch import FRAMEWORK
from tracker.nested import cloned
from tracker.scenarios.job import Job

TURNS, STEPS, SAMPLES = 3, 4, 48
WORST = 1.05


def ratio(work: Callable[[], Any], job: Job) -> tuple[float, list[Any]]:
    """The time with channels last over that without, and what the work gave with each of them."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    given: dict[bool, Any] = {}
    for _ in range(TURNS):
        for last in seconds:
            job.anchor.remember_layout(last)
            began = time.perf_counter()
            given[last] = work()
            seconds[last].append(time.perf_counter() - began)
    with_it, without = (statistics.median(seconds[last]) for last in (True, False))
    return with_it / without, [given[True], given[False]]


def measured(job: Job) -> bool:
    """One line of the table; whether what must hold does."""
    model = job.anchor.build()
    FRAMEWORK.fill(model, job.anchor.weights(), "the anchor's weights")
    batches = Batches(job.data.samples("search"), job.anchor, job.task)
    settle_layout(job.anchor, model.eval(), batches, "cpu")
    taken = job.anchor.images_channels_last
    first, _ = next(iter(batches))

    def evaluated() -> tuple[Any, Outputs]:
        outputs = Outputs()
        return evaluate(job.anchor, model, job.task, batches, "cpu", "evaluate", outputs).metrics, outputs

    def trained() -> None:
        for _ in range(STEPS):
            inputs = cloned(first)[:SAMPLES] if isinstance(first, torch.Tensor) else cloned(first)
            layout.predict(job.anchor, model, inputs).square().mean().backward()

    evaluation, (found, wanted) = ratio(evaluated, job)
    training, _ = ratio(trained, job)
    farthest = max(
        float((a - b).abs().max()) for a, b in zip(found[1].batches or (), wanted[1].batches or (), strict=True)
    )
    same = found[0] == wanted[0]
    print(f"| {job.anchor.name} | {taken} | {evaluation:.2f} | {training:.2f} | {farthest:.1e} | {same} |", flush=True)
    return same and (not taken or max(evaluation, training) <= WORST)


def main() -> None:
    """Measure, and end with status 1 where what must hold does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--anchor", action="append")
    chosen = parser.parse_args()
    print("| anchor | taken | evaluation | training | outputs differ by | same performance |")
    print("|---|---|---|---|---|---|")
    anchors = chosen.anchor or ["resnet20_cifar10", "resnet56_cifar10", "vdsr_set5"]
    words = [[f"anchor={name}", f"data.root={chosen.data_root.resolve()}"] for name in anchors]
    well = [measured(job_of(one, Path())) for one in words]
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
