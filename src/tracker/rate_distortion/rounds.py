"""The rounds of a training, each with its lambda, and how they go on after the command was killed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tracker.codecs.base import Context
from tracker.codecs.records import Judged
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import state_tensors
from tracker.models import weights_digest
from tracker.rate_distortion.aim import LEAST, within
from tracker.rate_distortion.checkpoint import Checkpoint
from tracker.rate_distortion.plan import Plan
from tracker.rate_distortion.quantised import Quantised
from tracker.rate_distortion.start import Start
from tracker.rate_distortion.training import Progress, Save, Training

if TYPE_CHECKING:
    from tracker.codecs.distill import Distill

log = logging.getLogger(__name__)
FACTOR = 1.5  # by which lambda changes from round to round
HOPELESS = 4.0  # times the target's drop
FINEST = 0.8  # by which step sizes become smaller from round to round, at most, where too much is lost
# What is lost falls as about the fourth power of step sizes where training makes use of them; a little room is left.
# Where only the likeliest of classes counts, most of it is noise: with a tenth of them changed, a drop on another split
# is known to half a percent, and steps that are much finer would gain little for many bytes.
POWERS, ROOM = {False: 4, True: 8}, 0.9
# What is slightly too much is mended by training alone at first, and sizes of seeds stay together: a second round makes
# up for some 0.003 on ResNet-20. Then nothing is left but finer steps, until all noise is provided for.
SLIGHT, PATIENT = 2.0, 3  # times the target's drop, and rounds
SAME = {False: 1.0, True: 1.02}  # bits, over the fewest, among which the better network is taken


@dataclass(eq=False)
class Round:
    """One value of lambda, what was trained with it, and what it gave.

    Attributes:
        weight: lambda over the distortion at the start.
        result: the network.
        judged: what the split for decisions says of it.
        bytes: of its bitstream; None where the target is a drop.
        seconds: of training.
    """

    weight: float
    result: Quantised
    judged: Judged
    bytes: int | None
    seconds: float

    def small_enough(self, context: Context) -> bool:
        """Whether it is within the target's bytes, if there are such."""
        return context.target.bytes is None or (self.bytes is not None and self.bytes <= context.target.bytes)

    def good_enough(self, context: Context) -> bool:
        """Whether training has done what it can for it to be within the target's drop, if that decides.

        Training cannot change the noise of single answers. Were it a reason for finer step sizes from the beginning,
        most networks would have them or not by chance alone, and sizes would differ from seed to seed.
        """
        return context.target.bytes is not None or within(self.judged.systematic, context)

    def surely_good(self, context: Context) -> bool:
        """Whether it is likely to be within the target's drop on another split too, with all noise."""
        return within(self.judged.bound, context)


class Work:
    """What a training has done so far, kept in the cache until it is finished.

    Attributes:
        done: rounds; the first is the network without training.
        tensors: what is trained, after the last of them.
        weight: the first lambda.
        distortion: at the start.
    """

    def __init__(self, options: Distill, training: Training, context: Context) -> None:
        """Read what a killed command left of the same work.

        Args:
            options: of the stage.
            training: of which nothing is done yet.
            context: of the run.
        """
        own = weights_digest(state_tensors(training.student))
        before = weights_digest(state_tensors(context.unrounded)) if context.unrounded is not None else ""
        given = (training.latent.given, training.latent.fine, before, training.manner)
        judged = (context.judged(), asdict(context.target))
        parts = (options.model_dump(), own, context.key(), context.seed, *given, *judged, context.device)
        self.checkpoint = Checkpoint("distill", *parts)
        self.done: list[Round] = []
        self.tensors: dict[str, Tensor] = {}
        self.within: dict[str, Any] | None = None
        saved = self.checkpoint.load()
        if saved is not None:
            self.tensors, facts = saved
            self.weight, self.distortion, self.within = facts["weight"], facts["distortion"], facts["within"]
            self.done = [self._round(number, given) for number, given in enumerate(facts["rounds"])]
            log.info("distill goes on from round %d, where it was stopped", len(self.done))

    def begin(self, start: Start, untrained: Round, training: Training) -> None:
        """The network as it comes to training."""
        self.weight, self.distortion = start.weight, start.distortion
        self.add(untrained, training)

    def add(self, one: Round, training: Training) -> None:
        """A finished round."""
        self.done.append(one)
        self.within = None
        self.tensors = {name: tensor.clone() for name, tensor in training.state().items()}
        self._save(self.tensors)

    def progress(self, number: int) -> Progress | None:
        """Where a round was stopped."""
        if self.within is None or self.within["round"] != number:
            return None
        return Progress(self.tensors, self.within["steps"], self.within["seconds"])

    def saver(self, number: int) -> Save:
        """What a round tells of where it is."""

        def save(progress: Progress) -> None:
            self.within = {"round": number, "steps": progress.steps, "seconds": progress.seconds}
            self._save(progress.tensors)

        return save

    def _save(self, tensors: Mapping[str, Tensor]) -> None:
        results = {
            f"round.{number}.{name}": tensor
            for number, one in enumerate(self.done)
            for name, tensor in one.result.values.items()
        }
        rounds = [
            {
                "weight": one.weight,
                "judged": asdict(one.judged),
                "bytes": one.bytes,
                "seconds": one.seconds,
                "steps": dict(one.result.steps),
                "bits": one.result.bits,
                "loss": one.result.loss,
            }
            for one in self.done
        ]
        facts = {"weight": self.weight, "distortion": self.distortion, "within": self.within, "rounds": rounds}
        self.checkpoint.save({**tensors, **results}, facts)

    def _round(self, number: int, given: Mapping[str, Any]) -> Round:
        prefix = f"round.{number}."
        values = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
        result = Quantised(values, given["steps"], given["bits"], given["loss"])
        return Round(given["weight"], result, Judged(**given["judged"]), given["bytes"], given["seconds"])


