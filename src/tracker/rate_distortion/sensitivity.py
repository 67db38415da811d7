"""How much each tensor of a network matters to its outputs, measured once for a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tracker.codecs.base import Context
from tracker.codecs.finetune import full_precision, repeatable
from tracker.frameworks.pytorch import state_tensors
from tracker.models import weights_digest
from tracker.rate_distortion.distortion import Distortion, sensitivities
from tracker.rate_distortion.inputs import SEED, Source, one_batch, split

BATCH = 64  # inputs at a time


def sensitivities_on(source: Source, model: nn.Module, context: Context) -> Mapping[str, Tensor]:
    """`sensitivities` of a network's parameters, by output channel.

    Args:
        source: of the inputs.
        model: left as it is; what is found is kept for the same tensors.
        context: of the run.
    """
    key = f"sensitivities {source} {weights_digest(state_tensors(model))}"
    if key not in context.kept:
        with repeatable(SEED, model):
            network = full_precision(model, context.device, copied=True)
            parameters = {name: p for name, p in network.named_parameters() if p.is_floating_point() and p.numel()}
            for parameter in parameters.values():
                parameter.requires_grad_(True)  # a part that was frozen in training matters as much
            batches = split(one_batch(source, context), BATCH)

            def output(inputs: Any) -> Tensor:
                return context.predict(network, inputs).float()

            with torch.no_grad():
                distortion = Distortion.fitting(context, output(batches[0]))
            context.kept[key] = sensitivities(parameters, output, batches, distortion)
    found: Mapping[str, Tensor] = context.kept[key]
    return found
