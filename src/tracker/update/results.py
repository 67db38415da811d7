"""What each update gave, as metrics by step, a table and a chart."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.memory import peak_memory_mib
from tracker.scenarios.decision import Decision
from tracker.scenarios.job import Job
from tracker.tasks.base import Evaluation
from tracker.tracking import summary

if TYPE_CHECKING:
    from tracker.scenarios.bench import Bench
    from tracker.tracking.run import Run
    from tracker.update.options import Options

log = logging.getLogger("tracker")


@dataclass(frozen=True)
class Step:
    """A checkpoint on its way.

    Attributes:
        number: from 0.
        name: of the checkpoint.
        update: bytes of what was sent for it.
        repair: bytes of a whole model that had to follow; 0 where none had to.
        whole: bytes of the same checkpoint as a whole model, by the same codec.
        model: bytes of its float tensors as float32.
        reference: the checkpoint's own performance.
        decoded: that of what the receiver has.
        decision: what follows from the two.
        lost: whether the update did not reach the receiver.
        seconds: by part.
        state: digest of what the receiver has.
    """

    number: int
    name: str
    update: int
    repair: int
    whole: int
    model: int
    reference: Evaluation
    decoded: Evaluation
    decision: Decision
    lost: bool
    seconds: Mapping[str, float]
    state: str

    @property
    def bytes(self) -> int:
        """All that was sent."""
        return self.update + self.repair


def metrics(step: Step, before: Sequence[Step], primary: str) -> dict[str, float]:
    """Of one step."""
    total = sum(one.bytes for one in before) + step.bytes
    return {
        "update/bytes": step.bytes,
        "update/rate_percent": 100 * step.bytes / step.model,
        "update/whole_bytes": step.whole,
        "update/of_whole": step.bytes / step.whole,
        "update/cumulative_bytes": total,
        "update/repaired": float(step.repair > 0),
        "performance/anchor": step.reference.metrics[primary],
        "performance/decoded": step.decoded.metrics[primary],
        "performance/drop": step.decision.drop,
        "performance/transparent": float(step.decision.transparent),
        **{f"time/{part}_s": seconds for part, seconds in step.seconds.items()},
    }


def log_step(run: Run, step: Step, before: Sequence[Step], primary: str) -> None:
    """Metrics of a step, by its number."""
    run.log_metrics(metrics(step, before, primary), step.number)


def total(steps: Sequence[Step]) -> dict[str, float]:
    """What all updates together come to; the first checkpoint is whole in any mode, and counts only in the size."""
    updates = steps[1:]
    sent, whole = sum(one.bytes for one in updates), sum(one.whole for one in updates)
    return {
        "size/bitstream_bytes": sum(one.bytes for one in steps),
        "size/anchor_bytes": sum(one.model for one in steps),
        "size/rate_percent": 100 * sum(one.bytes for one in steps) / sum(one.model for one in steps),
        "update/saving_percent": 100 * (1 - sent / whole),
        "update/mean_bytes": sent / len(updates),
        "update/worst_drop": max(one.decision.drop for one in steps),
        "update/transparent": float(all(one.decision.transparent for one in steps)),
        "memory/peak_mib": peak_memory_mib(),
    }


def rows(steps: Sequence[Step], primary: str) -> list[dict[str, Any]]:
    """The table updates.json."""
    return [
        {
            "step": step.number,
            "checkpoint": step.name,
            **metrics(step, steps[:index], primary),
            "lost": step.lost,
            "state": step.state,
        }
        for index, step in enumerate(steps)
    ]


def run_name(job: Job, options: Options) -> str:
    """Such as ``difference nnc qp=-28``."""
    return job.settings.tracking.run_name or f"{options.mode} {summary.run_name(job)}"[:250]


def log_all(run: Run, bench: Bench, steps: Sequence[Step]) -> dict[str, float]:
    """The totals, the table and the chart."""
    from tracker.update.chart import Subject, draw

    task = bench.job.task
    found = {**total(steps), "time/total_s": bench.job.seconds()}
    run.log_metrics(found)
    table = rows(steps, task.primary)
    run.log_table(table, "updates.json")
    with tempfile.TemporaryDirectory(dir=bench.job.folder) as folder:
        subject = Subject(f"{bench.job.anchor.name}: model updates", task.primary, task.tolerance)
        draw({run.name: table}, subject, Path(folder), "updates")
        run.log_folder(Path(folder), "plots")
    transparent = str(bool(found["update/transparent"])).lower()
    run.set_tags({"tracker.transparent": transparent, "tracker.metric": task.primary})
    return found


def show(bench: Bench, run: Run, updates: int, found: Mapping[str, float]) -> None:
    """The lines at the end of a run.

    Args:
        bench: of the anchor.
        run: that has ended.
        updates: how many were sent.
        found: of `log_all`.
    """
    task = bench.job.task
    log.info(
        "%s · %s: %d updates of %s bytes in the mean, %.1f %% less than whole models; %s bytes with the first model",
        bench.job.anchor.name,
        run.name,
        updates,
        f"{found['update/mean_bytes']:,.0f}",
        found["update/saving_percent"],
        f"{found['size/bitstream_bytes']:,}",
    )
    verdict = "all steps transparent" if found["update/transparent"] else "NOT all steps transparent"
    log.info(
        "%s: largest drop %.4g: %s (tolerance %g)", task.primary, found["update/worst_drop"], verdict, task.tolerance
    )
    log.info("run %s · %s", run.id, summary.ui_command(bench.uri))
