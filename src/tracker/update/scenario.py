"""``scenario=update``: checkpoints of one model, sent to a receiver one after the other.

The first is sent whole; each of the others is coded for what the receiver has, applied there, and measured. A receiver
that has missed an update refuses the next one, and gets a whole model.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.bitstream import bitstream_bytes
from tracker.memory import reset_peak
from tracker.models import float_elements
from tracker.scenarios.bench import Bench
from tracker.scenarios.compression import encoded
from tracker.scenarios.decision import check_confidence, decide
from tracker.scenarios.draft import Draft
from tracker.scenarios.job import Job, Stopwatch
from tracker.structure import Edit, rebuild
from tracker.structure.resize import edits
from tracker.update import results
from tracker.update.checkpoints import Checkpoint, checkpoints
from tracker.update.delta import applied, encode_update
from tracker.update.modes import MODES, WHOLE
from tracker.update.options import Options, read_options
from tracker.update.receiver import Receiver
from tracker.update.results import Step
from tracker.update.state import Missed, State

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("tracker")


def run(job: Job) -> dict[str, Any]:
    """Send all checkpoints in one mode: a run of kind ``update``.

    Returns:
        What it found: ``size`` is the bytes of all updates with the first model, ``drop`` the largest of all steps.

    Raises:
        TrackerError: it cannot work, or failed.
    """
    reset_peak()
    options = read_options(job)
    found = checkpoints(options.checkpoints, job.anchor)
    bench = Bench(job)
    scratch = Path(tempfile.mkdtemp(prefix="update-", dir=job.folder))
    steps: list[Step] = []
    try:
        assert job.codec is not None
        tags = {"tracker.codec": f"{options.mode} {job.codec.name}"}
        with bench.start(job, "update", results.run_name(job, options), tags) as run:
            sender = Sender(bench, options, scratch)
            for number, checkpoint in enumerate(found):
                steps.append(sender.send(number, checkpoint))
                results.log_step(run, steps[-1], steps[:-1], job.task.primary)
            run.log_folder(sender.sent, "updates")
            total = results.log_all(run, bench, steps)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    results.show(bench, run, len(steps) - 1, total)
    return {
        "run_id": run.id,
        "size": int(total["size/bitstream_bytes"]),
        "drop": total["update/worst_drop"],
        "transparent": bool(total["update/transparent"]),
        "saving_percent": total["update/saving_percent"],
    }


class Sender:
    """What sends, and has each update applied: it knows what the receiver has, as it decodes all that it sends."""

    def __init__(self, bench: Bench, options: Options, scratch: Path) -> None:
        """Nothing is sent yet.

        Args:
            bench: with the anchor's architecture, the task and the codec.
            options: of the scenario.
            scratch: an empty folder.
        """
        self.bench, self.options, self.scratch = bench, options, scratch
        self.known: State | None = None
        self.before: Mapping[str, Tensor] = {}
        self.sent, self.folder = scratch / "sent", scratch / "receiver"
        self.sent.mkdir()

    def send(self, number: int, checkpoint: Checkpoint) -> Step:
        """Code a checkpoint, have it applied, and measure what the receiver has then."""
        bench, watch = self.bench, Stopwatch()
        reference = Reference(bench, checkpoint)
        anchor = bench.logged(reference.model, reference.tensors, f"anchor {checkpoint.name}")
        check_confidence(bench.job, anchor.evaluation)
        with watch("encode"):
            whole = self._whole(reference, number)
            update = whole if self.options.mode == WHOLE or self.known is None else self._update(reference, number)
        size = bitstream_bytes(whole)
        with watch("decode"):
            repair = self._delivered(update, whole, number in self.options.lost)
        if update is not whole and not repair:
            shutil.rmtree(whole)  # made for its size
        receiver = Receiver(self.folder)
        assert receiver.state is not None
        model = bench.filled(receiver.state.tensors, "the receiver's state", receiver.state.structure)
        with watch("evaluate"):
            evaluation = bench.evaluated(model, f"after {checkpoint.name}")
        self.before = reference.tensors
        return Step(
            number=number,
            name=checkpoint.name,
            update=bitstream_bytes(update),
            repair=repair,
            whole=size,
            model=4 * float_elements(reference.tensors),
            reference=anchor.evaluation,
            decoded=evaluation,
            decision=decide(bench.job, anchor.evaluation, evaluation),
            lost=number in self.options.lost,
            seconds=dict(watch.seconds),
            state=receiver.state.digest,
        )

    def _whole(self, reference: Reference, number: int) -> Path:
        """A bitstream of the whole checkpoint."""
        bench, folder = self.bench, self.sent / f"{number:03}-whole"
        folder.mkdir()
        assert bench.job.codec is not None
        draft = Draft(reference.model, reference.tensors, list(reference.edits))
        encoded(bench, bench.job.codec, draft, folder)
        return folder

    def _update(self, reference: Reference, number: int) -> Path:
        """What turns what the receiver has into the checkpoint."""
        bench, folder = self.bench, self.sent / f"{number:03}-{self.options.mode}"
        folder.mkdir()
        assert bench.job.codec is not None and self.known is not None
        mode = MODES[self.options.mode]
        edits = [edit for edit in reference.edits if edit not in self.known.structure]
        encode_update(bench.job.codec, reference.tensors, mode, self.known, self.before, folder, bench.context, edits)
        return folder

    def _delivered(self, update: Path, whole: Path, lost: bool) -> int:
        """Have an update applied, by a receiver that was started anew; bytes of a whole model that it asked for."""
        assert self.bench.job.codec is not None
        coder, trusted = self.bench.job.codec.coder.receiver(), self.bench.job.codec.packages
        try:
            if not lost:
                Receiver(self.folder, trusted).apply(update, coder)
            self.known = applied(self.known, update, coder, trusted)  # also of what is lost, as nobody tells it
            return 0
        except Missed as missed:
            log.info("%s", missed)
        Receiver(self.folder, trusted).apply(whole, coder)
        self.known = applied(self.known, whole, coder, trusted)
        return bitstream_bytes(whole)


class Reference:
    """A checkpoint as a model of its own.

    Attributes:
        model: of the anchor's architecture, with layers of other sizes where the checkpoint has them.
        tensors: in the model's order.
        edits: what those layers are.
    """

    def __init__(self, bench: Bench, checkpoint: Checkpoint) -> None:
        """Read it.

        Raises:
            TrackerError: it is missing, damaged, or of another architecture.
        """
        given = checkpoint.read()
        model = bench.job.anchor.build()
        self.edits: Sequence[Edit] = edits(model, given) if bench.job.anchor.framework == "pytorch" else []
        self.model = rebuild(model, self.edits)
        bench.framework.fill(self.model, given, f"the tensors of {checkpoint.name}")
        self.model = bench.framework.ready(self.model, "cpu")
        self.tensors = bench.framework.state(self.model, frozenset(given))
