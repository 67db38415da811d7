"""How far a network's classes are from the anchor's: a smooth measure where drops are noisy, and without labels."""

from __future__ import annotations

import torch
from torch import nn

from tracker.codecs.base import Context
from tracker.codecs.finetune import full_precision
from tracker.rate_distortion.distortion import Distortion
from tracker.rate_distortion.inputs import one_batch, split

BATCH = 128  # inputs at a time


def divergence(model: nn.Module, context: Context) -> float:
    """Of the classes' probabilities from the anchor's, in nats, on calibration inputs.

    Args:
        model: in PyTorch, with the anchor's outputs, which are logits; changed to float32, on the device.
        context: of the run.
    """
    batches = split(one_batch("calibration", context), BATCH)
    network = full_precision(model, context.device)
    with torch.no_grad():
        if "anchor outputs" not in context.kept:
            anchor = full_precision(context.anchor, context.device, copied=True)
            context.kept["anchor outputs"] = [context.predict(anchor, inputs).float() for inputs in batches]
        targets = context.kept["anchor outputs"]
        distance = Distortion.fitting(context, targets[0], "kl")
        pairs = zip(batches, targets, strict=True)
        found = [
            float(distance(context.predict(network, inputs).float(), target)) * len(target) for inputs, target in pairs
        ]
    return sum(found) / sum(len(target) for target in targets)
