"""Before training through a quantiser: what is coded, and with which step sizes training begins."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from tracker.codecs.base import Context

if TYPE_CHECKING:
    from tracker.codecs.distill_training import Quantised, Training

COARSER = 6.0  # than the steps that are transparent without training: so many times larger ones are where it begins
WEIGHT = 24.0  # the first lambda, over the distortion of those
BATCHES = 8  # on which sensitivities are measured
OCTAVES = 12  # the range in which steps are looked for


class Start(NamedTuple):
    """Where training begins.

    Attributes:
        weight: lambda over the distortion.
        distortion: at the coarsest steps that are transparent without training.
        untrained: what they give: what is left where no training does better.
        drop: of that on the split for decisions.
    """

    weight: float
    distortion: float
    untrained: Quantised
    drop: float


def plain_norms(model: nn.Module) -> None:
    """Write each BatchNorm as a scale and a shift: means of 0 and variances of 1, which cost next to nothing coded.

    In evaluation mode the outputs are the same up to rounding.
    """
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_var is None:
            continue
        if not module.affine or module.running_mean is None:
            continue
        factor = torch.rsqrt(module.running_var + module.eps)
        module.bias.data -= module.weight.data * module.running_mean * factor
        module.weight.data *= factor * math.sqrt(1 + module.eps)
        module.running_mean.zero_()
        module.running_var.fill_(1.0)


def start(training: Training, context: Context) -> Start:
    """Set the step sizes with which training begins.

    They are inversely proportional to the root of each tensor's sensitivity, so that all do the same harm for a bit
    (reverse water-filling, Cover and Thomas, section 10.3.3), and as large as is transparent, times `COARSER`.
    """
    relative = shares(sensitivities(training))

    def sizes(quarters: float) -> dict[str, float]:  # of an octave
        return {name: share * 2 ** (quarters / 4 - OCTAVES) for name, share in relative.items()}

    def measured(quarters: int) -> tuple[Quantised, float]:
        assert context.drop is not None
        training.set_steps(sizes(quarters))
        found = training.snapshot()
        found.fill(training.student)
        return found, context.drop(training.student)

    low, high, best = 0, 4 * OCTAVES, None
    while high - low > 1:  # the finest one is taken to be transparent
        middle = (low + high) // 2
        found = measured(middle)
        if found[1] <= context.tolerance:
            low, best = middle, found
        else:
            high = middle
    untrained, drop = best or measured(low)
    training.set_steps(sizes(low))
    untrained = dataclasses.replace(untrained, loss=training.distortion())
    training.set_steps({name: COARSER * size for name, size in sizes(low).items()})
    return Start(WEIGHT, max(untrained.loss, 1e-12), untrained, drop)


def shares(sensitivity: Mapping[str, float]) -> dict[str, float]:
    """Step sizes up to a common factor, around 1; a tensor is never more than 8 times off."""
    known = [math.log(value) for value in sensitivity.values() if value > 0]
    middle = sum(known) / len(known) if known else 0.0

    def share(value: float) -> float:
        return min(max(math.exp(-0.5 * (math.log(value) - middle)), 0.125), 8.0) if value > 0 else 8.0

    return {name: share(value) for name, value in sensitivity.items()}


def sensitivities(training: Training) -> dict[str, float]:
    """How much the loss grows with the squared error of each weight: the mean diagonal of its Gauss-Newton matrix.

    It is estimated by projecting the outputs on random vectors, for logits after the square root of the softmax's
    covariance: the gradient's mean square is the diagonal's estimate (Martens 2020, "New insights and perspectives on
    the natural gradient method", section 9).
    """
    sums = dict.fromkeys(training.weights, 0.0)
    samples = 0
    parameters = [training.parameters[name] for name in training.weights]
    for inputs in itertools.islice(training.batches(), BATCHES):
        output = training.output(inputs)
        (output * projection(output.detach(), training)).sum().backward()
        for name, parameter in zip(training.weights, parameters, strict=True):
            if parameter.grad is not None:
                sums[name] += float(parameter.grad.square().mean())
        samples += len(output)
        for parameter in training.parameters.values():
            parameter.grad = None
    return {name: total / max(samples, 1) for name, total in sums.items()}


def projection(output: Tensor, training: Training) -> Tensor:
    """A random vector for each sample, whose covariance is the loss's Hessian by the outputs."""
    if training.loss == "kl":
        chances = output.softmax(dim=training.axis).movedim(training.axis, -1)
        drawn = torch.multinomial(chances.flatten(0, -2), 1).reshape(chances.shape[:-1])
        hits = nn.functional.one_hot(drawn, chances.shape[-1]).to(chances.dtype)
        return (chances - hits).movedim(-1, training.axis)
    return torch.randn_like(output) / math.sqrt(output[0].numel() * training.variance)
