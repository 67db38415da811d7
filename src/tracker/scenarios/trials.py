"""Compression as a sweep's trial: transform, encode, decode, evaluate, each only as far as it can still matter."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracker.bitstream import bitstream_bytes, decode_bitstream, read_manifest
from tracker.bitstream.state import coded_part, with_coded
from tracker.codecs.chain import Codec, build_codec
from tracker.codecs.records import Entry
from tracker.errors import TrackerError
from tracker.memory import peak_memory_mib
from tracker.models import weights_digest
from tracker.nested import tensor_bytes
from tracker.scenarios import compression, results
from tracker.scenarios.aiming import refuse_target
from tracker.scenarios.bench import Bench
from tracker.scenarios.decision import check_confidence, decide
from tracker.scenarios.draft import Draft, Workshop
from tracker.scenarios.job import Job, Stopwatch, read_job
from tracker.scenarios.mixed import Mixed
from tracker.scenarios.transforming import transform
from tracker.sweep.outcome import Limits, Outcome, Trials
from tracker.tasks.base import Evaluation
from tracker.tracking import registry
from tracker.tracking.run import MetricsOnly

if TYPE_CHECKING:
    from torch import Tensor

    from tracker.tracking.run import Run

log = logging.getLogger("tracker")
KEPT_DRAFTS = 512 * 2**20  # bytes of models that transforms have left, for trials that differ in the coder only
METRICS = {
    *(f"size/{name}" for name in ("anchor_bytes", "bitstream_bytes", "rate_percent", "bits_per_parameter")),
    *(f"performance/{name}" for name in ("anchor", "decoded", "drop", "transparent")),
    *(f"time/{name}_s" for name in ("encode", "decode", "evaluate")),
    *("cost/mac_ratio", "cost/memory_ratio", "memory/peak_mib"),
}


class CompressionTrials(Trials):
    """Working points of codecs on one anchor."""

    covered = ("anchor", "data", "task", "transparency", "seed")

    def __init__(self, job: Job) -> None:
        # A worker that joins has its first trial before the seconds that the imports take.
        self.bench = Bench(searching(job), eager=False)
        self.job = self.bench.job
        self.client, self.uri, self.experiment = self.bench.client, self.bench.uri, self.bench.experiment
        self.anchor = self.bench.anchor()
        check_confidence(self.job, self.anchor.evaluation)
        self.title = self.job.anchor.name
        self.signature = {
            "anchor": f"{self.title} {self.bench.sha256}",
            "task": f"{self.job.task.name} {self.bench.task_sha256}",
            "tolerance": self.job.task.tolerance,
            "transparency": self.job.settings.transparency.model_dump(),
            "seed": self.job.settings.seed,
        }
        self.mixed = Mixed(self.job, self.bench.samples, self.bench.device)
        self.drafts: OrderedDict[str, tuple[Draft, dict[str, float]]] = OrderedDict()
        self.built: tuple[Any, Codec] | None = None

    def varies(self, key: str) -> bool:
        """See `Trials.varies`: the codec, since a sweep compares bitstreams of one anchor."""
        return key.split(".")[0] == "codec"

    def metrics(self, config: Mapping[str, Any]) -> Collection[str]:
        """See `Trials.metrics`."""
        codec, measured = self._codec(config), self.anchor.evaluation.metrics
        names = {f"{name}/{which}" for name in measured for which in ("anchor", "decoded")}
        if codec.transforms:
            names |= {f"size/after_{stage}_bytes" for stage in codec.stages}
        for stage, made in codec.transforms.items():
            names |= {f"time/{stage}_s", *made.logged()}
        return names | METRICS

    def idle(self, config: Mapping[str, Any]) -> Mapping[str, str]:
        """See `Trials.idle`; the anchor's framework and tensors tell."""
        codec, bench = self._codec(config), self.bench
        makes = next((name for name, stage in codec.transforms.items() if stage.makes_integers), None)
        own = codec.coder.of_floats if makes and codec.coder.codes_integers else ()
        reason = f"{makes} makes integers of the weights, which are coded as they are"
        return {f"codec.{codec.coder_name}.{option}": reason for option in own} | {
            f"codec.{name}.{option}": reason
            for name, stage in codec.by_name.items()
            for option, reason in stage.idle(bench.model, bench.tensors, self.job.anchor.framework).items()
        }

    def entries(self, config: Mapping[str, Any], key: str) -> Mapping[str, Entry]:
        """See `Trials.entries`."""
        _, name, option = (*key.split("."), "", "")[:3]
        stage = self._codec(config).by_name.get(name)
        return {} if stage is None else stage.entries(option, self.bench.model, self.bench.tensors)

    def rate_falls_with(self, config: Mapping[str, Any]) -> str | None:
        """See `Trials.rate_falls_with`; the coder tells."""
        codec = self._codec(config)
        option = codec.coder.rate_falls_with
        return f"codec.{codec.coder_name}.{option}" if option else None

    def check(self, config: Mapping[str, Any]) -> None:
        """See `Trials.check`."""
        codec = self._codec(config)
        refuse_target(codec, self.job.settings.target)
        self.bench.check(codec)

    def start(self, config: Mapping[str, Any], overrides: list[str], name: str, tags: Mapping[str, str]) -> Run:
        """See `Trials.start`."""
        config = {**config, "task": self.job.config["task"]}
        job = dataclasses.replace(self.job, config=config, overrides=[*overrides, "task.split=search"])
        own = {"tracker.codec": self._codec(config).name, "tracker.anchor.run_id": self.anchor.run_id}
        return self.bench.start(job, "trial", name, {**own, **tags})

    def measure(self, config: Mapping[str, Any], limits: Limits) -> Outcome:
        """See `Trials.measure`."""
        codec = self._codec(config)
        self.bench.check(codec)  # what a condition or a config group brings in was not checked before the sweep
        self.bench.load(codec)
        scratch = Path(tempfile.mkdtemp(prefix="trial-", dir=self.job.folder))
        try:
            return _Measurement(self, config, codec, limits, scratch).outcome()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def report(self, config: Mapping[str, Any], overrides: list[str], tags: Mapping[str, str]) -> Mapping[str, Any]:
        """See `Trials.report`: a run of kind compression, as the command line makes it."""
        found = results.reported(self.client, self.experiment, tags)  # by a command that lost its server after that
        if not found:
            found = compression.run(read_job(config, overrides, self.job.folder, self.job.started), tags)
        if self.job.settings.tracking.registered_model is None:
            try:
                registry.register(self.client, found["run_id"], self.job.anchor.name)
            except TrackerError as error:
                log.warning("the best working point is not registered: %s", error)
        return found

    def draft(self, codec: Codec, config: Mapping[str, Any], scratch: Path) -> tuple[Draft, dict[str, float]]:
        """The model as a codec's transforms leave it, and the metrics of its stages; kept for the next trial."""
        asks = any(stage.aims or stage.takes_steps for stage in codec.transforms.values())  # the coder
        kept = codec.stages if asks else codec.transforms
        key = json.dumps([(name, config["codec"][name]) for name in kept], default=str)
        if key not in self.drafts:
            draft, log = Draft(self.bench.model, self.bench.tensors), MetricsOnly()
            bench = self.bench
            shop = Workshop(bench.framework, bench.context, scratch)
            transform(codec, draft, shop, bench.job.settings.target, lambda *_: None, log)
            self.drafts[key] = draft, log.metrics
            while len(self.drafts) > 1 and self._kept_bytes() > KEPT_DRAFTS:
                self.drafts.popitem(last=False)
        self.drafts.move_to_end(key)
        return self.drafts[key]

    def _kept_bytes(self) -> int:
        return sum(tensor_bytes(draft.tensors) for draft, _ in self.drafts.values())

    def _codec(self, config: Mapping[str, Any]) -> Codec:
        """Built once for a trial: what follows asks for the same one."""
        if self.built is None or self.built[0] != config["codec"]:
            codec = build_codec(config["codec"])
            if codec is None:
                raise TrackerError("a sweep of scenario=compression needs a codec to search: +codec=NAME")
            self.built = config["codec"], codec
        return self.built[1]


