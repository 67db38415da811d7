"""The whole configuration, typed; what it names is built from it before any work starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tracker.component import explain
from tracker.errors import TrackerError


class Section(BaseModel):
    """A part of the configuration that is not a component."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Transparency(Section):
    """When a drop counts as transparent.

    Without `confidence` the drop itself must be within the task's tolerance; with it, the upper end of the drop's
    two-sided confidence interval must be.
    """

    confidence: float | None = Field(default=None, gt=0, lt=1)
    resamples: int = Field(default=1000, ge=100, le=100_000, description="draws of the bootstrap")


class Aim(Section):
    """The working point that is looked for, in place of a value such as codec.nnc.qp."""

    drop: float | None = Field(default=None, ge=0, allow_inf_nan=False, description="the smallest within this drop")
    bytes: int | None = Field(default=None, ge=1, description="the best within this size of the bitstream")
    confidence: float | None = Field(
        default=0.84,
        ge=0.5,
        lt=1,
        description="one-sided, that the drop is within `drop` on another split as large as the search split; null: "
        "the drop on this one decides",
    )
    ahead: int = Field(
        default=2,
        ge=0,
        le=10_000,
        description="how many working points beyond the last one within `drop` are looked at, as drops go up and down; "
        "a number beyond all of them makes it a full scan",
    )

    @property
    def wanted(self) -> bool:
        """Whether one of the two is asked for."""
        return self.drop is not None or self.bytes is not None

    @property
    def key(self) -> str:
        """Which of the two is asked for."""
        return f"target.{'drop' if self.drop is not None else 'bytes'}"

    @model_validator(mode="after")
    def _one(self) -> Aim:
        if self.drop is not None and self.bytes is not None:
            raise ValueError("drop and bytes: the best within a size has the drop that it has; leave one of them out")
        return self


class Tracking(Section):
    """Where runs go (the experiment is named after the anchor unless set), and how much is logged."""

    experiment: str | None = None
    run_name: str | None = None
    evaluate_stages: bool = Field(default=True, description="also measure the performance after each transform")
    registered_model: bool | str | None = Field(
        default=None,
        description="true, or a registered model's name: register the run's result; null: that of a sweep only, under "
        "the anchor's name; false: none",
    )

    @field_validator("registered_model")
    @classmethod
    def _name(cls, value: bool | str | None) -> bool | str | None:
        if isinstance(value, str) and (not value.strip() or set(value) & set("/:")):
            raise ValueError("it is true, false or a name without / and :, as MLflow's registry wants it")
        return value


class Settings(Section):
    """The configuration's top level."""

    scenario: dict[str, Any]
    anchor: dict[str, Any]
    task: dict[str, Any]
    data: dict[str, Any]
    codec: dict[str, Any] = {}
    transparency: Transparency = Transparency()
    target: Aim = Aim()
    tracking: Tracking = Tracking()
    device: str = "auto"
    seed: int = Field(default=0, ge=0)

    @field_validator("device")
    @classmethod
    def _known(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value, re.ASCII):
            raise ValueError("it is auto, cpu, cuda (any GPU) or cuda:N (GPU number N, from 0)")
        return value


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Validate a composed configuration.

    Raises:
        TrackerError: a key is unknown or missing, a type is wrong, or a value is out of range.
    """
    try:
        return Settings(**config)
    except ValidationError as error:
        raise TrackerError(explain(error, "config").replace("config.", "", 1)) from error
