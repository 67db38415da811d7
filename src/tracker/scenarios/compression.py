"""The compression scenario: anchor, encode, store, decode, evaluate, decide, log."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from tracker import models
from tracker.bitstream import bitstream_bytes, decode_bitstream, encode_bitstream, read_manifest
from tracker.bitstream.state import coded_part
from tracker.cache import cache_folder
from tracker.codecs.base import Context, TensorRecord
from tracker.data.base import shuffled
from tracker.errors import TrackerError
from tracker.evaluation import Batches, evaluate
from tracker.frameworks import load_framework
from tracker.memory import peak_memory_mib, reset_peak
from tracker.scenarios import results
from tracker.scenarios.decision import check_confidence, decide
from tracker.scenarios.job import Job, Stopwatch
from tracker.scenarios.results import Result
from tracker.scenarios.transforming import Draft, transform
from tracker.structure import Edit, rebuild
from tracker.tasks.base import Evaluation
from tracker.tracking import anchors, store, summary
from tracker.tracking.run import Run, flattened

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import Tensor

    from tracker.codecs.chain import Codec
    from tracker.tracking.anchors import LoggedAnchor

log = logging.getLogger(__name__)
CODEC_KEYS = ("codec", "transparency", "tracking")


class Compression:
    """One run: an anchor and, where the configuration has a codec, its compressed version.

    Everything that can be refused is refused in `__init__`, before a run is made.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.watch = job, Stopwatch()
        self.framework = load_framework(job.anchor.framework)
        self.device = models.choose_device(job.settings.device)
        samples = job.data.samples(job.task.split)
        self.data_sha256 = job.data.digest(job.task.split)
        weights = job.anchor.weights()
        self.model = self._filled(weights, "the anchor's weights")
        self.given = frozenset(weights)
        del weights  # the model has its own copy
        self.tensors = self._state(self.model)
        coded_part(self.tensors)  # refuses NaN
        self.sha256 = anchors.weights_digest(self.tensors)
        architecture = self.framework.describe(self.model)
        self.task_sha256 = anchors.task_digest(job, architecture, self.data_sha256, self.device)
        self.batches = Batches(samples, job.anchor, job.task)
        # Imports that take seconds, here: another process may still be making the store, and they are in nobody's time.
        job.task.prepare()
        stages = (*job.codec.transforms.values(), job.codec.coder) if job.codec else ()
        for stage in stages:
            stage.check_model(self.model, job.anchor.framework)
        for stage in stages:
            stage.prepare()
        self.uri = store.tracking_uri()
        self.client: MlflowClient = store.connect(self.uri)
        name = job.settings.tracking.experiment or job.anchor.name
        self.experiment = store.experiment_id(self.client, self.uri, name)
        self.parameters = models.float_elements(self.tensors)
        if job.codec is not None and not self.parameters:
            raise TrackerError(
                f"anchor={job.anchor.name} has no floating-point tensors, so there is nothing to compress"
            )
        self.names = {"tracker.anchor.sha256": self.sha256, "tracker.task.sha256": self.task_sha256}

    def run(self) -> dict[str, Any]:
        """The whole run; what it found is also returned."""
        anchor = anchors.logged_anchor(
            self.client, self.experiment, self.sha256, self.task_sha256, self._log_anchor, cache_folder()
        )
        if self.job.codec is None:
            summary.show_anchor(self.job, anchor, 4 * self.parameters, self.uri)
            return {"run_id": anchor.run_id, **anchor.evaluation.metrics}
        return self._compress(self.job.codec, anchor)

    def _log_anchor(self) -> LoggedAnchor:
        """Evaluate the anchor and log it: a run of kind ``anchor``."""
        import json

        with self._start("anchor", "anchor", {}) as run:
            with self.watch("evaluate"):
                evaluation = self._evaluated(self.model, "anchor")
            anchors.log_anchor(run, self.tensors, evaluation, self.job.folder)
            performance = evaluation.metrics[self.job.task.primary]
            run.log_metrics(
                {
                    "size/anchor_bytes": 4 * self.parameters,
                    "performance/anchor": performance,
                    **{f"{name}/anchor": value for name, value in evaluation.metrics.items()},
                    "time/evaluate_s": self.watch.seconds.pop("evaluate"),
                    "memory/peak_mib": peak_memory_mib(),
                }
            )
            run.set_tags({"tracker.metrics": json.dumps(list(evaluation.metrics))})
        return anchors.LoggedAnchor(run.id, evaluation, found=False)

    def _compress(self, codec: Codec, anchor: LoggedAnchor) -> dict[str, Any]:
        """The compressed model, from encoding to the figures: a run of kind ``compression``."""
        check_confidence(self.job, anchor.evaluation)
        job, scratch = self.job, Path(tempfile.mkdtemp(prefix="bitstream-", dir=self.job.folder))
        bitstream = scratch / "bitstream"
        bitstream.mkdir()
        tags = {"tracker.codec": codec.name, "tracker.anchor.run_id": anchor.run_id}
        try:
            with self._start("compression", summary.run_name(job), tags) as run:
                draft = self._transformed(codec, run, scratch)
                with self.watch("encode"):
                    sha256, records = self._encode(codec, draft, bitstream)
                size = bitstream_bytes(bitstream)
                run.log_folder(bitstream, "bitstream")
                stored = run.stored("bitstream")
                with self.watch("decode"):
                    decoded = decode_bitstream(stored, codec.coder.receiver(), sha256=sha256)
                model = self._filled(decoded, "the decoded tensors", read_manifest(stored).structure, codec.packages)
                with self.watch("evaluate"):
                    evaluation = self._evaluated(model, codec.name)
                decision = decide(job, anchor.evaluation, evaluation)
                self._simulated(run, draft, model, anchor)
                sizes = (4 * self.parameters, size)
                result = Result(job, codec, draft, self.tensors, *sizes, anchor.evaluation, evaluation, decision)
                results.log_tensors(run, result, records, decoded)
                results.log_stages(run, result, self.watch)
                run.log_metrics(results.metrics(result, self.watch))
                run.set_tags(
                    {
                        "tracker.bitstream.sha256": sha256,
                        "tracker.transparent": str(decision.transparent).lower(),
                    }
                )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        summary.show_compression(result, run, self.uri)
        return {"run_id": run.id, "size": size, "drop": decision.drop, "transparent": decision.transparent}

    def _transformed(self, codec: Codec, run: Run, scratch: Path) -> Draft:
        """The model after the codec's transforms; it begins as the anchor's."""
        draft = Draft(self.model, self.tensors)

        def performance(model: Any, stage: str) -> float | None:
            if not self.job.settings.tracking.evaluate_stages:
                return None
            return self._evaluated(model, f"after {stage}").metrics[self.job.task.primary]

        seconds = transform(codec, draft, self._context, self.framework, self._state, performance, run, scratch)
        self.watch.add("encode", seconds)
        return draft

    def _encode(self, codec: Codec, draft: Draft, folder: Path) -> tuple[str, list[TensorRecord]]:
        """The coder's work: the bitstream of a draft."""
        model = self.framework.ready(draft.model, "cpu")
        with contextlib.nullcontext() if codec.coder.shows_progress else summary.activity(f"encode {codec.name}"):
            manifest, records = encode_bitstream(
                codec, draft.tensors, model, folder, self._context, draft.edits, draft.integers
            )
        return manifest.sha256, records

    @cached_property
    def _context(self) -> Context:
        """What stages may use: the calibration and training splits, without labels, and the anchor.

        Each split is decoded once, however often a stage goes through it, and mixed, as many data sets are in the order
        of their classes and a stage may take only the first batches.
        """
        job = self.job

        @functools.cache
        def batches(split: str) -> Batches:
            samples = job.data.samples("calibration") if split == "calibration" else job.data.training()
            return Batches(shuffled(samples), job.anchor, job.task)

        def key() -> str:
            # The split that figures are reported on is no part of it: scores on calibration data do not know it.
            unsplit = dataclasses.replace(job, task=job.task.model_copy(update={"split": "report"}))
            calibration = job.data.digest("calibration")
            architecture = self.framework.describe(self.model)
            task = anchors.task_digest(unsplit, architecture, calibration, self.device)
            return hashlib.sha256(f"{self.sha256}{task}".encode()).hexdigest()

        return Context(
            job.anchor.predict,
            lambda: (inputs for inputs, _ in batches("calibration")),
            job.settings.seed,
            self.device,
            training=lambda: (inputs for inputs, _ in batches("training")),
            agreement=job.task.agreement,
            anchor=self.model,
            key=key,
            framework=job.anchor.framework,
        )

    def _state(self, model: Any) -> dict[str, Tensor]:
        """A model's tensors."""
        return self.framework.state(model, self.given)

    def _evaluated(self, model: Any, label: str) -> Evaluation:
        """A model's performance on the split that the task names."""
        return evaluate(self.job.anchor, model, self.job.task, self.batches, self.device, label)

    def _filled(
        self, tensors: Mapping[str, Tensor], what: str, structure: Sequence[Edit] = (), trusted: Collection[str] = ()
    ) -> Any:
        """The architecture, newly built, changed as a bitstream's structure says, and filled."""
        model = rebuild(self.job.anchor.build(), structure, trusted)
        self.framework.fill(model, tensors, what)
        return self.framework.ready(model, "cpu")

    def _start(self, kind: str, name: str, tags: Mapping[str, str]) -> Run:
        """A run with everything logged that is known before the work starts."""
        return StartedRun(self, kind, name, {**self.names, **tags})

    def _simulated(self, run: Run, draft: Draft, model: Any, anchor: LoggedAnchor) -> None:
        """The decoded model as the receiver's device would run it, where a stage can say how."""
        if draft.simulate is None:
            return
        primary = self.job.task.primary
        performance = self._evaluated(draft.simulate(model), "simulated").metrics[primary]
        drop = self.job.task.drop(anchor.evaluation.metrics[primary], performance)
        run.log_metrics({"performance/simulated": performance, "performance/simulated_drop": drop})


