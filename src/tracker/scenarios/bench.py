"""What is prepared once for an anchor, however many codecs are then tried on it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from tracker import models
from tracker.bitstream.state import coded_part
from tracker.cache import cache_folder
from tracker.codecs.base import Context
from tracker.codecs.records import Target
from tracker.data.base import shuffled
from tracker.errors import TrackerError
from tracker.evaluation import Batches, evaluate, predict_one, settle_layout
from tracker.frameworks import layout, load_framework
from tracker.memory import peak_memory_mib
from tracker.nested import cloned
from tracker.scenarios.decision import Judge
from tracker.scenarios.job import Job, Stopwatch
from tracker.structure import Edit, rebuild
from tracker.tasks.base import Evaluation
from tracker.tasks.pictures import Comparison
from tracker.tracking import anchors, storage, store, summary
from tracker.tracking.anchors import LoggedAnchor
from tracker.tracking.run import Run, flattened

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from torch import Tensor

    from tracker.codecs.chain import Codec

KEPT = ("anchor", "compression")  # kinds of runs whose results are kept where the tracking server is lost
CODEC_KEYS = ("codec", "transparency", "target", "tracking")


class Bench:
    """An anchor with its data, its task and the store, ready to be compressed and measured.

    Everything that can be refused is refused in `__init__`, before a run is made.
    """

    def __init__(self, job: Job, eager: bool = True) -> None:
        """Read, build and check.

        Args:
            job: the configuration.
            eager: import what the task and the codec need at once; otherwise `load` does it.

        Raises:
            TrackerError: something in it cannot work.
        """
        self.job = job
        self.framework = load_framework(job.anchor.framework)
        self.device = models.choose_device(job.settings.device)
        self.samples = job.data.samples(job.task.split)
        self.data_sha256 = job.data.digest(job.task.split)
        weights = job.anchor.weights()
        self.model = self.filled(weights, "the anchor's weights")
        self.given = frozenset(weights)
        del weights  # the model has its own copy
        self.tensors = self.state(self.model)
        coded_part(self.tensors)  # refuses NaN
        self.sha256 = models.weights_digest(self.tensors)
        architecture = self.framework.describe(self.model)
        self.task_sha256 = anchors.task_digest(job, architecture, self.data_sha256, self.device)
        self.batches = Batches(self.samples, job.anchor, job.task)
        if job.codec is not None:
            self.check(job.codec)
        if eager:  # another process may still be making the store, and here they are in nobody's time
            self.load(job.codec)
        settle_layout(job.anchor, self.model, self.batches, self.device)
        self.uri = store.tracking_uri()
        self.client: MlflowClient = store.connect(self.uri)
        name = job.settings.tracking.experiment or job.anchor.name
        self.experiment = store.experiment_id(self.client, self.uri, name)
        storage.check(self.client, self.experiment)
        self.parameters = models.float_elements(self.tensors)
        if job.codec is not None and not self.parameters:
            raise TrackerError(
                f"anchor={job.anchor.name} has no floating-point tensors, so there is nothing to compress"
            )

    @property
    def anchor_bytes(self) -> int:
        """The anchor's float tensors as float32."""
        return 4 * self.parameters

    def check(self, codec: Codec) -> None:
        """Refuse a codec that cannot work on this anchor."""
        for stage in (*codec.transforms.values(), codec.coder):
            stage.check_model(self.model, self.job.anchor.framework)

    def load(self, codec: Codec | None) -> None:
        """The imports of the task and of a codec's stages, which take seconds the first time."""
        self.job.task.prepare()
        if codec is not None:
            for stage in (*codec.transforms.values(), codec.coder):
                stage.prepare()

    def anchor(self) -> LoggedAnchor:
        """The anchor's run, found again or made now."""
        return self._logged(self.model, self.tensors, "anchor", self.sha256, self.task_sha256)

    def logged(self, model: Any, tensors: Mapping[str, Tensor], name: str) -> LoggedAnchor:
        """The run of kind ``anchor`` of an uncompressed model, found again or made now.

        Args:
            model: of the anchor's architecture, or of one that a checkpoint has.
            tensors: its own.
            name: for people.
        """
        architecture = self.framework.describe(model)
        task_sha256 = anchors.task_digest(self.job, architecture, self.data_sha256, self.device)
        return self._logged(model, tensors, name, models.weights_digest(tensors), task_sha256)

    def _logged(
        self, model: Any, tensors: Mapping[str, Tensor], name: str, sha256: str, task_sha256: str
    ) -> LoggedAnchor:
        """As `logged`, with both digests, which take time."""
        tags = {"tracker.anchor.sha256": sha256, "tracker.task.sha256": task_sha256}
        make = functools.partial(self._log_anchor, model, tensors, name, tags)
        return anchors.logged_anchor(self.client, self.experiment, sha256, task_sha256, make, cache_folder())

    def _log_anchor(
        self, model: Any, tensors: Mapping[str, Tensor], name: str, tags: Mapping[str, str]
    ) -> LoggedAnchor:
        """Evaluate an anchor and log it: a run of kind ``anchor``."""
        self.load(None)
        watch, size = Stopwatch(), 4 * models.float_elements(tensors)
        with self.start(self.job, "anchor", name, tags) as run:
            with watch("evaluate"):
                evaluation = self.evaluated(model, name)
            anchors.log_anchor(run, tensors, evaluation, self.job.folder)
            performance = evaluation.metrics[self.job.task.primary]
            run.log_metrics(
                {
                    "size/anchor_bytes": size,
                    "performance/anchor": performance,
                    **{f"{name}/anchor": value for name, value in evaluation.metrics.items()},
                    "time/evaluate_s": watch.seconds["evaluate"],
                    "memory/peak_mib": peak_memory_mib(),
                }
            )
            layers = ", ".join(f"{count} {kind}" for kind, count in self.framework.layers(model).items())
            run.set_tags(
                {
                    anchors.KEY: anchors.anchor_key(tags["tracker.anchor.sha256"], tags["tracker.task.sha256"]),
                    "tracker.metrics": json.dumps(list(evaluation.metrics)),
                    "tracker.anchor.model": type(model).__name__,
                    "tracker.anchor.layers": layers[:2000],
                    summary.NOTE: summary.anchor_note(self.job, size, evaluation.metrics),
                }
            )
        return LoggedAnchor(run.id, evaluation, found=False)

    @cached_property
    def context(self) -> Context:
        """What stages may use: the calibration and training splits, without labels, and the anchor.

        Each split is decoded once, however often a stage goes through it, and mixed, as many data sets are in the order
        of their classes and a stage may take only the first batches.
        """
        job, aim = self.job, self.job.settings.target

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

        def judged() -> str:
            parts = (job.data.digest("search"), aim.confidence, job.settings.transparency.resamples)
            return hashlib.sha256(repr(parts).encode()).hexdigest()

        wanted = job.task.tolerance if aim.drop is None else aim.drop
        target = Target(wanted, aim.bytes, aim.ahead)
        return Context(
            functools.partial(layout.predict, job.anchor),
            lambda: (inputs for inputs, _ in batches("calibration")),
            job.settings.seed,
            self.device,
            training=lambda: (inputs for inputs, _ in batches("training")),
            agreement=job.task.agreement,
            anchor=self.model,
            key=key,
            framework=job.anchor.framework,
            classes=job.task.classes,
            by_choice=job.task.by_choice,
            state=self.state,
            judge=Judge(job, self.model, self.device, target),
            judged=judged,
            target=target,
        )

    def state(self, model: Any) -> dict[str, Tensor]:
        """A model's tensors."""
        return self.framework.state(model, self.given)

    def evaluated(self, model: Any, label: str) -> Evaluation:
        """A model's performance on the split that the task names."""
        return evaluate(self.job.anchor, model, self.job.task, self.batches, self.device, label)

    def comparison(self, model: Any, anchor: Evaluation, decoded: Evaluation, title: str) -> Comparison:
        """What a task's pictures are made of.

        Args:
            model: the decoded one.
            anchor: the anchor's performance.
            decoded: the model's.
            title: above figures.
        """
        job = self.job

        def outputs(index: int) -> tuple[Tensor, Tensor]:
            inputs, _ = self.batches.sample(index)
            before = predict_one(job.anchor, self.model, job.task, cloned(inputs), self.device)
            return before, predict_one(job.anchor, model, job.task, inputs, self.device)

        return Comparison(anchor, decoded, job.data.class_names, self.batches.sample, outputs, title)

    def inputs(self, count: int) -> list[Any]:
        """The first samples as the model takes them, without a batch dimension."""
        return [self.batches.sample(index)[0] for index in range(min(count, len(self.samples)))]

    def filled(
        self, tensors: Mapping[str, Tensor], what: str, structure: Sequence[Edit] = (), trusted: Collection[str] = ()
    ) -> Any:
        """The architecture, newly built, changed as a bitstream's structure says, and filled."""
        model = rebuild(self.job.anchor.build(), structure, trusted)
        self.framework.fill(model, tensors, what)
        return self.framework.ready(model, "cpu")

    def start(self, job: Job, kind: str, name: str, tags: Mapping[str, str]) -> Run:
        """A run with everything logged that is known before the work starts.

        Args:
            job: whose configuration it logs; this bench's, or one that differs in its codec.
            kind: value of the tag ``tracker.kind``.
            name: what the UI shows.
            tags: further tags.
        """
        return StartedRun(self, job, kind, name, tags)


