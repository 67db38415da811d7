"""A sweep, set up and checked: everything that a process needs to work on its study."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tracker.codecs.records import Entry
from tracker.component import locate
from tracker.errors import TrackerError
from tracker.scenarios.job import Job, read_job
from tracker.sweep.composing import Composer, overrides_of
from tracker.sweep.distributions import continuous, nearest, values_of
from tracker.sweep.history import History
from tracker.sweep.outcome import Trials
from tracker.sweep.plain import PlainTrials
from tracker.sweep.planner import Planner
from tracker.sweep.settings import SweepSettings, read_sweep
from tracker.sweep.space import Parameter, active, expanded, in_order, read_space, settled
from tracker.sweep.storage import Storage, default_url
from tracker.sweep.study import SharedStudy
from tracker.tracking.run import flattened

log = logging.getLogger("tracker")
NOT_SIGNED = ("tracking", "device")  # sections that change nothing in what a trial finds


class Sweep:
    """What a study searches, and how a trial of it is composed and measured.

    Everything that can be refused is refused in `__init__`, before the study is opened.
    """

    def __init__(self, hydra: DictConfig, folder: Path, started: float) -> None:
        """Read, compose, prepare the anchor, open the study.

        Args:
            hydra: the node ``hydra`` of the multirun, or of one of its jobs.
            folder: for files on their way.
            started: reading of `time.perf_counter` when the work began.

        Raises:
            TrackerError: something in it cannot work.
        """
        node: Any = OmegaConf.to_container(hydra.sweeper, resolve=True)
        self.settings: SweepSettings = read_sweep(node)
        self.composer = Composer(hydra)
        self.sampler = self.settings.built_sampler()
        space, self.fixed = read_space(self.settings.params, list(hydra.overrides.task), self.composer.loader)
        first = [f"{one.key}={values_of(one.distribution, 2)[0]}" for one in space.values() if one.group]
        self.entries: dict[str, Entry] = {}
        self.space = settled(space, lambda key: self.composer.value([*self.fixed, *first], key))
        if not self.space:
            raise TrackerError(
                "there is nothing to search: add +sweep=NAME, or vary a key, as 'codec.nnc.qp=range(-40,-8)'"
            )
        config = self.config(self._base_point())
        job = read_job(config, self.fixed, folder, started)
        self.paths = [
            (section, key)
            for section in ("anchor", "data", "task")
            for key, value in getattr(job, section)
            if isinstance(value, Path)
        ]
        self.trials = self._trials(job)
        self.space = self._fitting(config)
        self.base = self._base_point()
        config = self.config(self.base)
        self._check_along()
        along = self.settings.rate_falls_with or self.trials.rate_falls_with(config)
        self.settings = self.settings.model_copy(update={"rate_falls_with": along if along in self.space else None})
        self._check(config)
        self.planner = Planner(self.settings, self.space, self.base, self.sampler, job.task.tolerance)
        self.most = min(self.settings.n_trials, len(self.planner.plan or range(self.settings.n_trials)))
        directions = self.settings.directions
        self.history = History(self.objective, directions[self.objective], prefers_transparent=len(directions) > 1)
        self.began = time.monotonic()
        self.shared = self._study(config, job)

    @property
    def objective(self) -> str:
        """The first objective's metric."""
        return next(iter(self.settings.directions))

    @property
    def single(self) -> bool:
        """Whether the only objective is to minimise one metric."""
        return list(self.settings.directions.values()) == ["minimize"]

    def config(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The composed configuration of a trial with these values."""
        return self.composer.config(self.fixed, values, self.space)

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """The words of the command line that compose it."""
        return overrides_of(self.fixed, values, self.space)

    def command(self, values: Mapping[str, Any]) -> str:
        """What one types for a trial's configuration."""
        folders = [word for path in self.composer.folders for word in ("--config-dir", path)]
        return shlex.join(["python", "-m", "tracker", *folders, *self.overrides(values)])

    def _base_point(self) -> dict[str, Any]:
        """The configuration's own value of each parameter, or one in its range."""
        groups = {key: values_of(one.distribution, 2)[0] for key, one in self.space.items() if one.group}
        words = [f"{self.space[key].key}={value}" for key, value in groups.items()]
        point: dict[str, Any] = {}
        for key, parameter in in_order(self.space):
            if not active(parameter, point):
                continue
            if parameter.entry == "*":
                continue
            own = groups.get(key, self.composer.value([*self.fixed, *words], key))
            if parameter.entry:
                own = self.entries[key].value
            point[key] = nearest(parameter.distribution, own)
        return point

    def _fitting(self, config: Mapping[str, Any]) -> dict[str, Parameter]:
        """The space for this model: with a parameter for each layer that has one, without those that change nothing."""
        idle = self.trials.idle(config)
        space: dict[str, Parameter] = {}
        for key, parameter in self.space.items():
            if parameter.entry:
                option = parameter.key.lstrip("+")
                entries = self.trials.entries(config, option)
                own = expanded(parameter, entries)
                if not own:
                    raise TrackerError(f"{key}: the anchor has nothing that {option} could have a value for")
                self.entries |= {name: entries[one.entry] for name, one in own.items()}
                space |= own
            elif key in idle:
                log.info("%s is not searched: %s", key, idle[key])
            else:
                space[key] = parameter
        if not space:
            raise TrackerError(f"there is nothing to search: {key} changes nothing for this anchor ({idle[key]})")
        return settled(space, lambda key: self.composer.value(self.fixed, key))

    def _trials(self, job: Job) -> Trials:
        """The scenario's own class for trials, or its function as it is."""
        path = job.settings.scenario.get("trials")
        made = locate(str(path), "scenario.trials")(job) if path else PlainTrials(job)
        if not isinstance(made, Trials):
            raise TrackerError(f"scenario.trials={path} is not a tracker.sweep.Trials")
        return made

    def _check(self, config: Mapping[str, Any]) -> None:
        self._check_points()
        for key, parameter in self.space.items():
            if not self.trials.varies(key):
                raise TrackerError(f"{key} cannot be varied in a sweep of this scenario: its trials would not compare")
            if parameter.group:
                self._check_choices(key, parameter)
            elif parameter.when is None:
                ends = values_of(parameter.distribution, 2)
                for end in (ends[0], ends[-1]):
                    self.trials.check(self.config({**self.base, key: end}))
                if continuous(parameter.distribution) and not parameter.entry:
                    self._check_between(key, ends[0], ends[-1])
        known = self.trials.metrics(config)
        if known is None:
            return
        for bound in self.settings.bounds:
            if bound.name not in known:
                raise TrackerError(
                    f"hydra.sweeper.constraints: no trial logs the metric {bound.name}; there are "
                    f"{', '.join(sorted(known))}"
                )
        for name in self.settings.directions:
            if name not in known:
                raise TrackerError(
                    f"hydra.sweeper.objectives: no trial logs the metric {name}; there are {', '.join(sorted(known))}"
                )

    def _check_along(self) -> None:
        along = self.settings.rate_falls_with
        if along is not None and along not in self.settings.params and self.composer.value(self.fixed, along) is None:
            raise TrackerError(
                f"hydra.sweeper.rate_falls_with={along} is not an option here; there are {', '.join(self.space)}"
            )

    def _check_points(self) -> None:
        for name, point in self.settings.known_points.items():
            for key, value in point.items():
                if not any(one.group for one in self.space.values()) and not self.composer.has(self.fixed, key):
                    raise TrackerError(f"hydra.sweeper.known_points.{name}: {key} is not an option here")
                if key in self.space and (kept := nearest(self.space[key].distribution, value)) != value:
                    log.info("known point %s: %s=%s is out of its range, and %s tried instead", name, key, value, kept)

    def _check_choices(self, key: str, parameter: Parameter) -> None:
        """Each choice of a config group, with the parameters that are there for it."""
        for choice in values_of(parameter.distribution, 2):
            point = {key: choice}
            for name, other in in_order(self.space):
                if name != key and active(other, point):
                    point[name] = self.base.get(name, values_of(other.distribution, 2)[0])
            try:
                self.trials.check(self.config(point))
            except TrackerError as error:
                raise TrackerError(
                    f"{parameter.key}={choice} does not work with this space ({error}); leave the choice out, or give "
                    "parameters that not all choices have a condition: {space: ..., when: KEY==VALUE}"
                ) from error

    def _check_between(self, key: str, low: float, high: float) -> None:
        """An option may take steps only, and an interval is all but never on one."""
        try:
            self.trials.check(self.config({**self.base, key: low + (high - low) / math.e}))
        except TrackerError as error:
            instead = f"range({low:g},{high:g},STEP)"
            if isinstance(self.composer.value(self.fixed, key), bool):
                instead = f"{key}=true,false"
            raise TrackerError(f"{key} cannot be searched in an interval ({error}); write {instead}") from error

    def _study(self, config: Mapping[str, Any], job: Job) -> SharedStudy:
        from optuna.distributions import distribution_to_json

        rest = {key: value for key, value in config.items() if key not in (*self.trials.covered, *NOT_SIGNED)}
        signature = {
            "parameters": {
                key: json.loads(distribution_to_json(one.distribution)) | ({"when": str(one.when)} if one.when else {})
                for key, one in self.space.items()
            },
            "objectives": self.settings.directions,
            "constraints": [*self.settings.constraints, *(["transparent"] if self.settings.transparent else [])],
            **self.trials.signature,
            "configuration": {key: value for key, value in flattened(rest).items() if key not in self.space},
        }
        # A name of its own for another way to search, which a study that is named may change.
        own = self.settings.model_dump(include={"sampler", "seed", "rate_falls_with", "known_points"})
        digest = hashlib.sha256(
            json.dumps({**signature, "search": own}, sort_keys=True, default=str).encode()
        ).hexdigest()[:8]
        scenario = str(job.settings.scenario["_target_"]).split(".")[-2]
        what = "-".join(job.codec.stages) if job.codec and "codec" not in self.space else scenario
        name = self.settings.study_name or f"{self.trials.title}-{what}-{digest}"
        storage = Storage(self.settings.storage or default_url(self.trials.uri))
        return SharedStudy(storage, name, list(self.settings.directions.values()), signature)