class _Measurement:
    """One trial, from its codec to what it found."""

    def __init__(
        self, trials: CompressionTrials, config: Mapping[str, Any], codec: Codec, limits: Limits, scratch: Path
    ) -> None:
        self.trials, self.bench, self.job = trials, trials.bench, trials.job
        self.config, self.codec, self.limits, self.scratch = config, codec, limits, scratch
        self.watch, self.found = Stopwatch(), Outcome()
        self.metrics = self.found.metrics
        self.metrics["size/anchor_bytes"] = self.bench.anchor_bytes
        self.metrics["performance/anchor"] = trials.anchor.evaluation.metrics[self.job.task.primary]

    def outcome(self) -> Outcome:
        """The steps, until nothing is left to be known."""
        early = self._evaluates_first()
        for step in (self._transform, *((self._preview,) if early else ()), self._encode, self._decode):
            step()
            self.found.stopped = self.found.stopped or self.limits.broken(self.metrics)
            if self.found.stopped:
                break
        self.metrics |= {f"time/{part}_s": seconds for part, seconds in self.watch.seconds.items()}
        self.metrics["memory/peak_mib"] = peak_memory_mib()
        return self.found

    def _evaluates_first(self) -> bool:
        """Whether evaluating took less time than coding in the trials before."""
        seconds = self.limits.seconds
        return seconds.get("evaluate", np.inf) < seconds.get("encode", 0.0)

    def _transform(self) -> None:
        self.draft, stages = self.trials.draft(self.codec, self.config, self.scratch)
        self.metrics |= stages
        self.metrics |= {"cost/mac_ratio": self.draft.mac_ratio, "cost/memory_ratio": self.draft.memory_ratio}

    def _preview(self) -> None:
        """Evaluate what the decoder will give, before the entropy coder has made any bytes of it."""
        if self.draft.integers:
            return
        tensors = self.draft.tensors
        with self.watch("preview"):
            coded = self.codec.coder.preview(
                coded_part(tensors), self.draft.model, self.draft.context(self.bench.context)
            )
        if coded is not None:
            self._evaluate(with_coded(tensors, coded))

    def _encode(self) -> None:
        self.folder = self.scratch / "bitstream"
        self.folder.mkdir()
        with self.watch("encode"):
            self.found.sha256, _ = compression.encoded(self.bench, self.codec, self.draft, self.folder)
        size = bitstream_bytes(self.folder)
        self.metrics |= results.sizes(size, self.bench.anchor_bytes)
        if self.draft.rows:
            self.metrics[f"size/after_{self.codec.coder_name}_bytes"] = size

    def _decode(self) -> None:
        with self.watch("decode"):
            decoded = decode_bitstream(self.folder, self.codec.coder.receiver(), sha256=self.found.sha256)
        self.metrics["time/decode_s"] = self.watch.seconds["decode"]
        if not self.limits.broken(self.metrics):
            self._evaluate(decoded)

    def _evaluate(self, tensors: Mapping[str, Tensor]) -> None:
        """The performance of a model with these tensors; at most once for the same ones in a study."""
        content = weights_digest(tensors) + json.dumps([dataclasses.asdict(edit) for edit in self.draft.edits])
        if content == self.found.content:
            return  # the preview was what the decoder gives
        self.found.content = content
        earlier = self.limits.evaluated(content)
        if earlier is not None:
            self.found.violation, self.found.stopped = earlier.violation, earlier.stopped
            measured = [f"{name}/decoded" for name in self.trials.anchor.evaluation.metrics]
            self.metrics |= {
                name: value
                for name, value in earlier.metrics.items()
                if name.startswith("performance/") or name in measured
            }
            return
        with self.watch("evaluate"):
            structure = read_manifest(self.folder).structure if hasattr(self, "folder") else self.draft.edits
            model = self.bench.filled(tensors, "the decoded tensors", structure, self.codec.packages)
            evaluation = self._until_rejected(model)
        if evaluation is None:
            self.watch.seconds.pop("evaluate")  # of a part only
            return
        decision = decide(self.job, self.trials.anchor.evaluation, evaluation, shown=False)
        self.found.violation = decision.violation
        self.metrics |= results.performance(self.job, self.trials.anchor.evaluation, evaluation, decision)
        self.metrics |= compression.simulated(self.bench, self.draft, model, self.trials.anchor)

    def _until_rejected(self, model: Any) -> Evaluation | None:
        """The performance on the whole split; None as soon as the drop cannot be within the tolerance any more."""
        tolerance, mixed = self.job.task.tolerance, self.trials.mixed
        found = mixed.evaluate(model, self.trials.anchor.evaluation, tolerance, self.limits.confidence, "trial")
        if isinstance(found, Evaluation):
            return found
        self.found.violation = max(found.drop - tolerance, 1e-9)
        self.found.stopped = f"drop {found.drop:.4g} after {found.seen:,} of {found.count:,} samples"
        self.metrics |= {"performance/drop_so_far": found.drop, "performance/samples": float(found.seen)}
        return None


def searching(job: Job) -> Job:
    """The job on the split that decisions are made on."""
    task = {**job.config["task"], "split": "search"}
    config = {**job.config, "task": task}
    settings = job.settings.model_copy(update={"task": task})
    return dataclasses.replace(
        job, config=config, settings=settings, task=job.task.model_copy(update={"split": "search"})
    )
