"""Before training through a quantiser: what is coded, and with which step sizes training begins."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from tracker.codecs.base import Context, Judged, Target
from tracker.rate_distortion.aim import working_point
from tracker.rate_distortion.distortion import sensitivities

if TYPE_CHECKING:
    from tracker.rate_distortion.quantised import Quantised
    from tracker.rate_distortion.training import Training

# Where training begins: steps so many times larger than those that are transparent without it, and the first lambda
# over the distortion of these. Classes stay the same under far more divergence, once it is trained to do no harm; a
# metric such as PSNR takes all of a squared error, and where that falls by 6 dB with each bit, lambda is 2 ln 2 times
# the distortion that it leads to.
COARSER = {"kl": 6.0, "mse": 3.0}
WEIGHT = {"kl": 18.0, "mse": 1.4}
BATCHES = 8  # on which sensitivities are measured
OCTAVES = 12  # the range in which steps are looked for


class Start(NamedTuple):
    """Where training begins.

    Attributes:
        weight: lambda over the distortion.
        distortion: at the coarsest steps that are transparent without training.
        untrained: what they give: what is left where no training does better.
        judged: what the split for decisions says of it.
    """

    weight: float
    distortion: float
    untrained: Quantised
    judged: Judged


def start(training: Training, context: Context) -> Start:
    """Set the step sizes with which training begins.

    They are inversely proportional to the root of each tensor's sensitivity, so that all do the same harm for a bit
    (reverse water-filling, Cover and Thomas, section 10.3.3), and as large as is transparent, times `COARSER`.
    """
    sensitivity = sensitivities(
        {name: training.parameters[name] for name in training.weights},
        training.output,
        itertools.islice(training.batches(), BATCHES),
        training.distance,
    )
    training.clear()
    relative = shares({name: float(values.mean()) for name, values in sensitivity.items()})

    def sizes(quarters: float) -> dict[str, float]:  # of an octave
        return {name: share * 2 ** (quarters / 4 - OCTAVES) for name, share in relative.items()}

    def measured(quarters: int) -> Quantised:
        training.set_steps(sizes(quarters))
        return training.snapshot()

    def judged(made: Quantised) -> Judged:
        assert context.judge is not None
        made.fill(training.student)
        drop = context.judge(training.student).drop
        # Only where training begins depends on it, so the drop as it is measured will do.
        return Judged(drop, drop)

    plain = dataclasses.replace(context, target=Target(context.target.drop))
    found = working_point(4 * OCTAVES, measured, judged, lambda _: 0, plain, ahead=0)
    training.set_steps(sizes(found.place))
    untrained = dataclasses.replace(found.made, loss=training.distortion())
    kind = training.distance.kind
    training.set_steps({name: COARSER[kind] * size for name, size in sizes(found.place).items()})
    assert found.judged is not None
    return Start(WEIGHT[kind], max(untrained.loss, 1e-12), untrained, found.judged)


def shares(sensitivity: Mapping[str, float]) -> dict[str, float]:
    """Step sizes up to a common factor, around 1; a tensor is never more than 8 times off."""
    known = [math.log(value) for value in sensitivity.values() if value > 0]
    middle = sum(known) / len(known) if known else 0.0

    def share(value: float) -> float:
        return min(max(math.exp(-0.5 * (math.log(value) - middle)), 0.125), 8.0) if value > 0 else 8.0

    return {name: share(value) for name, value in sensitivity.items()}
