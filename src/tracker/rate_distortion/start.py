"""Before training through a quantiser: what comes to it, and with which step sizes training begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

from tracker.codecs.base import Context
from tracker.codecs.finetune import full_precision
from tracker.codecs.records import Judged
from tracker.rate_distortion.code_length import LARGEST, code_lengths
from tracker.rate_distortion.norms import plain_norms
from tracker.rate_distortion.trellis import UNIFORM

if TYPE_CHECKING:
    from tracker.rate_distortion.quantised import Quantised
    from tracker.rate_distortion.training import Training

# Where training begins: steps so many times larger than those that it is given, and the first lambda over the
# distortion of these. Classes stay the same under far more divergence, once it is trained to do no harm; a metric such
# as PSNR takes all of a squared error, and where that falls by 6 dB with each bit, lambda is 2 ln 2 times the
# distortion that it leads to.
COARSER = {"kl": 2.0, "mse": 1.0}
WEIGHT = {"kl": 10.0, "mse": 1.4}
LEARNING_RATE = {"kl": 1.5e-3, "mse": 2e-4}  # for weights: squared errors suffer from every change


class Start(NamedTuple):
    """Where training begins.

    Attributes:
        weight: the first lambda, over the distortion.
        distortion: of what training is given.
        given: that, quantised: what is left where no training does better.
        judged: what the split for decisions says of it.
    """

    weight: float
    distortion: float
    given: Quantised
    judged: Judged


def begins_before_rounding(training: Training, context: Context) -> bool:
    """Whether training begins with the weights as they were before a stage rounded them."""
    return context.unrounded is not None and COARSER[training.distance.kind] > 1


def start(training: Training, context: Context) -> Start:
    """Set the weights and the step sizes with which training begins.

    Where these are larger, what was rounded goes back to what it was before: that has more of what the anchor has
    learned, and of a coarser quantiser multiples of an old step would lie on the borders, all to be rounded the same
    way. Where they are not, the integers of `round` are far better than the nearest ones, and training begins there.
    """
    latent = training.latent
    given = dataclasses.replace(latent.snapshot(), loss=training.distortion())
    if context.dependent:
        given = dataclasses.replace(given, bits=_bits(given, latent.given, context.dependent))
    given.fill(training.student)
    assert context.judge is not None
    judged = context.judge(training.student)
    coarser = COARSER[training.distance.kind]
    if begins_before_rounding(training, context):
        assert context.unrounded is not None
        before = full_precision(context.unrounded, context.device, copied=True)
        plain_norms(before)
        latent.set_values(dict(before.named_parameters()))
    uniform = {name: UNIFORM if name in context.dependent else 1.0 for name in latent.given}
    latent.set_steps({name: coarser * uniform[name] * size for name, size in latent.given.items()})
    return Start(WEIGHT[training.distance.kind], max(given.loss, 1e-12), given, judged)


def _bits(given: Quantised, sizes: Mapping[str, float], dependent: Collection[str]) -> float:
    """Per weight, where some tensors are multiples by dependent quantisation: two of them are one integer."""
    bits, count = 0.0, 0
    for name, size in sizes.items():
        multiples = (given.values[name] / size).round().abs()
        integers = ((multiples + 1) // 2 if name in dependent else multiples).flatten()
        bits += float(code_lengths(integers)[integers.clamp(max=LARGEST + 1).long()].sum())
        count += len(integers)
    return bits / max(count, 1)
