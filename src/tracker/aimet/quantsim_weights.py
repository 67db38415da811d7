"""AIMET's quantisers for the weights of a model, and the integers that they make."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tracker.aimet import Prepared
from tracker.aimet.quantsim_graph import MEND, base, told
from tracker.codecs.records import Integers
from tracker.errors import TrackerError

if TYPE_CHECKING:
    from tracker.codecs.quantsim import QuantSim

CONFIG = "quantsim_config.json"
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


@dataclasses.dataclass
class Weight:
    """A weight and AIMET's quantiser for it.

    Attributes:
        name: of the tensor in the model, its first where it is tied.
        parameter: of the floating-point model.
        simulated: the same of AIMET's simulation.
        quantiser: an AIMET quantiser.
        optimised: whether AIMET's AdaRound works on its layer.
        known: whether AIMET's simulation quantises the layer; else the quantiser is made here.
        named: whether the configuration names its bits.
    """

    name: str
    parameter: nn.Parameter
    simulated: nn.Parameter
    quantiser: Any
    optimised: bool
    known: bool
    named: bool


def write_config(stage: QuantSim, folder: Path) -> Path:
    """AIMET's own configuration of a simulation, with the symmetry that was asked for."""
    import aimet_torch

    shipped = Path(aimet_torch.__file__).parent / "common" / "quantsim_config"
    name = "default_config_per_channel.json" if stage.per_channel else "default_config.json"
    config = json.loads((shipped / name).read_text(encoding="utf-8"))
    config["defaults"]["params"]["is_symmetric"] = str(stage.symmetric)
    path = folder / CONFIG
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return path


def scheme(stage: QuantSim) -> Any:
    """The quantisation scheme, as AIMET names it."""
    from aimet_torch.common.defs import QuantScheme

    return QuantScheme.post_training_tf_enhanced if stage.scheme == "tf_enhanced" else QuantScheme.min_max


def simulation(stage: QuantSim, prepared: Prepared, config: Path) -> Any:
    """AIMET's simulation of a copy of the model, without the quantisers of layers that are to be left alone.

    Raises:
        TrackerError: AIMET cannot trace the model.
    """
    from aimet_torch.nn import QuantizationMixin
    from aimet_torch.quantsim import QuantizationSimModel

    # Modules that AIMET has no counterpart of stay as they are, instead of ending the work.
    QuantizationMixin.ignore_unknown_modules(True)
    try:
        with told("trace and simulate this model", MEND):
            sim = QuantizationSimModel(
                prepared.model,
                prepared.example,
                quant_scheme=scheme(stage),
                default_output_bw=stage.activations or 8,
                default_param_bw=stage.bits,
                config_file=str(config),
            )
    finally:
        QuantizationMixin.ignore_unknown_modules(False)
    with told("leave layers out", "name other layers in codec.quantsim.ignore"):
        left = [sim.model.get_submodule(f"{prepared.prefix}{name}") for name in stage.ignore]
        sim.exclude_layers_from_quantization(left)
    if stage.activations is None:
        for _, module in sim.named_qmodules():
            for quantisers in (module.input_quantizers, module.output_quantizers):
                for index in range(len(quantisers)):
                    quantisers[index] = None
    return sim


