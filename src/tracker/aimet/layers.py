"""The layers of a model that AIMET can decompose, and why it cannot decompose the others.

AIMET replaces a layer by two whatever it is: where it does not know an option of a convolution, such as padding by
reflection, the pair computes something else. So each kind of layer is tried first, on a small one of its kind.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tracker.aimet import Prepared

SHOWN = (_ConvNd, nn.Linear)
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@dataclass(frozen=True)
class Found:
    """A layer of the model.

    Attributes:
        name: in the stage's model; empty where that is itself the layer.
        module: the layer.
        aimet: AIMET's record of it; None where it has none.
        reason: why it is not decomposed; empty where it can be.
        failure: whether AIMET should have been able to.
    """

    name: str
    module: nn.Module
    aimet: Any
    reason: str = ""
    failure: bool = False


def find(prepared: Prepared, database: Any, splitter: Any, types: tuple[type[nn.Module], ...]) -> list[Found]:
    """All convolutions and linear layers, in the model's order.

    Args:
        prepared: the model.
        database: AIMET's, of that model.
        splitter: AIMET's.
        types: of the layers that the decomposition is for.
    """
    places, tied = _places(prepared.model), tied_weights(prepared.model)
    known = {id(layer.module): layer for layer in database}
    geometries: dict[Any, str] = {}
    found = []
    for full_name, module in prepared.model.named_modules():
        if not isinstance(module, SHOWN):
            continue
        layer, name = known.get(id(module)), plain_name(full_name, prepared.prefix)
        other = _other_kind(module, types)
        if other:
            found.append(Found(name, module, layer, other))
            continue
        reason = _unusual(module, types) or _place(module, layer, places, tied)
        if not reason:
            kind = _geometry(module)
            if kind not in geometries:
                geometries[kind] = _trial(module, splitter)
            reason = geometries[kind]
        found.append(Found(name, module, layer, reason, bool(reason)))
    return _replaceable(prepared, found)


def _other_kind(module: nn.Module, types: tuple[type[nn.Module], ...]) -> str:
    """Why a decomposition is not made for a layer."""
    if not isinstance(module, types):
        return f"not for {type(module).__name__} layers"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return "not for grouped convolutions"
    return ""


def _place(module: Any, layer: Any, places: Mapping[int, int], tied: Collection[int]) -> str:
    """Why AIMET would go wrong with a layer where it is in the model."""
    if layer is None or layer.parent_module is None:
        return "the model does not run it, or not by itself"
    if places[id(module)] > 1:
        return "the model has it in several places, and AIMET would change one of them"
    return "its weight is shared with another layer" if id(module.weight) in tied else ""


def plain_name(name: str, prefix: str) -> str:
    """A layer's name in the stage's model, from that in the model that AIMET has."""
    return "" if prefix and name == prefix.rstrip(".") else name.removeprefix(prefix)


def halves(name: str) -> tuple[str, str]:
    """The names of the two layers in a layer's place."""
    return (f"{name}.0", f"{name}.1") if name else ("0", "1")


def _places(model: nn.Module) -> dict[int, int]:
    """How many attributes of modules hold each module."""
    count: dict[int, int] = {}
    for parent in model.modules():
        for child in parent._modules.values():
            count[id(child)] = count.get(id(child), 0) + 1
    return count


def tied_weights(model: nn.Module) -> set[int]:
    """Parameters that several modules hold."""
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    return {parameter for parameter, number in holders.items() if number > 1}


def _unusual(module: nn.Module, types: tuple[type[nn.Module], ...]) -> str:
    """What of a layer would be lost in a pair of plain ones."""
    (plain,) = (kind for kind in types if isinstance(module, kind))
    own = [
        name for name in ("forward", "_conv_forward") if getattr(type(module), name, 0) is not getattr(plain, name, 0)
    ]
    if own or set(module._parameters) != {"weight", "bias"} or module._modules or module._buffers:
        return f"{type(module).__name__} is more than a {plain.__name__}"
    if any(getattr(module, hooks) for hooks in HOOKS):
        return "it has hooks, which would be lost"
    return ""


def _geometry(module: Any) -> tuple[Any, ...]:
    """What a layer's computation depends on, besides its channels and weights."""
    if isinstance(module, nn.Linear):
        return ("Linear", module.bias is None)
    return (
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.padding_mode,
        module.bias is None,
    )


