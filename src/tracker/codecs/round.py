"""Integers that keep each layer's outputs on calibration inputs, with the coder's bits in the cost (`rounding`).

Layers are rounded in the order in which they run, each on inputs that come through the rounded ones before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tracker.codecs.base import Context, Transformed
from tracker.codecs.finetune import Trained, full_precision
from tracker.errors import TrackerError
from tracker.rate_distortion.hooks import hooked
from tracker.rate_distortion.inputs import Source, norms_of, one_batch
from tracker.rate_distortion.rounding import following, rounded
from tracker.rate_distortion.twin import in_pytorch

LARGEST = 6144  # inputs of an output, beyond which a layer's covariance is too large, and it is rounded to nearest
VECTORS = 1 << 14  # input vectors of which a covariance is measured


class Round(Trained):
    """Choose each layer's integers by the outputs' error and by their bits."""

    frameworks: ClassVar[frozenset[str]] = frozenset({"pytorch", "keras"})
    makes_steps: ClassVar[bool] = True
    takes_steps: ClassVar[bool] = True

    inputs: Source = Field(
        default="calibration",
        description="on which errors are measured; synthetic: made from the anchor's BatchNorms, without data",
    )
    follow: bool | Literal["auto"] = Field(
        default="auto",
        description="first change weights so that the anchor's outputs follow from the inputs here; auto: with "
        "inputs that were not made to suit BatchNorms",
    )
    rate_weight: float = Field(
        default=0.5, ge=0, le=100, description="of bits against errors, over the balance that rounding to nearest has"
    )

    @in_pytorch
    def apply(self, model: Any, context: Context) -> Transformed:
        """Round the weights of linear and convolution layers; all other tensors are left to the coder.

        Raises:
            TrackerError: the coder gives no step sizes.
        """
        if context.coder is None:
            raise TrackerError("round needs a coder after it")
        steps = {**context.coder.step_sizes(context.state(model)), **context.steps}
        network = full_precision(model, context.device)
        inputs = one_batch(self.inputs, context)
        wanted, follows = dict[str, Tensor](), self.follows(context)
        done: set[str] = set()

        def enter(name: str, module: nn.Module, given: Tensor) -> None:
            weight = module.weight
            if name in done or f"{name}.weight" not in steps or not isinstance(weight, Tensor):
                return
            done.add(name)
            before = wanted.pop(name, None)
            before = before if before is not None and before.shape == given.shape else None
            weight.copy_(self.layer(module, weight, (before, given), steps[f"{name}.weight"]))

        with torch.no_grad():
            if follows:
                reference = full_precision(context.anchor, context.device, copied=True)
                with entering(reference, lambda name, _, given: wanted.setdefault(name, given)):
                    context.predict(reference, inputs)
            with entering(network, enter):
                context.predict(network, inputs)
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data = tensor.data.to("cpu")
        return Transformed(network, steps=steps, exact={f"{name}.weight" for name in done})

    def follows(self, context: Context) -> bool:
        """Whether weights are changed first."""
        if self.follow == "auto":
            return self.inputs == "calibration" or not norms_of(context.anchor)
        return self.follow

    def layer(self, module: nn.Module, weight: Tensor, given: tuple[Tensor | None, Tensor], step: float) -> Tensor:
        """A layer's rounded weights, for what enters it in the anchor (where that is to be followed) and here."""
        groups = getattr(module, "groups", 1)
        found = []
        for group, part in enumerate(weight.chunk(groups)):
            matrix = part.flatten(1)
            if matrix.shape[1] > LARGEST:
                found.append((part / step).round() * step)
                continue
            vectors = entered(module, given[1], group)
            moments = vectors.T @ vectors / max(len(vectors), 1)
            if given[0] is not None:
                reference = entered(module, given[0], group)
                matrix = following(matrix, reference.T @ vectors / max(len(vectors), 1), moments)
            found.append(rounded(matrix, moments, step, self.rate_weight).view_as(part) * step)
        return torch.cat(found)


def entered(module: Any, given: Tensor, group: int) -> Tensor:
    """What a layer multiplies its weights with: shape (vectors, inputs of an output), at most `VECTORS` of them."""
    if isinstance(module, nn.Linear):
        vectors = given.reshape(-1, given.shape[-1])
        return vectors[:: -(-len(vectors) // VECTORS)].float()
    channels = given.shape[1] // module.groups
    return patches(module, given[:, group * channels : (group + 1) * channels]).float()


def patches(module: Any, given: Tensor) -> Tensor:
    """Squares under a convolution's kernel, as rows in the order of its weights; at most `VECTORS`, evenly spread."""
    dims = len(module.kernel_size)
    if isinstance(module.padding, str):
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        pads = [(t // 2, t - t // 2) if module.padding == "same" else (0, 0) for t in total]
    else:
        pads = [(p, p) for p in module.padding]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    found = F.pad(given, [side for pair in reversed(pads) for side in pair], mode=mode)
    for dim, size in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        kernel, stride, dilation = size
        found = found.unfold(2 + dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    # (batch, places..., channels, kernel...), of which only the chosen rows are copied.
    view = found.permute(0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))
    places = view.shape[: dims + 1]
    count = math.prod(places)
    chosen = torch.linspace(0, count - 1, min(count, VECTORS), dtype=torch.float64, device=given.device).long()
    return view[torch.unravel_index(chosen, places)].flatten(1)


@contextmanager
def entering(model: nn.Module, told: Any) -> Iterator[None]:
    """Tell what enters each linear and convolution layer, before it runs."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hooks = [
        module.register_forward_pre_hook(lambda module, given, name=name: told(name, module, given[0]))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    with hooked(hooks):
        yield
