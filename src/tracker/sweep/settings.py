"""What ``hydra.sweeper`` holds, typed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, field_validator

from tracker.component import build, explain
from tracker.errors import TrackerError
from tracker.settings import Section
from tracker.sweep.conditions import Comparison, read_bound
from tracker.sweep.samplers import NAMES, Sampler

SIZE, RATE, DROP = "size/bitstream_bytes", "size/rate_percent", "performance/drop"
OF_HYDRA = ("_target_", "_recursive_")  # how Hydra makes the plugin


class SweepSettings(Section):
    """The options of a sweep; conf/hydra/sweeper/tracker.yaml says what they are for."""

    params: dict[str, Any] = Field(default={})
    known_points: dict[str, dict[str, Any]] = Field(default={})
    rate_falls_with: str | None = None
    n_trials: int = Field(default=60, ge=1)
    timeout: float | None = Field(default=None, gt=0)
    patience: int | None = Field(default=None, ge=1)
    n_jobs: int = Field(default=1, ge=1)
    threads: int | None = Field(default=None, ge=1)
    sampler: dict[str, Any] = Field(default={})
    seed: int = Field(default=0, ge=0)
    storage: str | None = None
    study_name: str | None = None
    objectives: list[str] = Field(default=[SIZE], min_length=1)
    transparent: bool = True
    constraints: list[str] = Field(default=[])
    confidence: float | None = Field(default=0.999, gt=0.5, lt=1)
    max_failure_rate: float = Field(default=0.3, ge=0, le=1)
    report: bool = True

    @field_validator("sampler", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in NAMES:
            raise ValueError(f"there are the samplers {', '.join(NAMES)}")
        return {"_target_": f"{NAMES[value].__module__}.{NAMES[value].__qualname__}"}

    @field_validator("params", "known_points", "constraints", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any, info: Any) -> Any:
        return ([] if info.field_name == "constraints" else {}) if value is None else value

    @field_validator("objectives")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        names = [_direction(text)[0] for text in value]
        if len(set(names)) < len(names):
            raise ValueError("each metric is an objective once")
        return value

    @property
    def directions(self) -> dict[str, str]:
        """``minimize`` or ``maximize`` by the name of each objective's metric."""
        return dict(map(_direction, self.objectives))

    @property
    def bounds(self) -> list[Comparison]:
        """The user's bounds on metrics."""
        return [read_bound(text, "hydra.sweeper.constraints") for text in self.constraints]

    def built_sampler(self) -> Sampler:
        """The sampler that is configured.

        Raises:
            TrackerError: its options are wrong, or it cannot serve several objectives.
        """
        node = self.sampler or {"_target_": "tracker.sweep.samplers.Tpe"}
        sampler = build(node, "hydra.sweeper.sampler", Sampler)
        if len(self.objectives) > 1 and not sampler.several_objectives:
            raise TrackerError("hydra.sweeper.sampler: this one knows one objective only; take nsgaii or tpe")
        return sampler


def _direction(text: str) -> tuple[str, str]:
    """An objective's metric and direction: METRIC, or ``maximize METRIC``."""
    word, _, name = text.strip().rpartition(" ")
    if word not in ("", "minimize", "maximize"):
        raise ValueError(f"{text!r} is no objective; write METRIC, or maximize METRIC")
    return name, word or "minimize"


def read_sweep(config: Mapping[str, Any]) -> SweepSettings:
    """Validate ``hydra.sweeper``.

    Raises:
        TrackerError: a key is unknown, a type is wrong, or a value is out of range.
    """
    try:
        settings = SweepSettings(**{str(key): value for key, value in config.items() if key not in OF_HYDRA})
    except ValidationError as error:
        raise TrackerError(explain(error, "hydra.sweeper")) from error
    settings.bounds, settings.built_sampler()
    return settings
