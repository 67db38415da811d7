"""How far a network's outputs are from the anchor's, and how much each of its tensors matters to that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tracker.codecs.base import Context
from tracker.codecs.finetune_training import divergence
from tracker.errors import TrackerError

Kind = Literal["auto", "mse", "kl"]


@dataclass(frozen=True)
class Distortion:
    """A loss between outputs and the anchor's.

    Attributes:
        kind: ``kl``, divergence of the classes' probabilities, or ``mse``, squared error over the anchor's variance.
        axis: of the classes.
        variance: of the anchor's outputs.
        temperature: of the probabilities.
    """

    kind: Literal["mse", "kl"]
    axis: int
    variance: float
    temperature: float = 1.0

    @classmethod
    def fitting(cls, context: Context, output: Tensor, kind: Kind = "auto", temperature: float = 1.0) -> Distortion:
        """The one for a task: divergence where its outputs are logits.

        Args:
            context: with the dimension of the classes.
            output: of the anchor, for some inputs.
            kind: ``auto``, or which.
            temperature: of the probabilities.

        Raises:
            TrackerError: there are no classes in the outputs.
        """
        chosen = kind if kind != "auto" else ("kl" if context.classes is not None else "mse")
        axis = 1 if context.classes is None else context.classes
        if chosen == "kl" and (output.ndim < 2 or output.shape[axis] < 2):
            raise TrackerError(f"loss=kl needs logits of several classes, not {tuple(output.shape)}; use mse")
        return cls(chosen, axis, max(float(output.var(correction=0)), 1e-30), temperature)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over samples.

        Raises:
            TrackerError: the shapes differ.
        """
        if output.shape != target.shape:
            raise TrackerError(f"the model's outputs are {tuple(output.shape)}, but the anchor's {tuple(target.shape)}")
        if self.kind == "mse":
            return (output - target).square().mean() / self.variance
        return divergence(output, target, self.temperature, self.axis)

    def projection(self, output: Tensor) -> Tensor:
        """A random vector for each sample, whose covariance is the loss's Hessian by the outputs (temperature 1)."""
        if self.kind == "mse":
            return torch.randn_like(output) / math.sqrt(output[0].numel() * self.variance)
        chances = output.softmax(dim=self.axis).movedim(self.axis, -1)
        drawn = torch.multinomial(chances.flatten(0, -2), 1).reshape(chances.shape[:-1])
        hits = nn.functional.one_hot(drawn, chances.shape[-1]).to(chances.dtype)
        return (chances - hits).movedim(-1, self.axis)


def sensitivities(
    parameters: Mapping[str, Tensor], output: Callable[[Any], Tensor], batches: Iterable[Any], distortion: Distortion
) -> dict[str, Tensor]:
    """How much the distortion grows with the squared error of each weight: the diagonal of its Gauss-Newton matrix.

    It is estimated by projecting the outputs on random vectors, for logits after the square root of the softmax's
    covariance: the gradient's mean square is the diagonal's estimate (Martens 2020, "New insights and perspectives on
    the natural gradient method", section 9).

    Args:
        parameters: leaves that gradients reach; their gradients are taken away again.
        output: the network's, for a batch of inputs.
        batches: of inputs.
        distortion: the loss.

    Returns:
        By name, means over all but the first dimension (output channels): shape (channels,).

    Raises:
        TrackerError: no gradient reaches them.
    """
    sums = {name: torch.zeros(parameter.shape[:1], device=parameter.device) for name, parameter in parameters.items()}
    samples = 0
    for inputs in batches:
        found = output(inputs)
        if not found.requires_grad:
            raise TrackerError(
                "allocate cannot measure this model: its outputs do not depend on its parameters as far as PyTorch "
                "knows (no_grad?); codec.allocate.inputs=none goes without"
            )
        (found * distortion.projection(found.detach())).sum().backward()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                sums[name] += parameter.grad.square().flatten(1).mean(1) if parameter.ndim > 1 else parameter.grad**2
                parameter.grad = None
        samples += len(found)
    return {name: total / max(samples, 1) for name, total in sums.items()}