class StartedRun(Run):
    """A run that logs its configuration, its parameters and its data set as it begins."""

    def __init__(self, bench: Bench, job: Job, kind: str, name: str, tags: Mapping[str, str]) -> None:
        own = {"tracker.anchor.sha256": bench.sha256, "tracker.task.sha256": bench.task_sha256}
        super().__init__(bench.client, bench.uri, bench.experiment, name, kind, {**own, **tags})
        self.bench, self.job = bench, job

    def __enter__(self) -> StartedRun:
        """Create the run and log what is known."""
        super().__enter__()
        try:
            job = self.job
            config, overrides = dict(job.config), job.overrides
            if self.tags["tracker.kind"] == "anchor":  # the same for every codec that finds it again
                config = {key: value for key, value in config.items() if key not in CODEC_KEYS}
                overrides = [word for word in overrides if not word.lstrip("+~").startswith(CODEC_KEYS)]
            self.log_params(flattened(config))
            self.log_data(job.data.name, self.bench.data_sha256, job.task.split, type(job.data).__qualname__)
            with tempfile.TemporaryDirectory(dir=job.folder) as folder:
                OmegaConf.save(OmegaConf.create(config), Path(folder) / "config.yaml")
                OmegaConf.save(OmegaConf.create(overrides), Path(folder) / "overrides.yaml")
                self.log_folder(Path(folder), "config")
            # A sweep that goes on measures again what was lost; there is nothing yet that would be lost before.
            self.keeps = self.tags["tracker.kind"] in KEPT and "tracker.study" not in self.tags
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self
