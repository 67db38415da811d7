"""AIMET's optimisations on calibration data: ranges by sequential MSE, rounding by AdaRound."""

from __future__ import annotations

import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tracker.aimet import Prepared
from tracker.aimet.quantsim_graph import MEND, told
from tracker.aimet.quantsim_weights import Weight, optimisable

if TYPE_CHECKING:
    from tracker.codecs.quantsim import QuantSim

Batches = Sequence[tuple[Tensor, ...]]


def find_ranges(stage: QuantSim, weights: Sequence[Weight], prepared: Prepared, sim: Any, batches: Batches) -> None:
    """Give every quantiser its range, and fix it.

    Args:
        stage: the configuration.
        weights: their quantisers are changed.
        prepared: the floating-point model.
        sim: the simulation that holds most of the quantisers.
        batches: calibration inputs, for sequential MSE.

    Raises:
        TrackerError: AIMET cannot do it.
    """
    if stage.sequential_mse:
        from aimet_torch.seq_mse import SeqMseParams, SequentialMse

        params = SeqMseParams(num_batches=None, num_candidates=stage.candidates, forward_fn=forward)
        with told("find ranges by sequential MSE", "set codec.quantsim.sequential_mse=false"):
            SequentialMse.apply_seq_mse(prepared.model, sim, batches, params)
    with told("find the ranges of the weights", MEND):
        sim.compute_encodings(lambda model: None)
        for weight in weights:
            if not weight.quantiser.is_initialized():
                with weight.quantiser.compute_encodings(), torch.no_grad():
                    weight.quantiser(weight.simulated)
            fix(weight.quantiser)


def fix(quantiser: Any) -> None:
    """Keep AIMET from giving a quantiser another range."""
    quantiser.requires_grad_(False)
    quantiser.allow_overwrite(False)


def adaround(stage: QuantSim, weights: Sequence[Weight], prepared: Prepared, sim: Any, batches: Batches) -> None:
    """Round the simulation's weights, in the order in which they run, so that each layer's output stays close.

    Args:
        stage: the configuration.
        weights: with the ranges that are to be kept.
        prepared: the floating-point model.
        sim: its weights are changed.
        batches: calibration inputs.

    Raises:
        TrackerError: AIMET cannot do it.
    """
    from aimet_torch._base.adaround.adaround_loss import AdaroundHyperParameters
    from aimet_torch.adaround.adaround_weight import Adaround
    from aimet_torch.meta.connectedgraph_utils import get_module_act_func_pair
    from aimet_torch.utils import CachedDataset, remove_activation_quantizers

    # Adaround.apply_adaround would make a simulation of its own, which refuses modules that AIMET does not know.
    activations: defaultdict[nn.Module, Any] = defaultdict(lambda: None)
    with contextlib.suppress(Exception):  # a model whose graph AIMET does not understand is optimised without them
        activations.update(get_module_act_func_pair(prepared.model, prepared.example))
    mend = "set codec.quantsim.rounding=nearest"
    with told("round this model's weights adaptively", mend), tempfile.TemporaryDirectory() as folder:
        data = CachedDataset(batches, len(batches), folder)
        layers = rounded_layers(weights, prepared, sim)
        fewest = min(weight.quantiser.bitwidth for weight in weights)
        iterations = stage.adaround_iterations or (15000 if fewest < 8 else 10000)  # AIMET's own numbers
        options = AdaroundHyperParameters(iterations, 0.01, (20, 2), 0.2)  # AIMET's defaults
        # Activations have no ranges yet, and rounding is to make up for the weights alone.
        with remove_activation_quantizers(sim.model):
            Adaround._run_adaround_model(layers, prepared.model, sim.model, activations, options, forward, data)


def rounded_layers(weights: Sequence[Weight], prepared: Prepared, sim: Any) -> list[tuple[str, nn.Module]]:
    """The layers whose weights AdaRound can round, with their names, in the order in which they run.

    Weights of layers that do not run by themselves (within an attention module) are marked as not optimised.
    """
    from aimet_torch.utils import get_ordered_list_of_modules

    left = {weight.simulated.data_ptr() for weight in weights if weight.optimised}
    layers = []
    for name, layer in get_ordered_list_of_modules(prepared.model, prepared.example, ignore_duplicates=True):
        pointer = sim.model.get_submodule(name).weight.data_ptr() if optimisable(layer) else None
        if pointer in left:
            left.remove(pointer)  # a tied weight is rounded once
            layers.append((name, layer))
    for weight in weights:
        weight.optimised = weight.optimised and weight.simulated.data_ptr() not in left
    return layers


def forward(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """How AIMET's optimisations run a model on a batch, wherever they put it."""
    device = next(model.parameters()).device
    return model(*(tensor.to(device) for tensor in inputs))
