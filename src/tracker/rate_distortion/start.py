"""Before training through a quantiser: what comes to it, and how training begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from tracker.codecs.base import Context
from tracker.codecs.finetune import full_precision
from tracker.codecs.records import Judged
from tracker.rate_distortion.aim import LEAST
from tracker.rate_distortion.approximated import approximated
from tracker.rate_distortion.code_length import LARGEST, code_lengths
from tracker.rate_distortion.norms import plain_norms
from tracker.rate_distortion.quantised import Quantised
from tracker.rate_distortion.trellis import UNIFORM

if TYPE_CHECKING:
    from tracker.rate_distortion.latent import Latent
    from tracker.rate_distortion.training import Training


class Manner(NamedTuple):
    """How bold training is.

    Attributes:
        coarser: its step sizes at first, over those that it is given.
        weight: the first lambda, over the distortion of what it begins from, quantised with the given step sizes.
        learning_rate: of weights.
        frozen: the share of a round after which step sizes stay where they are, on the grid.
        vectors: the step sizes of norms and biases, over those that it is given; they stay. Bits cost more here than
            where they were chosen, by about the square of this.
        samples: in a batch.
        usual: root mean square of the weights that have that learning rate, in proportion to it; None: all have it.
        farthest: divergence over the target's drop, beyond which distortion is not lambda's unit; None: there is none.
    """

    coarser: float
    weight: float
    learning_rate: float
    frozen: float
    vectors: float
    samples: int
    usual: float | None = None
    farthest: float | None = None


# Classes stay the same under far more divergence, once it is trained to do no harm; so do squared errors that come from
# weights which nothing before training has made better than rounding to the nearest does. Where classes are learned,
# what samples teach differs little, and many steps with few of them are worth more than few steps with many.
# Steps of Adam are as large as its learning rate, whatever the weights: where these are smaller than ResNet-20's, as in
# deeper networks, steps have to be. And such networks may begin farther from the anchor, but must not end so: what is
# lost follows from bits, and these from lambda.
MANNERS = {"kl": Manner(2.0, 0.7, 1.5e-3, 0.7, 4.0, 16, 0.097, 64.0), "mse": Manner(2.0, 8.0, 3e-3, 0.7, 4.0, 48)}
# A network that is much larger than its data need loses all its weights to zero then, and is begun once more this way.
MILD = Manner(1.3, 0.15, 1.5e-3, 0.7, 4.0, 16, 0.097, 64.0)
# Where all probabilities count, as in perplexity, training can undo divergence, but no more may be left of it.
STRICT = Manner(1.5, 0.5, 1.5e-3, 0.7, 2.0, 48)
# Where integers were chosen by squared errors, they suffer from every change, and to get steps on the grid changes all
# weights of a layer by some percent. With 6 dB for each bit, lambda is 2 ln 2 times the distortion that it leads to.
CAREFUL = Manner(1.0, 1.4, 2e-4, 0.0, 1.0, 48)


class Start(NamedTuple):
    """Where training begins.

    Attributes:
        weight: the first lambda, over the distortion.
        distortion: of what training begins from, quantised with the step sizes that it is given, or less where that is
            far from the anchor.
        given: that, which is left where no training does better; bits and loss are those of what it is coded as.
        judged: what the split for decisions says of it.
    """

    weight: float
    distortion: float
    given: Quantised
    judged: Judged


def manner(kind: str, latent: Latent, context: Context) -> Manner:
    """How training goes.

    Args:
        kind: of loss, ``kl`` or ``mse``.
        latent: what is trained.
        context: which tells what is integers already.
    """
    counts = dict(zip(latent.given, latent.counts, strict=True))
    chosen = sum(count for name, count in counts.items() if name in context.exact)
    if kind == "mse" and 2 * chosen > latent.count:
        return CAREFUL
    return STRICT if kind == "kl" and not context.by_choice else MANNERS[kind]


def start(training: Training, context: Context) -> Start:
    """Set the weights and the step sizes with which training begins.

    Where these are larger, what was rounded goes back to what it was before: that has more of what the anchor has
    learned, and of a coarser quantiser multiples of an old step would lie on the borders, all to be rounded the same
    way. Where they are not, the integers of `round` are far better than the nearest ones, and training begins there.
    """
    latent, way = training.latent, training.manner
    network = full_precision(approximated(training.student.cpu(), context), context.device)
    training.student.to(context.device)
    coded = {name: tensor.detach() for name, tensor in network.named_parameters()}
    loss = training.distortion(coded)
    assert context.judge is not None
    judged = context.judge(network)
    dependent = {name for name in latent.given if by_trellis(name, context)}
    values = {name: tensor.detach().clone() for name, tensor in training.student.named_parameters()}
    given = Quantised(values, dict(context.steps), _bits(coded, latent.given, dependent), loss)
    if context.unrounded is not None and way.coarser > 1:
        before = full_precision(context.unrounded, context.device, copied=True)
        plain_norms(before)
        latent.set_values(dict(before.named_parameters()))
    sizes = {name: (UNIFORM if name in dependent else 1.0) * size for name, size in latent.given.items()}
    latent.set_steps(sizes)
    distortion = _unit(training, context)
    latent.set_steps({name: way.coarser * size for name, size in sizes.items()})
    return Start(way.weight, max(distortion, 1e-12), given, judged)


def _unit(training: Training, context: Context) -> float:
    """What lambda is a multiple of: the distortion of the network as it is quantised, as far as it may count."""
    values = training.latent.quantised()[0]
    if training.manner.farthest is None:
        return training.distortion(values)
    plain = dataclasses.replace(training.distance, temperature=1.0)
    distortion, divergence = training.distances(values, training.distance, plain)
    farthest = training.manner.farthest * max(context.target.drop, LEAST)
    return distortion * min(1.0, farthest / max(divergence, 1e-12))


def by_trellis(name: str, context: Context) -> bool:
    """Whether a tensor's step size is one of dependent quantisation."""
    if name in context.exact:
        return name in context.dependent
    return context.coder is not None and context.coder.uniform > 1


def _bits(values: Mapping[str, Tensor], sizes: Mapping[str, float], dependent: Collection[str]) -> float:
    """Per weight, of multiples of step sizes; two of dependent quantisation are one integer."""
    bits, count = 0.0, 0
    for name, size in sizes.items():
        multiples = (values[name] / size).round().abs()
        integers = ((multiples + 1) // 2 if name in dependent else multiples).flatten()
        bits += float(code_lengths(integers)[integers.clamp(max=LARGEST + 1).long()].sum())
        count += len(integers)
    return bits / max(count, 1)