def steady(context: Context) -> bool:
    """Whether lambda stays at first, if little is lost: only the likeliest of classes counts, and drops are noisy.

    What two networks of the same size lose differs by more than what a tenth of their bytes brings then.
    """
    return context.likeliest and context.target.bytes is None


def enough(rounds: list[Round], context: Context) -> bool:
    """Whether training may end early: where lambda stays, nothing more is to be gained."""
    return steady(context) and any(one.surely_good(context) for one in rounds)


def hopeless(rounds: list[Round], most: int, context: Context) -> bool:
    """Whether no mending brings back what rounds have lost, of which none is good enough: weights have become zero.

    Args:
        rounds: of training, at least one.
        most: that there may be.
        context: of the run, with its target.
    """
    last, wanted = rounds[-1].judged, max(context.target.drop, LEAST)
    mended = len(rounds) > 1 and last.systematic > SLIGHT * wanted
    return last.bound > HOPELESS * wanted or mended or len(rounds) >= most


def told(number: int, count: int, one: Round) -> None:
    """A line of the log about a round."""
    log.info(
        "distill %d/%d: lambda %.3g, entropy of %.2f bits per weight%s, drop %.4f (likely below %.4f, without noise "
        "%.4f) on the search split",
        number,
        count,
        one.weight,
        one.result.bits,
        f", {one.bytes:,} bytes" if one.bytes is not None else "",
        one.judged.drop,
        one.judged.bound,
        one.judged.systematic,
    )


def chosen(rounds: list[Round], context: Context) -> Round:
    """The smallest that is good enough, or one that is hardly larger and better, or the best that is small enough.

    Raises:
        TrackerError: none is small enough.
    """
    if context.target.bytes is not None:
        small = [one for one in rounds if one.small_enough(context)]
        if not small:
            least = min(one.bytes or 0 for one in rounds)
            raise TrackerError(
                f"target.bytes={context.target.bytes} was not reached, the smallest is {least} bytes; raise it, or "
                "codec.distill.seconds or codec.distill.rate_weight"
            )
        return min(small, key=lambda one: one.judged.drop)
    good = [one for one in rounds if one.good_enough(context)]
    if enough(rounds[1:], context):
        good = [one for one in good if one.surely_good(context)]
    if good:
        most = SAME[steady(context)] * min(one.result.bits for one in good)
        return min((one for one in good if one.result.bits <= most), key=lambda one: one.judged.systematic)
    return min(rounds, key=lambda one: one.judged.systematic)


def following(done: list[Round], last: bool, context: Context) -> Plan:
    """How training goes on after rounds: it becomes bolder as long as all is well, and mends what is not.

    Args:
        done: rounds of training, at least one.
        last: whether none comes after.
        context: of the run, with its target.
    """
    before = done[-1]
    if context.target.bytes is not None:
        small = before.small_enough(context)
        return Plan(before.weight / FACTOR, False) if small else Plan(before.weight * FACTOR, True)
    lost = before.judged.systematic
    if steady(context):
        if len(done) < PATIENT and lost <= SLIGHT * context.target.drop:
            return Plan(before.weight, False)
        lost = before.judged.bound
    elif before.good_enough(context):
        mends = last and context.by_choice  # where a step that is too bold is likelier than not
        return Plan(before.weight, False) if mends else Plan(before.weight * FACTOR, True)
    power = POWERS[steady(context)]
    finer = (ROOM * max(context.target.drop, LEAST) / lost) ** (1 / power) if lost > 0 else 0.0  # NaN is not
    return Plan(before.weight / FACTOR, False, min(max(FINEST, finer), 1.0))
