"""What ``scenario=update`` can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from tracker.component import Component, build
from tracker.errors import TrackerError
from tracker.scenarios.job import Job
from tracker.update.modes import MODES, WHOLE


class Options(Component):
    """The scenario's keys."""

    checkpoints: list[str] = Field(
        min_length=1,
        description="in order: files, folders of them, runs:/RUN_ID, runs:/RUN_ID/NAME, models:/NAME/VERSION, "
        "models:/NAME",
    )
    mode: Literal["whole", "changed", "difference", "context"] = Field(
        default="difference",
        description="whole: every checkpoint; changed: the tensors that changed; difference: to what the receiver has; "
        "context: the same with temporal context adaptation",
    )
    lost: list[int] = Field(default=[], description="updates, by number from 1, that do not reach the receiver")

    @field_validator("checkpoints", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("lost")
    @classmethod
    def _updates(cls, value: list[int]) -> list[int]:
        if any(number < 1 for number in value):
            raise ValueError(
                "updates are counted from 1; 0 is the first checkpoint, without which there is no receiver"
            )
        return value


def read_options(job: Job) -> Options:
    """The scenario's keys of a job.

    Raises:
        TrackerError: one is unknown or out of range, or the codec cannot work in this mode.
    """
    options = build({**job.settings.scenario, "_target_": f"{__name__}.Options"}, "scenario", Options)
    codec = job.codec
    if codec is None:
        raise TrackerError("scenario=update needs a codec, such as +codec=nnc")
    if codec.transforms:
        raise TrackerError(
            f"scenario=update takes a coder alone, such as +codec=nnc, and the chain has {next(iter(codec.transforms))}"
        )
    if options.mode != WHOLE and MODES[options.mode].temporal and not codec.coder.temporal:
        raise TrackerError(
            f"scenario.mode={options.mode} needs a coder with temporal contexts: take +codec=nnc, or "
            "scenario.mode=difference"
        )
    return options
