"""The receiver's scenario: decode a stored bitstream, evaluate the decoded model, and print what was found.

It uses the anchor's architecture and preprocessing but not its weights, and nothing of the sender's tools.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from pydantic import Field

from tracker import models
from tracker.bitstream import bitstream_bytes
from tracker.component import Component, build
from tracker.errors import TrackerError
from tracker.evaluation import Batches, evaluate, settle_layout
from tracker.receiver import decode_model
from tracker.scenarios.job import Job
from tracker.tracking.summary import metrics_text

log = logging.getLogger("tracker")


class Receive(Component):
    """The scenario's keys."""

    bitstream: Path = Field(description="the folder with manifest.json")
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", description="the digest that it must have")
    trust: list[str] = Field(default=[], description="packages with coders of the user's own that may be imported")


def run(job: Job) -> dict[str, Any]:
    """Decode, evaluate, print.

    Returns:
        The metrics, the bitstream's size in bytes as ``size``, and the seconds that decoding took as ``decode_s``.

    Raises:
        TrackerError: there is a codec in the configuration, or the bitstream cannot be decoded for this anchor.
    """
    wanted = {**job.settings.scenario, "_target_": f"{Receive.__module__}.{Receive.__qualname__}"}
    scenario = build(wanted, "scenario", Receive)
    if job.codec is not None:
        raise TrackerError("scenario=receive takes no codec: the bitstream says itself how it is decoded")
    device = models.choose_device(job.settings.device)
    batches = Batches(job.data.samples(job.task.split), job.anchor, job.task)
    architecture = job.anchor.build()
    began = time.perf_counter()
    model = decode_model(
        scenario.bitstream, architecture, job.anchor.framework, trusted=scenario.trust, sha256=scenario.sha256
    )
    seconds = time.perf_counter() - began
    size = bitstream_bytes(scenario.bitstream)
    settle_layout(job.anchor, model, batches, device)
    found = evaluate(job.anchor, model, job.task, batches, device, "decoded").metrics
    log.info(
        "%s decoded from %s bytes in %.2f s: %s on %s/%s",
        job.anchor.name,
        f"{size:,}",
        seconds,
        metrics_text(found),
        job.data.name,
        job.task.split,
    )
    return {**found, "size": size, "decode_s": seconds}