class StartedRun(Run):
    """A run that logs its configuration, its parameters and its data set as it begins."""

    def __init__(self, compression: Compression, kind: str, name: str, tags: Mapping[str, str]) -> None:
        super().__init__(compression.client, compression.uri, compression.experiment, name, kind, tags)
        self.compression = compression

    def __enter__(self) -> StartedRun:
        """Create the run and log what is known."""
        super().__enter__()
        try:
            job = self.compression.job
            config, overrides = dict(job.config), job.overrides
            if self.tags["tracker.kind"] == "anchor":  # the same for every codec that finds it again
                config = {key: value for key, value in config.items() if key not in CODEC_KEYS}
                overrides = [word for word in overrides if not word.lstrip("+~").startswith(CODEC_KEYS)]
            self.log_params(flattened(config))
            self.log_data(job.data.name, self.compression.data_sha256, job.task.split, type(job.data).__qualname__)
            with tempfile.TemporaryDirectory(dir=job.folder) as folder:
                OmegaConf.save(OmegaConf.create(config), Path(folder) / "config.yaml")
                OmegaConf.save(OmegaConf.create(overrides), Path(folder) / "overrides.yaml")
                self.log_folder(Path(folder), "config")
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self


def run(job: Job) -> dict[str, Any]:
    """The scenario's function, as conf/scenario names it."""
    reset_peak()
    return Compression(job).run()
