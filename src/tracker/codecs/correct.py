"""Statistics of the quantised network as the anchor's are: what quantisation shifted, norms and biases shift back.

Each channel's mean is matched by the bias (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and
Bias Correction", section 4.2), and its deviation by the scale where the layer is a BatchNorm, layer by layer on inputs
that the layers before have been corrected for. The anchor's own statistics are the goal, so a network that quantisation
leaves as it is stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from tracker.codecs.base import Context
from tracker.codecs.finetune import Trained, full_precision
from tracker.codecs.records import Transformed
from tracker.rate_distortion.approximated import approximated
from tracker.rate_distortion.hooks import hooked
from tracker.rate_distortion.inputs import Source, norms_of, one_batch
from tracker.rate_distortion.twin import in_pytorch

LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
FARTHEST = 2.0  # times that a scale may grow or shrink


class Correct(Trained):
    """Match each channel's mean and deviation to the anchor's, for the weights that the coder will make."""

    frameworks: ClassVar[frozenset[str]] = frozenset({"pytorch", "keras"})
    takes_steps: ClassVar[bool] = True
    for_rounding: ClassVar[bool] = True

    inputs: Source = Field(
        default="calibration",
        description="on which statistics are measured; synthetic: made from the anchor's BatchNorms, without data",
    )
    scales: bool = Field(default=True, description="match deviations too, by the scales of BatchNorms")

    @in_pytorch
    def apply(self, model: Any, context: Context) -> Transformed:
        """Change biases and scales, and nothing else.

        Raises:
            TrackerError: the coder cannot code the tensors.
        """
        unchanged = Transformed(model, steps=context.steps, exact=context.exact, dependent=context.dependent)
        if self.inputs == "synthetic" and not norms_of(context.anchor):
            return unchanged  # noise shows nothing of the means that data have
        quantised = full_precision(approximated(model, context, vectors=False), context.device)
        reference = full_precision(context.anchor, context.device, copied=True)
        inputs = one_batch(self.inputs, context)
        wanted: dict[str, Statistics] = {}
        changed: list[str] = []

        def noted(name: str, module: nn.Module, output: Tensor) -> None:
            wanted.setdefault(name, statistics(module, output))

        def matched(name: str, module: nn.Module, output: Tensor) -> Tensor | None:
            if name not in wanted or name in changed:
                return None
            if wanted[name].mean.numel() != output.shape[channels(module, output)]:
                return None  # a layer that was pruned: which of the anchor's channels it has left is not known
            changed.append(name)
            return match(module, output, wanted[name], self.scales)

        with torch.no_grad():
            with watched(reference, noted):
                context.predict(reference, inputs)
            with watched(quantised, matched):
                context.predict(quantised, inputs)
        own, found = dict(model.named_parameters()), dict(quantised.named_parameters())
        for name in (f"{module}.{part}" for module in changed for part in ("weight", "bias")):
            if name in own and own[name].ndim == 1:
                own[name].data.copy_(found[name].detach())
        return unchanged


class Statistics(NamedTuple):
    """Of a layer's output: mean and deviation of each channel, shape (channels,)."""

    mean: Tensor
    deviation: Tensor


def channels(module: nn.Module, output: Tensor) -> int:
    """The dimension of an output that has the channels: the last one of linear layers, else the second."""
    return output.ndim - 1 if isinstance(module, nn.Linear) else 1


def statistics(module: nn.Module, output: Tensor) -> Statistics:
    """Mean and deviation of each channel."""
    variance, mean = torch.var_mean(output.movedim(channels(module, output), 0).flatten(1), dim=1, correction=0)
    return Statistics(mean, variance.sqrt())


def match(module: nn.Module, output: Tensor, wanted: Statistics, scales: bool) -> Tensor:
    """Change a layer's bias, and a BatchNorm's scale, so that its output has the wanted statistics.

    Args:
        module: changed.
        output: of it, as it was.
        wanted: mean and deviation of each channel.
        scales: whether deviations are matched.

    Returns:
        The output of the changed layer.
    """
    given = statistics(module, output)
    factor = torch.ones_like(given.mean)
    if scales and isinstance(module, nn.modules.batchnorm._BatchNorm):
        factor = (wanted.deviation / given.deviation.clamp(min=1e-12)).clamp(1 / FARTHEST, FARTHEST)
        assert isinstance(module.weight, Tensor)
        module.weight.mul_(factor)
    assert isinstance(module.bias, Tensor)
    module.bias.sub_(given.mean).mul_(factor).add_(wanted.mean)
    shape = [1] * output.ndim
    shape[channels(module, output)] = -1
    return (output - given.mean.view(shape)) * factor.view(shape) + wanted.mean.view(shape)


@contextmanager
def watched(model: nn.Module, told: Callable[[str, nn.Module, Tensor], Tensor | None]) -> Iterator[None]:
    """Tell of the outputs of all layers with a bias, and put what is given back in their place."""
    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: told(name, module, output))
        for name, module in model.named_modules()
        if isinstance(module, LAYERS) and isinstance(module.bias, Tensor)
    ]
    with hooked(hooks):
        yield