def _trial(module: Any, splitter: Any) -> str:
    """Why AIMET cannot split layers like this one; empty where it can: at full rank, the pair computes the same."""
    if isinstance(module, nn.Linear):
        small: nn.Module = nn.Linear(4, 3, bias=module.bias is not None)
        inputs, rank = torch.randn(2, 4), 3
    else:
        height, width = module.kernel_size
        bias = module.bias is not None
        options = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
        small = nn.Conv2d(2, 3, (height, width), padding_mode=module.padding_mode, bias=bias, **options)
        padding = (0, 0) if isinstance(module.padding, str) else module.padding
        sides = [
            (kernel - 1) * dilation + 2 * pad + 3 * stride + 2
            for kernel, dilation, pad, stride in zip(
                (height, width), module.dilation, padding, module.stride, strict=True
            )
        ]
        inputs = torch.randn(1, 2, *sides)
        rank = 2 if "Weight" in splitter.__name__ else min(2 * height, 3 * width)
    options_told = [
        f"{name} {getattr(module, name)}"
        for name, usual in (("dilation", (1, 1)), ("padding_mode", "zeros"))
        if getattr(module, name, usual) != usual
    ]
    if isinstance(getattr(module, "padding", None), str):
        options_told.append(f"padding {module.padding!r}")
    told = " and ".join(options_told) or f"geometry {_geometry(module)}"
    try:
        with torch.no_grad():
            expected = small(inputs)
            given = nn.Sequential(*splitter.split_module(small, rank))(inputs)
    except Exception as error:  # assertions without text, mostly
        more = "" if isinstance(error, AssertionError) else f" ({type(error).__name__})"
        return f"AIMET cannot split layers of {told}{more}"
    if given.shape != expected.shape or not torch.allclose(given, expected, rtol=1e-3, atol=1e-4):
        return f"AIMET splits layers of {told} into a pair that computes something else"
    return ""


def _replaceable(prepared: Prepared, found: list[Found]) -> list[Found]:
    """The layers, those set apart that the model cannot run without, such as one whose weight it reads itself."""
    usable = [layer for layer in found if not layer.reason]
    if _runs_with(prepared, usable):
        return found
    return [
        layer
        if layer.reason or _runs_with(prepared, [layer])
        else Found(layer.name, layer.module, layer.aimet, "the model does not run with a pair in its place", True)
        for layer in found
    ]


def _runs_with(prepared: Prepared, layers: list[Found]) -> bool:
    """Whether the model runs with something else in the place of layers that gives outputs of the same shape."""
    try:
        for layer in layers:
            owner, name = layer.aimet.parent_module, layer.aimet.var_name_of_module_in_parent
            owner._modules[name] = nn.Sequential(layer.module, nn.Identity())
        with torch.no_grad():
            prepared.model(*prepared.example)
    except Exception:  # a user's model raises what it likes
        return False
    finally:
        for layer in layers:
            layer.aimet.parent_module._modules[layer.aimet.var_name_of_module_in_parent] = layer.module
    return True


def shape_of(module: Any) -> str:
    """Such as 64x32x3x3."""
    weight: Tensor = module.weight
    return "x".join(map(str, weight.shape))


def fixed_shapes(module: nn.Module, output: Any, shape: list[int]) -> list[int]:
    """An output's shape in the form that AIMET's costs assume: the last two dimensions are the positions.

    AIMET takes only (N, C) from linear layers and only (N, C, H, W) from convolutions, and reads other dimensions for
    positions: of (N, T, C) it takes C positions for 1 in one formula and for C in the other. For what it does take,
    with one sample, nothing changes here.
    """
    if isinstance(module, nn.Linear) and isinstance(output, Tensor):
        return [1, module.out_features, output.numel() // module.out_features, 1]
    if isinstance(module, nn.Conv2d) and isinstance(output, Tensor):
        height, width = output.shape[-2:]
        samples = output.numel() // max(1, module.out_channels * height * width)
        return [1, module.out_channels, height, width * samples]
    return [1] * (2 - len(shape)) + shape


def cost_rows(
    found: list[Found], after: Mapping[str, Any], given: Mapping[str, Any], compute: Any
) -> list[dict[str, Any]]:
    """The table of layers.

    Args:
        found: all layers.
        after: AIMET's records of the decomposed model, by the layers' names there.
        given: the ratios that AIMET was given or chose, by layer.
        compute: AIMET's cost of a layer.
    """
    rows = []
    for layer in found:
        before = compute(layer.aimet) if layer.aimet is not None else None
        pair = [after[name] for name in halves(layer.name) if name in after]
        costs = [compute(part) for part in pair] or ([before] if before else [])
        ratio = given.get(layer.name)
        rows.append(
            {
                "layer": layer.name or "(the model)",
                "kind": type(layer.module).__name__,
                "shape": shape_of(layer.module),
                "ratio": None if ratio is None or not pair else float(ratio),
                "rank": pair[0].module.weight.shape[0] if pair else None,
                "MACs before": before.mac if before else None,
                "MACs after": sum(cost.mac for cost in costs) if costs else None,
                "memory before": before.memory if before else None,
                "memory after": sum(cost.memory for cost in costs) if costs else None,
                "note": layer.reason,
            }
        )
    return rows
