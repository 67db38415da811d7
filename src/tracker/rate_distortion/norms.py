"""Normalisation layers in the form that is cheapest to code; the outputs stay the same up to rounding."""

from __future__ import annotations

import math

from torch import nn


def plain_norms(model: nn.Module) -> None:
    """Write each BatchNorm as a scale and a shift: means of 0 and variances of 1, which cost next to nothing coded.

    In evaluation mode the outputs are the same up to rounding.
    """
    for module in model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_var is None:
            continue
        if not module.affine or module.running_mean is None:
            continue
        if not module.running_mean.any() and bool((module.running_var == 1).all()):
            continue  # it is, and rounding would change it a little again
        factor = (module.running_var + module.eps).rsqrt()
        module.bias.data -= module.weight.data * module.running_mean * factor
        module.weight.data *= factor * math.sqrt(1 + module.eps)
        module.running_mean.zero_()
        module.running_var.fill_(1.0)
