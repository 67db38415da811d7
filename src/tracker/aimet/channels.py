"""Which layers AIMET can prune, and what pruning them costs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tracker.aimet.winnow import Guard, outputs

SIDE = 64  # of the part of an image on which models are compared


@dataclass(frozen=True)
class Channels:
    """Numbers of channels, as AIMET counts them."""

    metric: Any

    def rank(self, layer: Any, ratio: Any) -> int:
        """The number of input channels that a layer keeps at a ratio."""
        return max(1, int(layer.module.in_channels * ratio))


def unfit(layer: nn.Conv2d) -> str:
    """Why AIMET cannot prune a convolution; empty where it may."""
    if layer.groups != 1:
        return "it has several groups"
    if layer.in_channels < 2:
        return "it has one input channel"
    if layer.dilation != (1, 1):
        return "it is dilated"
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return f"its padding is {layer.padding if isinstance(layer.padding, str) else layer.padding_mode}"
    return ""


def running(model: nn.Module, example: Tensor) -> tuple[dict[str, int], set[str]]:
    """The convolutions that run.

    Returns:
        How often each one runs, by name, in the order of their first runs; and which ones read the model's own input.
    """
    calls: dict[str, int] = {}
    first: set[str] = set()

    def note(name: str, inputs: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].data_ptr() == example.data_ptr():
            first.add(name)

    handles = [
        module.register_forward_hook(lambda _, inputs, __, name=name: note(name, inputs))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        outputs(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return calls, first


class Costs:
    """The model's cost after pruning, without pruning it.

    AIMET prunes a copy of the whole model, layer by layer, for each step of its bisection. But the layers are pruned
    independently of each other: each loses input channels, and with them go output channels of certain layers before
    it, which are found once.
    """

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.sources: dict[str, list[str]] = {}

    def find(self, pruner: Any, database: Any, guard: Guard, names: Iterable[str]) -> None:
        """Prune each of some layers alone, and see which others lose output channels; the guard notes what fails."""
        for name in names:
            changed = copy.deepcopy(database)
            pruner._winnow_and_reconstruct_layer(database, changed, changed.find_layer_by_name(name), 0.5, False)
            if name in guard.failures:
                continue
            after = {layer.name: layer.module for layer in changed}
            self.sources[name] = [
                layer.name
                for layer in database
                if isinstance(layer.module, nn.Conv2d)
                and layer.name in after
                and after[layer.name].out_channels < layer.module.out_channels
            ]

    def cost(self, database: Any, pairs: Iterable[Any]) -> Any:
        """Of a model with layers pruned.

        Args:
            database: AIMET's, of the whole model.
            pairs: layers and their ratios, None for those that stay as they are.
        """
        from aimet_torch.common.cost_calculator import Cost, CostCalculator

        share: dict[str, float] = {}
        for pair in pairs:
            if pair.comp_ratio is not None:
                kept = self.channels.rank(pair.layer, pair.comp_ratio) / pair.layer.module.in_channels
                for name in (pair.layer.name, *self.sources[pair.layer.name]):
                    share[name] = share.get(name, 1.0) * kept
        costs = [(CostCalculator.compute_layer_cost(layer), share.get(layer.name, 1.0)) for layer in database]
        return Cost(sum(cost.memory * kept for cost, kept in costs), sum(cost.mac * kept for cost, kept in costs))


def rows(
    before: Mapping[str, Any], after: Mapping[str, Any], ratios: Mapping[str, Any], reasons: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The table of layers.

    Args:
        before: AIMET's records of the model's layers, by name.
        after: those of the pruned model; a layer that has a choice of channels before it is ``NAME.1``.
        ratios: that AIMET was given or chose, by layer.
        reasons: why layers were left as they are.
    """
    from aimet_torch.common.cost_calculator import CostCalculator

    table = []
    for name, layer in before.items():
        if not isinstance(layer.module, nn.Conv2d | nn.Linear):
            continue
        now = after.get(name) or after[f"{name}.1"]
        first, last = CostCalculator.compute_layer_cost(layer), CostCalculator.compute_layer_cost(now)
        ratio, shape, shape_now = ratios.get(name), layer.module.weight.shape, now.module.weight.shape
        table.append(
            {
                "layer": name,
                "kind": type(layer.module).__name__,
                "ratio": None if ratio is None or name in reasons else float(ratio),
                "input channels": shape[1],
                "input channels kept": shape_now[1],
                "output channels": shape[0],
                "output channels kept": shape_now[0],
                "MACs before": first.mac,
                "MACs after": last.mac,
                "memory before": first.memory,
                "memory after": last.memory,
                "note": reasons.get(name, ""),
            }
        )
    return table


def smaller(model: nn.Module, example: Tensor) -> Tensor:
    """A part of a large image, where the model takes one: two models are compared on it after each layer."""
    part = example[..., :SIDE, :SIDE].contiguous()
    if part.shape == example.shape:
        return example
    try:
        outputs(model, part)
    except Exception:  # a model's own code raises what it likes
        return example
    return part


def same(model: nn.Module, other: nn.Module, example: Tensor) -> bool:
    """Whether two models compute the very same."""
    return torch.equal(outputs(model, example), outputs(other, example))
