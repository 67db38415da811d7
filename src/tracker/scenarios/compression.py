"""The compression scenario: anchor, encode, store, decode, evaluate, decide, log."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.bitstream import bitstream_bytes, decode_bitstream, encode_bitstream, read_manifest
from tracker.codecs.records import TensorRecord
from tracker.flavor.predictor import Predictor
from tracker.flavor.signature import LOOKED_AT, signature
from tracker.memory import reset_peak
from tracker.scenarios import results
from tracker.scenarios.bench import Bench
from tracker.scenarios.decision import check_confidence, decide
from tracker.scenarios.draft import Draft, Workshop
from tracker.scenarios.job import Job, Stopwatch
from tracker.scenarios.pictures import log_pictures
from tracker.scenarios.results import Result
from tracker.scenarios.transforming import transform
from tracker.tracking import registry, summary
from tracker.tracking.logged_model import log_model
from tracker.tracking.outage import guarded
from tracker.tracking.unsent import Kept

if TYPE_CHECKING:
    from torch import Tensor

    from tracker.codecs.chain import Codec
    from tracker.tracking.anchors import LoggedAnchor
    from tracker.tracking.run import Run


def run(job: Job, tags: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One run: an anchor and, where the configuration has a codec, its compressed version.

    Args:
        job: the configuration.
        tags: further tags of the run.

    Returns:
        What it found.

    Raises:
        TrackerError: it cannot work, or failed.
    """
    reset_peak()
    bench = Bench(job)
    anchor = bench.anchor()
    if job.codec is None:
        summary.show_anchor(job, anchor, bench.anchor_bytes, bench.uri)
        return {"run_id": anchor.run_id, **anchor.evaluation.metrics}
    return compress(bench, job.codec, anchor, tags or {})


def compress(bench: Bench, codec: Codec, anchor: LoggedAnchor, tags: Mapping[str, str]) -> dict[str, Any]:
    """The compressed model, from encoding to the figures: a run of kind ``compression``."""
    check_confidence(bench.job, anchor.evaluation)
    if bench.job.settings.tracking.registered_model:
        registry.check_name(bench.client, registered_name(bench.job), bench.sha256)
    job, watch, scratch = bench.job, Stopwatch(), Path(tempfile.mkdtemp(prefix="bitstream-", dir=bench.job.folder))
    bitstream = scratch / "bitstream"
    bitstream.mkdir()
    tags = {"tracker.codec": codec.name, "tracker.anchor.run_id": anchor.run_id, **tags}
    try:
        with bench.start(job, "compression", summary.run_name(job), tags) as run:
            codec, draft = transformed(bench, codec, run, scratch, watch)
            with watch("encode"):
                sha256, records = encoded(bench, codec, draft, bitstream)
            size = bitstream_bytes(bitstream)
            run.log_folder(bitstream, "bitstream")
            stored = run.stored("bitstream")
            with watch("decode"):
                decoded = decode_bitstream(stored, codec.coder.receiver(), sha256=sha256)
            model = bench.filled(decoded, "the decoded tensors", read_manifest(stored).structure, codec.packages)
            with watch("evaluate"):
                evaluation = bench.evaluated(model, codec.name)
            decision = decide(job, anchor.evaluation, evaluation)
            on_device = simulated(bench, draft, model, anchor)
            run.log_metrics(on_device)
            sizes = (bench.anchor_bytes, size)
            reference = restated(bench, codec, draft)
            result = Result(job, codec, draft, reference, *sizes, anchor.evaluation, evaluation, decision)
            rows, stages = results.log_tensors(run, result, records, decoded), results.log_stages(run, result, watch)
            comparison = bench.comparison(model, anchor.evaluation, evaluation, result.title)
            log_pictures(run, result, rows, stages, decoded, comparison, {one.name for one in records if one.scaled})
            found = results.metrics(result, watch)
            run.log_metrics(found)
            tags = {"tracker.bitstream.sha256": sha256, "tracker.transparent": str(decision.transparent).lower()}
            described = signature(bench.inputs(LOOKED_AT), Predictor(job.anchor, model, bench.device).predict)
            own = {"tracker.codec": codec.name, "tracker.anchor": job.anchor.name, **tags}
            log_model(run, job.anchor, stored, scratch, found | on_device, own, described)
            run.set_tags({**tags, summary.NOTE: summary.note(result, run, anchor)})
    except Kept:
        summary.show_compression(result, run, bench.uri, on_device)
        if run.kept is not None and job.settings.tracking.registered_model:
            run.kept.add("register", {"name": registered_name(job)})
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    summary.show_compression(result, run, bench.uri, on_device)
    if job.settings.tracking.registered_model:
        with guarded(bench.uri, f"python -m tracker.register {run.id} {registered_name(job)} does the rest"):
            registry.register(bench.client, run.id, registered_name(job))
    return {
        "run_id": run.id,
        "size": size,
        "rate_percent": found["size/rate_percent"],
        "drop": decision.drop,
        "transparent": decision.transparent,
        "sha256": sha256,
    }


def registered_name(job: Job) -> str:
    """Of the registered model that results go to."""
    wanted = job.settings.tracking.registered_model
    return wanted if isinstance(wanted, str) else job.anchor.name


def transformed(bench: Bench, codec: Codec, run: Run, scratch: Path, watch: Stopwatch) -> tuple[Codec, Draft]:
    """The model after the codec's transforms, which begins as the anchor's, and the codec at the target."""
    draft = Draft(bench.model, bench.tensors)

    def performance(model: Any, stage: str) -> float | None:
        if not bench.job.settings.tracking.evaluate_stages:
            return None
        return bench.evaluated(model, f"after {stage}").metrics[bench.job.task.primary]

    shop = Workshop(bench.framework, bench.context, scratch)
    codec, seconds = transform(codec, draft, shop, bench.job.settings.target, performance, run)
    watch.add("encode", seconds)
    return codec, draft


def encoded(bench: Bench, codec: Codec, draft: Draft, folder: Path) -> tuple[str, list[TensorRecord]]:
    """The coder's work: the bitstream of a draft, its digest, and how each tensor was coded."""
    model = bench.framework.ready(draft.model, "cpu")
    with contextlib.nullcontext() if codec.coder.shows_progress else summary.activity(f"encode {codec.name}"):
        manifest, records = encode_bitstream(
            codec, draft.tensors, model, folder, draft.context(bench.context), draft.edits, draft.integers
        )
    return manifest.sha256, records


def restated(bench: Bench, codec: Codec, draft: Draft) -> Mapping[str, Tensor]:
    """The tensors that errors of the decoded ones are against."""
    tensors = draft.tensors if draft.edits else bench.tensors
    floats = {name: tensor for name, tensor in tensors.items() if name not in draft.integers}
    found = codec.coder.restated(floats, draft.model, draft.context(bench.context))
    return {name: found.get(name, tensor) for name, tensor in tensors.items() if name in found or name not in floats}


def simulated(bench: Bench, draft: Draft, model: Any, anchor: LoggedAnchor) -> dict[str, float]:
    """The performance of the decoded model as the receiver's device would run it, where a stage can say how."""
    if draft.simulate is None:
        return {}
    primary = bench.job.task.primary
    performance = bench.evaluated(draft.simulate(model), "simulated").metrics[primary]
    drop = bench.job.task.drop(anchor.evaluation.metrics[primary], performance)
    return {"performance/simulated": performance, "performance/simulated_drop": drop}
