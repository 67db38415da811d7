"""The compression scenario: anchor, encode, store, decode, evaluate, decide, log."""

from __future__ import annotations

import contextlib
import copy
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from tracker import models
from tracker.bitstream import bitstream_bytes, decode_bitstream, encode_bitstream
from tracker.bitstream.state import coded_part
from tracker.cache import cache_folder
from tracker.codecs.base import Context, TensorRecord
from tracker.errors import TrackerError
from tracker.evaluation import Batches, evaluate
from tracker.memory import peak_memory_mib, reset_peak
from tracker.scenarios.decision import Decision, check_confidence, decide
from tracker.scenarios.job import Job, Stopwatch
from tracker.tracking import anchors, plots, store, summary
from tracker.tracking.run import Run, flattened

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import Tensor, nn

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
        self.device = models.choose_device(job.settings.device)
        samples = job.data.samples(job.task.split)
        self.data_sha256 = job.data.digest(job.task.split)
        weights = job.anchor.weights()
        self.model = self._filled(weights, "the anchor's weights")
        self.given = frozenset(weights)
        del weights  # the model has its own copy
        self.tensors = models.state_tensors(self.model, self.given)
        coded_part(self.tensors)  # refuses NaN
        self.sha256 = anchors.weights_digest(self.tensors)
        self.task_sha256 = anchors.task_digest(job, self.model, self.data_sha256, self.device)
        self.batches = Batches(samples, job.anchor, job.task)
        # Imports that take seconds, here: another process may still be making the store, and they are in nobody's time.
        job.task.prepare()
        for stage in (*job.codec.transforms.values(), job.codec.coder) if job.codec else ():
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
                evaluation = evaluate(self.job.anchor, self.model, self.job.task, self.batches, self.device, "anchor")
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
        tags = {"tracker.codec": codec.name, "tracker.anchor.run_id": anchor.run_id}
        try:
            with self._start("compression", summary.run_name(job), tags) as run:
                with self.watch("encode"):
                    sha256, records = self._encode(codec, scratch)
                size = bitstream_bytes(scratch)
                run.log_folder(scratch, "bitstream")
                stored = run.stored("bitstream")
                with self.watch("decode"):
                    decoded = decode_bitstream(stored, codec.coder.receiver(), sha256=sha256)
                model = self._filled(decoded, "the decoded tensors")
                with self.watch("evaluate"):
                    evaluation = evaluate(job.anchor, model, job.task, self.batches, self.device, codec.name)
                decision = decide(job, anchor.evaluation, evaluation)
                self._log_tensors(run, codec, records, decoded)
                run.log_metrics(self._metrics(size, anchor, evaluation.metrics, decision))
                run.set_tags(
                    {
                        "tracker.bitstream.sha256": sha256,
                        "tracker.transparent": str(decision.transparent).lower(),
                    }
                )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        summary.show_compression(job, run, anchor, size, 4 * self.parameters, evaluation, decision, self.uri)
        return {"run_id": run.id, "size": size, "drop": decision.drop, "transparent": decision.transparent}

    def _encode(self, codec: Codec, folder: Path) -> tuple[str, list[TensorRecord]]:
        """Transforms, then the coder."""
        job = self.job
        context = Context(job.anchor.predict, self._calibration, job.settings.seed, self.device)
        model = self.model.cpu()
        if codec.transforms:  # they may change it in place, and the anchor is still needed as it was
            model = copy.deepcopy(model)
        for stage in codec.transforms.values():
            model = stage.apply(model, context)
        tensors = models.state_tensors(model, self.given) if codec.transforms else self.tensors
        with contextlib.nullcontext() if codec.coder.shows_progress else summary.activity(f"encode {codec.name}"):
            manifest, records = encode_bitstream(codec, tensors, model, folder, context)
        return manifest.sha256, records

    def _calibration(self) -> Any:
        """Batches of calibration inputs, without their labels."""
        batches = Batches(self.job.data.samples("calibration"), self.job.anchor, self.job.task)
        return (inputs for inputs, _ in batches)

    def _filled(self, tensors: Mapping[str, Tensor], what: str) -> nn.Module:
        """The architecture, newly built and filled."""
        model = self.job.anchor.build()
        models.fill(model, tensors, what)
        return model.eval()

    def _start(self, kind: str, name: str, tags: Mapping[str, str]) -> Run:
        """A run with everything logged that is known before the work starts."""
        return StartedRun(self, kind, name, {**self.names, **tags})

    def _log_tensors(self, run: Run, codec: Codec, records: list[TensorRecord], decoded: Mapping[str, Tensor]) -> None:
        """tensors.json, and the plot of it."""
        coded = {record.name: record for record in records}
        errors = models.mean_squared_errors(self.tensors, decoded)
        rows = []
        for name, tensor in self.tensors.items():
            record = coded.get(name)
            rows.append(
                {
                    "tensor": name,
                    "shape": "x".join(map(str, tensor.shape)) or "scalar",
                    "stage": codec.coder_name if record else "side",
                    "step size": record.step_size if record else None,
                    "bytes": record.bytes if record else None,
                    "mean squared error": errors.get(name) if record is None or record.comparable else None,
                }
            )
        run.log_table(rows, "tensors.json")
        with tempfile.TemporaryDirectory(dir=self.job.folder) as folder:
            plots.by_tensor(rows, Path(folder) / "tensors.png", f"{self.job.anchor.name} · {codec.name}")
            run.log_folder(Path(folder), "plots")

    def _metrics(
        self, size: int, anchor: LoggedAnchor, decoded: Mapping[str, float], decision: Decision
    ) -> dict[str, float]:
        """All metrics of a compression run."""
        primary = self.job.task.primary
        metrics = {
            "size/anchor_bytes": 4 * self.parameters,
            "size/bitstream_bytes": size,
            "size/rate_percent": 100 * size / (4 * self.parameters),
            "size/bits_per_parameter": 8 * size / self.parameters,
            "performance/anchor": anchor.evaluation.metrics[primary],
            "performance/decoded": decoded[primary],
            "performance/drop": decision.drop,
            "performance/transparent": float(decision.transparent),
            "memory/peak_mib": peak_memory_mib(),
        }
        if decision.interval is not None:
            metrics["performance/drop_low"], metrics["performance/drop_high"] = decision.interval
        metrics |= {f"{name}/anchor": value for name, value in anchor.evaluation.metrics.items()}
        metrics |= {f"{name}/decoded": value for name, value in decoded.items()}
        metrics |= {f"time/{part}_s": self.watch.seconds[part] for part in ("encode", "decode", "evaluate")}
        metrics["time/total_s"] = self.job.seconds()
        return metrics


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
