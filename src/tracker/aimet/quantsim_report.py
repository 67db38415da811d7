"""What quantsim tells about its work: a row for each weight, a plot, metrics, and AIMET's encodings file."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tracker.codecs.records import Integers
from tracker.models import float_elements

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tracker.aimet.quantsim_weights import Weight
    from tracker.codecs.quantsim import QuantSim

log = logging.getLogger(__name__)
ENCODINGS = "encodings.json"
MOST_LAYERS = 40


def rows(stage: QuantSim, weights: Sequence[Weight], made: Mapping[str, Integers], model: nn.Module) -> list[Any]:
    """The table: every weight that became integers, then those that stay floating point.

    Args:
        stage: the configuration.
        weights: with their values before quantisation.
        made: the integers, by name.
        model: whose other tensors of two dimensions or more are listed too.
    """
    table = []
    for weight in weights:
        integers = made[weight.name]
        values = integers.value()
        error, power = squares(weight.parameter.detach().cpu().float() - values), squares(weight.parameter)
        table.append(
            {
                "tensor": weight.name,
                "bits": integers.bits,
                "shape": list(integers.integers.shape),
                "scheme": stage.scheme,
                "encodings": "per channel" if integers.scale.numel() > 1 else "per tensor",
                "symmetric": bool(weight.quantiser.symmetric),
                "rounding": stage.rounding if weight.optimised else "nearest",
                "min": float(values.min()),
                "max": float(values.max()),
                "mean squared error": error / values.numel(),
                "SQNR dB": decibel(power, error),
            }
        )
    known = {weight.parameter.data_ptr() for weight in weights}
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and parameter.data_ptr() not in known:
            table.append({"tensor": name, "bits": None, "shape": list(parameter.shape), "scheme": "floating point"})
    return table


def left_layers(weights: Sequence[Weight], model: nn.Module, ignore: Sequence[str]) -> list[tuple[str, str]]:
    """Layers whose weights stay in floating point although nobody asked for it, each with the reason.

    Their weights are made of other tensors in each run of the model, as by weight_norm or spectral_norm.

    Args:
        weights: that became integers.
        model: that has them.
        ignore: layers, or modules with all in them, that the configuration leaves out.
    """
    known = {weight.parameter.data_ptr() for weight in weights}
    known |= {parameter.data_ptr() for name in ignore for parameter in model.get_submodule(name).parameters()}
    left: dict[str, str] = {}
    for name, module in model.named_modules():
        if is_parametrized(module):
            lists: Any = module.parametrizations
            for key, made in lists.items():
                source = [parameter for parameter in made.parameters() if parameter.ndim >= 2]
                if source and not any(parameter.data_ptr() in known for parameter in source):
                    kinds = " and ".join(type(kind).__name__.strip("_") for kind in made)
                    left.setdefault(name, f"its {key} is a parametrisation: {kinds}")
    return list(left.items())


def tell_left(left: Sequence[tuple[str, str]]) -> None:
    """A warning about layers that stay in floating point."""
    if left:
        told = "; ".join(f"{name or 'the model'} ({reason})" for name, reason in left[:3])
        more = f"; and {len(left) - 3} more, in stages/*/layers.json" if len(left) > 3 else ""
        log.warning(
            "codec.quantsim leaves layers in floating point: %s%s; the coder stores them at its own precision",
            told,
            more,
        )


def squares(tensor: Tensor) -> float:
    """Sum of squares."""
    return float(tensor.detach().double().square().sum())


def decibel(power: float, error: float) -> float | None:
    """Signal-to-noise ratio; None where there is no noise, or no signal."""
    return 10 * math.log10(power / error) if error > 0 and power > 0 else None


def metrics(
    weights: Sequence[Weight], made: Mapping[str, Integers], state: Mapping[str, Tensor], edits: int, groups: int
) -> dict[str, float]:
    """Figures over all weights.

    Args:
        weights: with their values before quantisation.
        made: the integers, by name.
        state: the model's tensors.
        edits: BatchNorms that were folded.
        groups: of layers that were equalised.
    """
    error = sum(squares(weight.parameter.detach().cpu() - made[weight.name].value()) for weight in weights)
    power = sum(squares(weight.parameter) for weight in weights)
    values = sum(integers.integers.numel() for integers in made.values())
    figures = {
        "quantsim/bits": sum(integers.bits * integers.integers.numel() for integers in made.values()) / values,
        "quantsim/quantised_percent": 100 * values / float_elements(state),
        "quantsim/folded_norms": float(edits),
        "quantsim/equalised_groups": float(groups),
    }
    ratio = decibel(power, error)
    return figures if ratio is None else {**figures, "quantsim/sqnr_db": ratio}


def memory_ratio(made: Mapping[str, Integers], state: Mapping[str, Tensor], before: int) -> float:
    """Memory of the weights, integers at their width, over that of the model given, as float32.

    Args:
        made: the integers, by name.
        state: the model's tensors.
        before: floating-point values in the model given.
    """
    quantised = sum(integers.integers.numel() for integers in made.values())
    rest = 4 * (float_elements(state) - quantised)
    return (rest + sum(integers.bytes() for integers in made.values())) / (4 * before)


def plot(table: Sequence[Mapping[str, Any]]) -> Figure:
    """Signal-to-noise ratio of the quantised weights, in the model's order."""
    from matplotlib.figure import Figure

    measured = [row for row in table if row["bits"] is not None]
    step = -(-len(measured) // MOST_LAYERS)  # of a large model every so many
    shown = measured[::step]
    figure = Figure(figsize=(7.5, 1.3 + 0.22 * len(shown)), layout="constrained", dpi=110)
    axes = figure.subplots()
    axes.barh(range(len(shown)), [row["SQNR dB"] or 0 for row in shown], color="#3b76af")
    names = [row["tensor"] if len(row["tensor"]) <= 42 else "…" + row["tensor"][-41:] for row in shown]
    axes.set_yticks(
        range(len(shown)), [f"{name} ({row['bits']} bit)" for name, row in zip(names, shown, strict=True)], fontsize=7
    )
    axes.invert_yaxis()
    axes.set_xlabel("signal-to-quantisation-noise ratio (dB)")
    axes.grid(axis="x", alpha=0.3)
    every = f", every {step}th of {len(measured)}" if step > 1 else ""
    figure.suptitle(f"quantsim: weights{every}", fontsize=10)
    return figure


def write_encodings(weights: Sequence[Weight], sim: Any, prefix: str, folder: Path) -> None:
    """AIMET's encodings file (version 0.6.1), which ``QuantizationSimModel.load_encodings`` reads.

    Args:
        weights: with their quantisers.
        sim: the simulation, for encodings of activations.
        prefix: of names in the simulation, which the file leaves out.
        folder: to write into.
    """
    activations, _ = sim.get_activation_param_encodings()
    encodings = {
        "version": "0.6.1",
        "activation_encodings": {name.removeprefix(prefix): value for name, value in activations.items()},
        "param_encodings": {weight.name: weight.quantiser.get_legacy_encodings() for weight in weights},
    }
    (folder / ENCODINGS).write_text(json.dumps(encodings, indent=1, sort_keys=True), encoding="utf-8")
