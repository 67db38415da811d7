"""What a compression run found, as metrics and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracker.codecs.chain import Codec
from tracker.codecs.records import TensorRecord
from tracker.memory import peak_memory_mib
from tracker.models import mean_squared_errors
from tracker.scenarios.decision import Decision
from tracker.scenarios.draft import Draft
from tracker.scenarios.job import Job, Stopwatch
from tracker.scenarios.transforming import stage_row
from tracker.tasks.base import Evaluation
from tracker.tracking import summary

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import Tensor

    from tracker.tracking.run import Run


@dataclass(frozen=True)
class Result:
    """A compression run's findings.

    Attributes:
        job: what was run.
        codec: the chain.
        draft: the model as its transforms left it.
        reference: tensors that errors are against, by name: the anchor's; where a transform changed the architecture,
            what it gave the coder. As `Coder.restated`.
        anchor_bytes: the anchor's float tensors as float32.
        size: bytes of the bitstream.
        anchor: the anchor's performance.
        decoded: the decoded model's.
        decision: what follows from the two.
    """

    job: Job
    codec: Codec
    draft: Draft
    reference: Mapping[str, Tensor]
    anchor_bytes: int
    size: int
    anchor: Evaluation
    decoded: Evaluation
    decision: Decision

    @property
    def title(self) -> str:
        """Above plots."""
        return f"{self.job.anchor.name} · {summary.run_name(self.job)}"


def log_tensors(
    run: Run, result: Result, records: list[TensorRecord], decoded: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """The table tensors.json."""
    coded = {record.name: record for record in records}
    errors = mean_squared_errors(result.reference, decoded)
    rows = []
    for name, tensor in result.draft.tensors.items():
        record = coded.get(name)
        rows.append(
            {
                "tensor": name,
                "shape": "x".join(map(str, tensor.shape)) or "scalar",
                "stage": result.codec.coder_name if record else "side",
                "step size": record.step_size if record else None,
                "bytes": record.bytes if record else None,
                "mean squared error": errors.get(name),
            }
        )
    run.log_table(rows, "tensors.json")
    return rows


def log_stages(run: Run, result: Result, watch: Stopwatch) -> list[dict[str, Any]]:
    """The table stages.json, of what each stage of a chain gave; nothing for a coder alone."""
    if not result.draft.rows:
        return []
    name, primary = result.codec.coder_name, result.job.task.primary
    run.log_metrics({f"size/after_{name}_bytes": float(result.size)})
    seconds = watch.seconds["encode"] - sum(row["seconds"] for row in result.draft.rows)
    rows = [*result.draft.rows, stage_row(name, result.size, result.decoded.metrics[primary], result.draft, seconds)]
    run.log_table(rows, "stages.json")
    return rows


def metrics(result: Result, watch: Stopwatch) -> dict[str, float]:
    """All metrics of a compression run but those of single stages."""
    found = {
        **sizes(result.size, result.anchor_bytes),
        **performance(result.job, result.anchor, result.decoded, result.decision),
        "cost/mac_ratio": result.draft.mac_ratio,
        "cost/memory_ratio": result.draft.memory_ratio,
        "memory/peak_mib": peak_memory_mib(),
    }
    found |= {f"time/{part}_s": watch.seconds[part] for part in ("encode", "decode", "evaluate")}
    found["time/total_s"] = result.job.seconds()
    return found


def sizes(size: int, anchor_bytes: int) -> dict[str, float]:
    """A bitstream's size, and what follows from it.

    Args:
        size: in bytes.
        anchor_bytes: the anchor's float tensors as float32.
    """
    return {
        "size/anchor_bytes": anchor_bytes,
        "size/bitstream_bytes": size,
        "size/rate_percent": 100 * size / anchor_bytes,
        "size/bits_per_parameter": 32 * size / anchor_bytes,
    }


def performance(job: Job, anchor: Evaluation, decoded: Evaluation, decision: Decision) -> dict[str, float]:
    """The performance of the anchor and of the decoded model, and what follows from them."""
    primary = job.task.primary
    found = {
        "performance/anchor": anchor.metrics[primary],
        "performance/decoded": decoded.metrics[primary],
        "performance/drop": decision.drop,
        "performance/transparent": float(decision.transparent),
    }
    if decision.interval is not None:
        found["performance/drop_low"], found["performance/drop_high"] = decision.interval
    found |= {f"{name}/anchor": value for name, value in anchor.metrics.items()}
    return found | {f"{name}/decoded": value for name, value in decoded.metrics.items()}


def reported(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """What `compression.run` returned for a run that has finished; nothing where there is none.

    Args:
        client: of the store.
        experiment: the experiment's id.
        tags: of the run, which tell it from all others.
    """
    words = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    wanted = " AND ".join([*words, "tags.`tracker.kind` = 'compression'", "attributes.status = 'FINISHED'"])
    for run in client.search_runs([experiment], wanted, max_results=1):
        metrics, own = run.data.metrics, run.data.tags
        return {
            "run_id": run.info.run_id,
            "size": int(metrics["size/bitstream_bytes"]),
            "rate_percent": metrics["size/rate_percent"],
            "drop": metrics["performance/drop"],
            "transparent": own["tracker.transparent"] == "true",
            "sha256": own["tracker.bitstream.sha256"],
        }
    return {}
