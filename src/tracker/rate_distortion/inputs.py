"""What sensitivities and statistics are measured on: calibration inputs, or inputs made from the network alone.

Made inputs are noise, changed until each BatchNorm sees the mean and deviation that it stored in training (Cai et al.
2020, "ZeroQ: A Novel Zero Shot Quantization Framework", section 3.1). Networks without BatchNorm get pictures of discs,
or noise where inputs are no images.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from tracker.codecs.base import Context
from tracker.nested import cloned, on_device, tensor_bytes
from tracker.rate_distortion.hooks import hooked

Source = Literal["calibration", "synthetic"]
SAMPLES, STEPS, RATE = 96, 40, 0.2  # of made inputs: how many, and how they are changed (Adam)
SEED = 0  # of what is made or estimated before training: what is true of a network does not depend on a run's seed
PRIOR = 0.1  # weight of inputs being standard noise, over that of one BatchNorm
ELEMENTS = 1 << 18  # of made inputs, about, where they are large
LEAVES, FINE = 300, 2  # discs in a made picture, and the resolution they are drawn at, over the picture's
MOST_BYTES = 8 << 20  # of calibration inputs in one batch
EMBEDDED = 256  # bytes of a token or another index, once it is a short vector


def one_batch(source: Source, context: Context) -> Any:
    """Inputs as one batch.

    Args:
        source: ``calibration``, as many as fit into `MOST_BYTES`; or ``synthetic``, made from the anchor.
        context: with the calibration split, of which made inputs have the shape, and the anchor.
    """
    key = f"{source} inputs"
    if key not in context.kept:
        context.kept[key] = _one_batch(source, context)
    return cloned(context.kept[key])


def _one_batch(source: Source, context: Context) -> Any:
    batches = iter(context.calibration())
    first = on_device(cloned(next(batches)), context.device, torch.float32)
    if source == "synthetic":
        return made(context, first)
    if not isinstance(first, Tensor):
        return first
    found = [first]
    # An index stands for a vector of what it is the number of.
    size = tensor_bytes(first) if first.is_floating_point() else EMBEDDED * first.numel()
    for more in itertools.islice(batches, max(0, MOST_BYTES // max(size, 1) - 1)):
        if more.shape[1:] != first.shape[1:]:
            break
        found.append(on_device(more, context.device, torch.float32))
    return torch.cat(found)


def split(inputs: Any, size: int) -> list[Any]:
    """A batch in parts, where it is one tensor."""
    return list(inputs.split(size)) if isinstance(inputs, Tensor) else [inputs]


def made(context: Context, like: Any) -> Any:
    """Inputs made without data.

    Args:
        context: with the anchor.
        like: a batch whose shapes are taken and, for networks without BatchNorm, each channel's mean and deviation;
            integers (tokens, indices) are its own, mixed up.
    """
    generator = torch.Generator().manual_seed(SEED)
    if not isinstance(like, Tensor) or not like.is_floating_point():
        return _mixed(like, generator)
    norms = norms_of(context.anchor)
    shape = (min(SAMPLES, max(8 if norms else 2, ELEMENTS // max(like[0].numel(), 1))), *like.shape[1:])
    if norms:
        model = copy.deepcopy(context.anchor).to(context.device).float().eval()
        return natural(model, context, pink(torch.randn(shape, generator=generator)).to(like.device))
    picture = like.ndim == 4 and min(shape[2:]) >= 8
    noise = (leaves(shape, generator) if picture else torch.randn(shape, generator=generator)).to(like.device)
    around = [dim for dim in range(like.ndim) if dim != 1] if like.ndim > 2 else [0]
    several = math.prod(like.shape[dim] for dim in around) > 1
    deviation = like.std(around, keepdim=True) if several else 1.0  # a single value has none
    return noise * deviation + like.mean(around, keepdim=True)


def pink(noise: Tensor) -> Tensor:
    """Noise with the spectrum of photographs, whose amplitude falls as one over the frequency (Field 1987, "Relations
    between the statistics of natural images and the response properties of cortical cells").

    Args:
        noise: white; anything but images (batch, channels, height, width) stays as it is.
    """
    if noise.ndim != 4 or min(noise.shape[2:]) < 4:
        return noise
    height, width = noise.shape[2:]
    squares = torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width)[None].square()
    falling = squares.clamp(min=1 / max(height, width) ** 2).rsqrt()
    found = torch.fft.irfft2(torch.fft.rfft2(noise) * falling, s=(height, width))
    return (found - found.mean((2, 3), keepdim=True)) / found.std((2, 3), keepdim=True).clamp(min=1e-6)


def leaves(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Pictures of discs that cover each other, which have the edges and the scales of photographs (Lee, Mumford and
    Huang 2001, "Occlusion models for natural images", with radii by an inverse cube).

    Args:
        shape: (batch, channels, height, width).
        generator: of places, radii and colours.

    Returns:
        Mean 0 and deviation 1 over all.
    """
    count, channels, height, width = shape
    fine = torch.zeros(count, channels, FINE * height, FINE * width)
    rows, columns = torch.arange(FINE * height)[:, None], torch.arange(FINE * width)[None]
    most = FINE * max(height, width) / 2
    for _ in range(LEAVES):
        chance, top, left = torch.rand(3, count, 1, 1, generator=generator)
        # By the inverse of their distribution function, between 1 and the largest radius.
        radius = (1 - chance * (1 - most**-2.0)).rsqrt()
        inside = (rows - top * FINE * height).square() + (columns - left * FINE * width).square() < radius.square()
        fine = torch.where(inside[:, None], torch.randn(count, channels, 1, 1, generator=generator), fine)
    found = F.avg_pool2d(fine, FINE)
    return (found - found.mean()) / found.std().clamp(min=1e-6)


def _mixed(value: Any, generator: torch.Generator) -> Any:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            return torch.randn(value.shape, generator=generator).to(value)
        order = torch.randperm(value.numel(), generator=generator)
        return value.flatten()[order.to(value.device)].view_as(value)
    if isinstance(value, dict):
        return {key: _mixed(item, generator) for key, item in value.items()}
    return type(value)(_mixed(item, generator) for item in value) if isinstance(value, tuple | list) else value


def norms_of(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Normalisations with stored statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.running_var is not None
        and module.running_mean is not None
    ]


def natural(model: nn.Module, context: Context, noise: Tensor) -> Tensor:
    """Inputs whose statistics at every BatchNorm are those that it stored.

    Args:
        model: the anchor, as it was trained; its parameters are frozen.
        context: with `predict`.
        noise: where they begin.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    norms = norms_of(model)
    inputs = noise.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([inputs], lr=RATE, betas=(0.5, 0.9))
    with entering(norms) as seen:
        for step in tqdm(range(STEPS), desc="inputs from BatchNorm", disable=None, leave=False):
            for group in optimiser.param_groups:
                group["lr"] = RATE * max(0.5 * (1 + math.cos(math.pi * step / STEPS)), 0.05)
            seen.clear()
            context.predict(model, inputs)
            loss = sum((_mismatch(norm, given) for norm, given in seen), PRIOR * _mismatch(None, inputs))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return inputs.detach()


def _mismatch(norm: Any, given: Tensor) -> Tensor:
    """Of mean and deviation, over the stored variance; without a norm, those of standard noise."""
    channels = given.float().movedim(1, 0).flatten(1) if given.ndim > 1 else given.float()[None]
    variance, mean = torch.var_mean(channels, dim=1, correction=0)
    wanted = torch.ones_like(variance) if norm is None else norm.running_var + norm.eps
    middle = torch.zeros_like(mean) if norm is None else norm.running_mean
    off = (mean - middle).square() + (variance.clamp(min=1e-8).sqrt() - wanted.sqrt()).square()
    return (off / wanted).mean()


@contextmanager
def entering(modules: list[Any]) -> Iterator[list[tuple[Any, Tensor]]]:
    """What enters modules, in the order in which they are called."""
    seen: list[tuple[Any, Tensor]] = []
    hooks = [m.register_forward_pre_hook(lambda module, given: seen.append((module, given[0]))) for m in modules]
    with hooked(hooks):
        yield seen
