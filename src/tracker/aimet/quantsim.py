"""The steps of quantsim, one after the other."""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tracker import aimet
from tracker.aimet import quantsim_graph as graph
from tracker.aimet import quantsim_optimise as optimise
from tracker.aimet import quantsim_report as report
from tracker.aimet import quantsim_samples as sampling
from tracker.aimet import quantsim_weights as quantising
from tracker.codecs.base import Context
from tracker.codecs.records import Transformed
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import state_tensors
from tracker.models import float_elements

if TYPE_CHECKING:
    from tracker.codecs.quantsim import QuantSim


def quantise(stage: QuantSim, model: nn.Module, context: Context) -> Transformed:
    """Fold, equalise, find ranges, round, and simulate activations; see `QuantSim.apply`.

    Args:
        stage: the configuration.
        model: changed in place.
        context: what the sender has.

    Raises:
        TrackerError: AIMET cannot work on the model.
    """
    if context.folder is None:
        raise TrackerError("quantsim needs a folder for AIMET's files: run it through python -m tracker")
    for name in stage.bits_per_layer:
        layer = model.get_submodule(name)
        if not any(quantising.is_weight(layer, *pair) for pair in layer.named_parameters(recurse=False)):
            raise TrackerError(f"codec.quantsim.bits_per_layer names {name!r}, which has no weight of its own")
    before = float_elements(state_tensors(model))
    with session(context), single_precision(model):
        prepared = aimet.prepared(model, context)
        edits, followed = graph.fold_norms(prepared) if stage.fold_norm else ([], {})
        folded = sum(len(edit.layers) for edit in edits)
        if stage.replace_relu6:
            edits = edits + graph.unlimit(prepared)
        groups = graph.equalise(prepared, followed) if stage.equalise else 0
        made, weights, sim = integers(stage, prepared, context)
        table = report.rows(stage, weights, made, model)
        report.tell_left(report.left_layers(weights, model, stage.ignore))
        metrics = report.metrics(weights, made, state_tensors(model), folded, groups)
        memory = report.memory_ratio(made, state_tensors(model), before)
        settle(weights, made, sim)
        if stage.activations is not None:
            with graph.told("simulate activations of this model", "set codec.quantsim.activations=null"):
                sim.compute_encodings(lambda model: run(model, context, stage))
        report.write_encodings(weights, sim, prepared.prefix, context.folder)
    model.cpu()
    return Transformed(
        model,
        edits=edits,
        integers=made,
        memory_ratio=memory,
        metrics=metrics,
        tables={"layers": table},
        figures={"layers": report.plot(table)},
        simulate=simulator(sim.model.cpu(), prepared.prefix) if stage.activations else None,
    )


def integers(stage: QuantSim, prepared: aimet.Prepared, context: Context) -> Any:
    """The integers of each weight by name, the weights, and AIMET's simulation."""
    assert context.folder is not None
    config = quantising.write_config(stage, context.folder)
    optimised = stage.rounding == "adaround" or stage.sequential_mse
    samples = sampling.samples(stage, prepared, context) if optimised else []
    sim = quantising.simulation(stage, prepared, config)
    weights = quantising.quantisers(stage, prepared, sim)
    optimise.find_ranges(stage, weights, prepared, sim, samples)
    if stage.rounding == "adaround":
        optimise.adaround(stage, weights, prepared, sim, samples)
    made = {weight.name: quantising.integers_of(weight) for weight in weights}
    return made, weights, sim


def settle(weights: Any, made: Any, sim: Any) -> None:
    """Give the weights the values of their integers, in the model and in the simulation, which then leaves them so."""
    with torch.no_grad():
        for weight in weights:
            value = made[weight.name].value()
            weight.parameter.copy_(value)
            weight.simulated.copy_(value)
    for _, module in sim.named_qmodules():
        for key in module.param_quantizers:
            module.param_quantizers[key] = None


def simulator(simulated: nn.Module, prefix: str) -> Callable[[nn.Module], nn.Module]:
    """From a decoded model to AIMET's simulation of integer activations with its weights."""
    target = simulated.get_submodule(prefix.rstrip("."))

    def simulate(decoded: nn.Module) -> nn.Module:
        state = state_tensors(target)
        for name, tensor in state_tensors(decoded).items():
            if name not in state:
                raise TrackerError(f"the simulation has no tensor {name}; was the decoded model changed?")
            state[name].copy_(tensor)
        return target

    return simulate


def run(model: nn.Module, context: Context, stage: QuantSim) -> None:
    """Let the simulation see the calibration inputs."""
    for inputs in itertools.islice(context.calibration(), stage.calibration_batches):
        model(*(tensor.to(context.device) for tensor in sampling.positional(inputs)))


@contextlib.contextmanager
def session(context: Context) -> Iterator[None]:
    """AIMET at work: its messages and temporary files in the stage's folder, its randomness from the seed."""
    folder = context.folder
    assert folder is not None
    kept = tempfile.tempdir
    with contextlib.ExitStack() as stack:
        stack.enter_context(aimet.session(folder))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(seeded(context))
        warnings.simplefilter("ignore")
        stack.enter_context(quiet(folder))
        tempfile.tempdir = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
        try:
            yield
        finally:
            tempfile.tempdir = kept


@contextlib.contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Progress bars on a terminal only; elsewhere they would be lines of a log, so they go to AIMET's."""
    if sys.stderr.isatty():
        yield
        return
    with (folder / aimet.LOG).open("a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        yield


@contextlib.contextmanager
def seeded(context: Context) -> Iterator[None]:
    """AIMET draws from the global generators; others find them as they were."""
    import numpy as np

    plain, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([context.device] if context.device.startswith("cuda") else []):
        torch.manual_seed(context.seed)
        random.seed(context.seed)
        np.random.seed(context.seed % 2**32)
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numbers)


@contextlib.contextmanager
def single_precision(model: nn.Module) -> Iterator[None]:
    """The model in float32, in which AIMET computes encodings; afterwards each tensor as it was."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    dtypes = {name: tensor.dtype for name, tensor in tensors if tensor.is_floating_point()}
    model.float()
    yield
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            # A layer into which BatchNorm was folded has a bias now, of its weight's precision.
            weight = f"{name.rpartition('.')[0]}.weight".lstrip(".")
            tensor.data = tensor.data.to(dtypes.get(name) or dtypes.get(weight) or tensor.dtype)
