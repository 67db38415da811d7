"""Training through the quantiser: a network that is small once coded, with the anchor's outputs as targets.

Quantised weights run forward, gradients pass the rounding straight through (Bengio et al. 2013), step sizes are learned
with the weights (Esser et al. 2020, "Learned Step Size Quantization") unless squared errors are the loss, and the loss
is distortion + lambda * rate: how far the outputs are from the anchor's (Hinton et al. 2015), and the bits that an
adaptive entropy coder takes for the integers, as in Wiedemann et al. 2020, "Entropy-constrained training of deep neural
networks". No labels are used. Which lambda is right is found in rounds, each of which goes on from the one before, by
the drop on the split for decisions.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from tracker.codecs.base import Context
from tracker.codecs.finetune import Trained, full_precision, repeatable, tensors_of
from tracker.codecs.records import Transformed
from tracker.errors import TrackerError
from tracker.rate_distortion.divergence import divergence
from tracker.rate_distortion.inputs import Source, one_batch, split
from tracker.rate_distortion.norms import plain_norms
from tracker.rate_distortion.plan import Plan
from tracker.rate_distortion.quantised import Quantised
from tracker.rate_distortion.rounds import Round, Work, chosen, enough, following, hopeless, steady, told
from tracker.rate_distortion.start import CAREFUL, MANNERS, MILD, start
from tracker.rate_distortion.training import Training
from tracker.rate_distortion.twin import in_pytorch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
FIRST = 3.0  # duration of the first round, over that of each other; where it alone is bold, over that of all others
MADE = 48  # inputs in a batch, where they are made
RESCUES = 3  # rounds that are added, at most, where none is good enough, or surely so where drops are noisy


class Distill(Trained):
    """Quantisation-aware self-distillation with the coder's rate in the loss, for a given time."""

    frameworks: ClassVar[frozenset[str]] = frozenset({"pytorch", "keras"})
    final: ClassVar[bool] = True
    aims: ClassVar[bool] = True
    takes_steps: ClassVar[bool] = True
    takes_unrounded: ClassVar[bool] = True
    makes_steps: ClassVar[bool] = True

    inputs: Source = Field(
        default="calibration",
        description="to train on: the training split's, or synthetic ones, made from the anchor's BatchNorms",
    )
    seconds: float | None = Field(
        default=150.0,
        gt=0,
        le=1e6,
        description="of training in the rounds that are planned, on this machine; null: as long as the steps take",
    )
    steps: int | None = Field(
        default=None, ge=1, description="of training, the same anywhere; with seconds too, what ends first ends it"
    )
    rounds: int = Field(
        default=2,
        ge=1,
        le=20,
        description="of training, bold ones with more and more lambda, and what mends them; of the likeliest class the "
        "first alone is bold, and training ends once a network is surely within the target",
    )
    rate_weight: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="lambda, over the distortion of what training begins from, or less where that is far from the "
        "anchor; null: the largest that stays transparent on the search split",
    )
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = Field(
        default="auto",
        description="of weights, of others twice that; auto: 0.0015 for kl, 0.003 for mse, 0.0002 for mse after round; "
        "where the likeliest class counts, that of weights in proportion to their root mean square (0.097: 0.0015)",
    )
    loss: Literal["auto", "mse", "kl"] = Field(
        default="auto",
        description="squared error over the anchor's variance, or divergence of the classes' "
        "probabilities; auto: the latter where the outputs are logits of the task",
    )
    temperature: Literal["auto"] | Annotated[float, Field(gt=0, le=1000)] = Field(
        default="auto", description="of kl's probabilities; auto: 4, or 1 where all of them count, as in perplexity"
    )
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        default="auto",
        description="16 where the likeliest class counts, else 48; 4 squares of images, each of which has many outputs",
    )
    crop: Literal["auto"] | Annotated[int, Field(ge=1)] | None = Field(default="auto", description="as for finetune")
    shift: float = Field(default=0.125, ge=0, le=0.5, description="inputs that are images move by up to this share")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of training; bfloat16 takes less time on some processors, and ends further from the anchor",
    )

    @model_validator(mode="after")
    def _ends(self) -> Distill:
        if self.seconds is None and self.steps is None:
            raise ValueError("seconds and steps are both null, and training would not end; give one of them")
        return self

    def logged(self) -> list[str]:
        """See `Transform.logged`."""
        return [f"distill/{name}" for name in ("rate_weight", "bits_per_weight", "loss", "search_drop", "round")]

    @in_pytorch
    def divergence(self, model: Any, context: Context) -> float:
        """See `Transform.divergence`: that of classes, in nats."""
        return divergence(model, context)

    @in_pytorch
    def apply(self, model: Any, context: Context) -> Transformed:
        """Train, and give the smallest result that is transparent on the split for decisions.

        Raises:
            TrackerError: the model's outputs do not depend on its parameters.
        """
        if context.judge is None:
            raise TrackerError("distill needs a data set with a search split, to find how small is still transparent")
        if self.inputs == "synthetic":
            alone = split(one_batch("synthetic", context), MADE)
            context = dataclasses.replace(context, training=lambda: alone, calibration=lambda: alone)
        with repeatable(context.seed, model):
            teacher = full_precision(context.anchor, context.device, copied=True)
            student = full_precision(model, context.device)
            plain_norms(student)
            rounds = self._rounds(student, teacher, context)
        best = chosen(rounds, context)
        best.result.fill(student)
        for _, tensor in tensors_of(student):
            tensor.data = tensor.data.to("cpu")
        metrics = {
            "distill/rate_weight": best.weight,
            "distill/bits_per_weight": best.result.bits,
            "distill/loss": best.result.loss,
            "distill/search_drop": best.judged.drop,
            "distill/round": float(rounds.index(best)),
        }
        return dataclasses.replace(
            self._coded(student, best.result, context, best is rounds[0]),
            metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
            met=best.small_enough(context) and best.good_enough(context),
            tables={"rounds": [_row(number, one) for number, one in enumerate(rounds)]},
            figures={"rounds": plotted(rounds, context.target.drop)},
        )

    def _rounds(self, student: Any, teacher: Any, context: Context) -> list[Round]:
        """Rounds of training, and where it loses too much those of a milder one."""
        training = Training(self, student, teacher, context)
        works = [self._trained(training, context)]
        if self._in_vain(training, works[0], context):
            log.info("distill loses too much, and is begun once more with a smaller lambda")
            works[0].done[0].result.fill(student)
            works.append(self._trained(Training(self, student, teacher, context, MILD), context))
        for work in works:
            work.checkpoint.clear()
        return works[-1].done

    def _trained(self, training: Training, context: Context) -> Work:
        """Round after round, each with the lambda that those before it suggest; on from where it was killed."""
        assert context.judge is not None
        student, work = training.student, Work(self, training, context)
        if not work.done:
            begun = start(training, context)
            size = self._bytes(begun.given, student, context, True)
            work.begin(begun, Round(0.0, begun.given, begun.judged, size, 0.0), training)
            told(0, self.rounds, work.done[0])
        else:
            training.restore(work.tensors)
        most = self.rounds
        if context.dependent and training.manner is CAREFUL:
            log.info("distill leaves the integers of dependent quantisation as they are: it trains uniform ones")
            most = 0
        while len(work.done) <= most + (RESCUES if most and self._wanting(work.done[1:], context) else 0):
            if self._in_vain(training, work, context) or enough(work.done[1:], context):
                break
            number = len(work.done)
            plan = self._plan(number, work, context)
            label = f"distill {number}/{max(number, self.rounds)}"
            share = self._share(number, context)
            saved = work.progress(number)
            result, seconds = training.round(plan, work.distortion, share, label, saved, work.saver(number))
            size = self._bytes(result, student, context)
            work.add(Round(plan.weight, result, context.judge(student), size, seconds), training)
            told(number, max(number, self.rounds), work.done[-1])
        return work

    def _in_vain(self, training: Training, work: Work, context: Context) -> bool:
        """Whether bold training is given up, and a milder one may do better."""
        rounds = work.done[1:]
        bold = training.manner is MANNERS["kl"] and len(rounds) > 0
        return bold and self._lost(rounds, context) and hopeless(rounds, self.rounds + RESCUES, context)

    def _lost(self, rounds: list[Round], context: Context) -> bool:
        """Whether no training is good enough, and other step sizes may change that."""
        return self.rate_weight is None and not any(one.good_enough(context) for one in rounds)

    def _wanting(self, rounds: list[Round], context: Context) -> bool:
        """Whether rounds are added to those that are planned."""
        return self.rate_weight is None and (steady(context) or self._lost(rounds, context))

    def _share(self, number: int, context: Context) -> float:
        """Of the seconds and steps, what a round takes."""
        others = self.rounds - 1
        first = FIRST * max(others, 1) if steady(context) else FIRST
        return (first if number == 1 else 1.0) / (first + others)

    def _plan(self, number: int, work: Work, context: Context) -> Plan:
        plan = following(work.done[1:], number >= self.rounds, context) if number > 1 else Plan(work.weight, True)
        return plan._replace(weight=self.rate_weight or plan.weight)

    def _bytes(self, result: Quantised, student: Any, context: Context, untrained: bool = False) -> int | None:
        """Of a result's bitstream, where they matter; the student is filled with it."""
        result.fill(student)
        if context.target.bytes is None or context.size is None:
            return None
        return context.size(self._coded(student, result, context, untrained))

    def _coded(self, student: Any, result: Quantised, context: Context, untrained: bool) -> Transformed:
        """What the coder takes: what was trained is multiples of its step sizes, all else is as it came."""
        if untrained:
            return Transformed(student, steps=context.steps, exact=context.exact, dependent=context.dependent)
        return Transformed(student, steps=result.steps, exact=set(result.steps))


def _row(number: int, one: Round) -> dict[str, Any]:
    return {
        "round": number,
        "lambda": one.weight,
        "bits per weight": one.result.bits,
        "loss": one.result.loss,
        "drop on the search split": one.judged.drop,
        "likely below": one.judged.bound,
        "systematic": one.judged.systematic,
        "bytes": one.bytes,
        "seconds": one.seconds,
    }


def plotted(rounds: list[Round], wanted: float) -> Figure:
    """Bits per weight and drop of each round."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained", dpi=110)
    axis = figure.subplots()
    axis.plot([one.result.bits for one in rounds], [one.judged.drop for one in rounds], marker="o")
    for number, one in enumerate(rounds):
        axis.annotate(str(number), (one.result.bits, one.judged.drop), textcoords="offset points", xytext=(5, 5))
    axis.axhline(wanted, linestyle="--", color="#c0504d", label="target")
    axis.set_xlabel("bits per weight (estimated)")
    axis.set_ylabel("drop on the search split")
    axis.legend()
    axis.grid(alpha=0.3)
    return figure