def quantisers(stage: QuantSim, prepared: Prepared, sim: Any) -> list[Weight]:
    """One quantiser for each weight of the model; those of AIMET's simulation, where it has one.

    The simulation is changed so that tied weights have one quantiser there too, and that biases and norms have none.

    Raises:
        TrackerError: there is no weight to quantise.
    """
    model = base(prepared)
    simulated = dict(sim.model.named_parameters(remove_duplicate=False))
    ignored = {p.data_ptr() for name in stage.ignore for p in model.get_submodule(name).parameters()}
    weights: dict[int, Weight] = {}
    places: dict[int, list[tuple[Any, str]]] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        own = getattr(sim.model.get_submodule((prepared.prefix + module_name).rstrip(".")), "param_quantizers", {})
        for key, parameter in module.named_parameters(recurse=False):
            quantiser = own[key] if key in own else None  # noqa: SIM401 - a ModuleDict has no get
            if quantiser is not None:
                own[key] = None
            pointer = parameter.data_ptr()
            if not is_weight(module, key, parameter) or pointer in ignored:
                continue
            if quantiser is not None:
                places.setdefault(pointer, []).append((own, key))
            elif pointer in weights:
                continue
            name = f"{module_name}.{key}".lstrip(".")
            weight = Weight(
                name,
                parameter,
                simulated[prepared.prefix + name],
                quantiser or quantiser_for(stage, module, parameter),
                optimised=quantiser is not None and optimisable(module),
                known=quantiser is not None,
                named=module_name in stage.bits_per_layer,
            )
            weight.quantiser.bitwidth = stage.bits_per_layer.get(module_name, stage.bits)
            weights[pointer] = preferred(weights[pointer], weight) if pointer in weights else weight
    if not weights:
        raise TrackerError("the model has no weights that could be quantised; leave quantsim out for this anchor")
    for pointer, weight in weights.items():
        for own, key in places.get(pointer, ()):
            own[key] = weight.quantiser
    return list(weights.values())


def preferred(first: Weight, second: Weight) -> Weight:
    """The quantiser for a weight that two layers share (an embedding and the layer that undoes it).

    Bits that were asked for come first, then the layer that AIMET can optimise, then the finer encodings.
    """

    def rank(weight: Weight) -> tuple[bool, bool, bool, int]:
        return weight.named, weight.known, weight.optimised, math.prod(weight.quantiser.shape)

    return dataclasses.replace(max((first, second), key=rank), name=first.name)


def optimisable(layer: nn.Module) -> bool:
    """Whether it is a layer that AIMET's AdaRound works on."""
    return isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)


def is_weight(module: nn.Module, key: str, parameter: Tensor) -> bool:
    """Whether a parameter is a weight to quantise: not a bias, nothing of a norm, no half of a reparametrisation."""
    named = key == "weight" or key.endswith("_weight") or key.startswith("weight_ih") or key.startswith("weight_hh")
    plain = parameter.ndim >= 2 and parameter.numel() > 0 and parameter.is_floating_point()
    return named and plain and not isinstance(module, NORMS)


def quantiser_for(stage: QuantSim, module: nn.Module, parameter: Tensor) -> Any:
    """A quantiser as AIMET's simulation would have it, for a layer that it has none for."""
    from aimet_torch.quantization.affine import QuantizeDequantize
    from aimet_torch.quantization.encoding_analyzer import MinMaxEncodingAnalyzer, TfEnhancedEncodingAnalyzer

    shape = [1] * parameter.ndim if stage.per_channel else []
    if stage.per_channel:
        axis = output_axis(module)
        shape[axis] = parameter.shape[axis]
    analyser = TfEnhancedEncodingAnalyzer if stage.scheme == "tf_enhanced" else MinMaxEncodingAnalyzer
    made = QuantizeDequantize(
        tuple(shape), stage.bits, symmetric=stage.symmetric, encoding_analyzer=analyser(tuple(shape))
    )
    return made.to(parameter.device)


def output_axis(module: nn.Module) -> int:
    """Where a weight's output channels are; the linear layers of GPT-2 (Conv1D) have them last."""
    last = isinstance(module, nn.modules.conv._ConvTransposeNd) or type(module).__name__ == "Conv1D"
    return 1 if last else 0


def integers_of(weight: Weight) -> Integers:
    """What AIMET's quantiser makes of a weight: integers times scales, equal to the last bit.

    Raises:
        TrackerError: it cannot be told so.
    """
    encodings = weight.quantiser.get_encodings()
    with torch.no_grad():
        value = weight.quantiser(weight.simulated).as_subclass(Tensor).detach()
        scale = encodings.scale.detach().float()
        integers = torch.round(value / scale)  # with the offset of asymmetric encodings in it
    scale = scale.reshape(()) if scale.numel() == 1 else scale
    made = Integers(integers.to(torch.int32).cpu(), scale.cpu().contiguous(), int(weight.quantiser.bitwidth))
    if not torch.equal(made.value(), value.cpu()):
        raise TrackerError(
            f"AIMET's values of {weight.name} are no integers times a scale; add its layer to codec.quantsim.ignore"
        )
    return made
