"""Training through the quantiser: a network that is small once coded, with the anchor's outputs as targets.

Quantised weights run forward, gradients pass the rounding straight through (Bengio et al. 2013), step sizes are learned
with the weights (Esser et al. 2020, "Learned Step Size Quantization"), and the loss is distortion + lambda * rate: how
far the outputs are from the anchor's (Hinton et al. 2015), and the bits that an adaptive entropy coder takes for the
integers, as in Wiedemann et al. 2020, "Entropy-constrained training of deep neural networks". No labels are used. Which
lambda is right is found in rounds, each of which goes on from the one before, by the drop on the split for decisions.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tracker.codecs.base import Context, Transformed
from tracker.codecs.distill_start import plain_norms, start
from tracker.codecs.distill_training import Quantised, Training
from tracker.codecs.finetune import Trained, full_precision, repeatable, tensors_of
from tracker.errors import TrackerError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
FIRST = 0.4  # share of the first round in all of the time; the others share the rest
FACTOR = 1.8  # by which lambda changes from round to round, until one is found to be too large


@dataclass
class Round:
    """One value of lambda, what was trained with it, and what it gave."""

    weight: float
    result: Quantised
    drop: float
    seconds: float


class Distill(Trained):
    """Quantisation-aware self-distillation with the coder's rate in the loss, for a given time."""

    final: ClassVar[bool] = True
    makes_steps: ClassVar[bool] = True

    seconds: float = Field(default=150.0, gt=0, le=1e6, description="of training, on this machine")
    steps: int | None = Field(default=None, ge=1, description="of training, instead of seconds: the same anywhere")
    rounds: int = Field(default=4, ge=1, le=20, description="values of lambda that are tried")
    rate_weight: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="lambda, over the distortion that is transparent without "
        "training; null: the largest that stays transparent on the search split",
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="of weights; of others twice as much")
    loss: Literal["auto", "mse", "kl"] = Field(
        default="auto",
        description="squared error over the anchor's variance, or divergence of the classes' "
        "probabilities; auto: the latter where the outputs are logits of the task",
    )
    temperature: float = Field(default=2.0, gt=0, le=1000, description="of kl's probabilities")
    batch_size: int = Field(default=48, ge=1)
    crop: Literal["auto"] | int | None = Field(default="auto", description="as for finetune")
    shift: float = Field(default=0.125, ge=0, le=0.5, description="inputs that are images move by up to this share")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of training; auto: bfloat16 where the processor computes in it"
    )

    def logged(self) -> list[str]:
        """See `Transform.logged`."""
        return [f"distill/{name}" for name in ("rate_weight", "bits_per_weight", "loss", "search_drop", "round")]

    def apply(self, model: Any, context: Context) -> Transformed:
        """Train, and give the smallest result that is transparent on the split for decisions.

        Raises:
            TrackerError: the model's outputs do not depend on its parameters.
        """
        if context.drop is None:
            raise TrackerError("distill needs a data set with a search split, to find how small is still transparent")
        with repeatable(context.seed):
            teacher = full_precision(context.anchor, context.device, copied=True)
            student = full_precision(model, context.device)
            plain_norms(student)
            rounds = self._rounds(student, teacher, context)
        good = [one for one in rounds if one.drop <= context.tolerance]
        if not good:
            log.warning("distill: no step size is transparent on the search split; raise task.tolerance")
        best = min(good, key=lambda one: one.result.bits) if good else min(rounds, key=lambda one: one.drop)
        best.result.fill(student)
        for _, tensor in tensors_of(student):
            tensor.data = tensor.data.to("cpu")
        metrics = {
            "distill/rate_weight": best.weight,
            "distill/bits_per_weight": best.result.bits,
            "distill/loss": best.result.loss,
            "distill/search_drop": best.drop,
            "distill/round": float(rounds.index(best)),
        }
        return Transformed(
            student,
            steps=best.result.steps,
            metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
            tables={"rounds": [_row(number, one) for number, one in enumerate(rounds)]},
            figures={"rounds": plotted(rounds, context.tolerance)},
        )

    def _rounds(self, student: Any, teacher: Any, context: Context) -> list[Round]:
        """Round after round, each with the lambda that those before it suggest."""
        assert context.drop is not None
        training = Training(self, student, teacher, context)
        begun = start(training, context)
        weight = self.rate_weight or begun.weight
        done = [Round(0.0, begun.untrained, begun.drop, 0.0)]
        for number in range(self.rounds):
            share = 1.0 if self.rounds == 1 else FIRST if number == 0 else (1 - FIRST) / (self.rounds - 1)
            result, seconds = training.round(weight * begun.distortion, share, f"distill {number + 1}/{self.rounds}")
            result.fill(student)
            done.append(Round(weight, result, context.drop(student), seconds))
            log.info(
                "distill %d/%d: lambda %.3g, %.2f bits per weight, drop %.4f on the search split",
                number + 1,
                self.rounds,
                weight,
                result.bits,
                done[-1].drop,
            )
            if self.rate_weight is None:
                weight = following(done[1:], context.tolerance)
        return done


def following(done: list[Round], tolerance: float) -> float:
    """The next lambda: between the largest that was transparent and the smallest that was not."""
    good = [one.weight for one in done if one.drop <= tolerance]
    # Earlier rounds were trained less: what was too much then need not be so now.
    bad = [one.weight for one in done[-2:] if one.drop > tolerance]
    if good and bad and max(good) < min(bad):
        return math.sqrt(max(good) * min(bad))
    return max(good) * FACTOR if done[-1].drop <= tolerance else done[-1].weight / FACTOR


def _row(number: int, one: Round) -> dict[str, Any]:
    return {
        "round": number,
        "lambda": one.weight,
        "bits per weight": one.result.bits,
        "loss": one.result.loss,
        "drop on the search split": one.drop,
        "seconds": one.seconds,
    }


def plotted(rounds: list[Round], tolerance: float) -> Figure:
    """Bits per weight and drop of each round."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained", dpi=110)
    axis = figure.subplots()
    axis.plot([one.result.bits for one in rounds], [one.drop for one in rounds], marker="o")
    for number, one in enumerate(rounds):
        axis.annotate(str(number), (one.result.bits, one.drop), textcoords="offset points", xytext=(5, 5))
    axis.axhline(tolerance, linestyle="--", color="#c0504d", label="tolerance")
    axis.set_xlabel("bits per weight (estimated)")
    axis.set_ylabel("drop on the search split")
    axis.legend()
    axis.grid(alpha=0.3)
    return figure
