"""Spatial and weight SVD of Keras models: AIMET has no release for Keras 3, so these are our own.

Options, costs, ranks and weights are AIMET's (https://github.com/quic/aimet); the same network in PyTorch gets the same
ranks from AIMET, and gives the same outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from tracker.anchors.keras_base import traced_shapes
from tracker.codecs.base import Context
from tracker.codecs.records import Transformed
from tracker.decomposition.keras_ranks import Cost, Shape, greedy, monotonic
from tracker.decomposition.keras_split import decomposed, pair_of
from tracker.decomposition.report import reported
from tracker.decomposition.scores import Agreement, Scores, scores_key, write_json
from tracker.errors import TrackerError, unknown_layer
from tracker.frameworks.keras import FRAMEWORK
from tracker.frameworks.keras_graph import replaceable
from tracker.frameworks.keras_names import layers_by_name
from tracker.nested import on_device
from tracker.structure import Edit

if TYPE_CHECKING:
    from tracker.decomposition.options import Decomposition

log = logging.getLogger(__name__)


@dataclass
class Layer:
    """A layer of the model whose costs count.

    Attributes:
        name: in the model.
        layer: Keras's.
        shape: what its costs depend on.
        cost: of the whole layer.
        reason: why it stays as it is; empty where it is decomposed.
        ratio: its pair's cost over its own, as given or chosen.
        rank: of the pair.
    """

    name: str
    layer: Any
    shape: Shape
    cost: Cost
    reason: str = ""
    ratio: Decimal | None = None
    rank: int | None = None


@dataclass
class Work:
    """One use of the stage."""

    stage: Decomposition
    context: Context
    model: Any
    pair: Any
    layers: list[Layer] = field(default_factory=list)
    score_rows: list[dict[str, Any]] = field(default_factory=list)
    agreement: Agreement | None = None

    @property
    def open(self) -> list[Layer]:
        """The layers to decompose."""
        return [layer for layer in self.layers if not layer.reason]

    def decomposed(self, ranks: Mapping[str, int]) -> Any:
        """The model with pairs, and their weights."""
        return decomposed(self.model, self.pair, self.stage.kind, ranks)


def apply(stage: Decomposition, model: Any, context: Context, kind: str) -> Transformed:
    """A Keras model with layers decomposed.

    Args:
        stage: the options.
        model: not changed.
        context: of the stage.
        kind: ``spatial_svd`` or ``weight_svd``.

    Raises:
        TrackerError: the options do not fit the model, or its class has code of its own.
    """
    check(stage, model, final=True)
    needed = stage.mode == "auto" or context.agreement is not None
    agreement = Agreement(context, stage.evaluation_iterations) if needed else None
    work = Work(stage, context, model, pair_of(kind), agreement=agreement)
    work.layers = _layers(work)
    usable = work.open
    for layer in usable:
        _choose(stage, layer)
    if not usable:
        raise TrackerError(f"codec.{stage.key} can decompose no layer of the model; leave the stage out")
    if stage.mode == "auto":
        _search(work)
    ranks = {layer.name: layer.rank for layer in work.open if layer.rank is not None}
    changed = work.decomposed(ranks) if ranks else model
    return Transformed(changed, [Edit(f"keras_{kind}", dict(ranks))] if ranks else [], **_statistics(work, changed))


def check(stage: Decomposition, model: Any, final: bool = False) -> None:
    """Refuse a model without layers to decompose, or without those that the options name.

    Args:
        stage: the options.
        model: to look into.
        final: whether the model is the one that the stage gets; else an earlier stage may yet split a layer in two,
            NAME.0 and NAME.1.

    Raises:
        TrackerError: that.
    """
    pair, known = pair_of(stage.kind), replaceable(model)
    usable = [name for name, layer in known.items() if not pair.reason(layer)]
    if not usable:
        kinds = " or ".join(kind.__name__ for kind in pair.kinds())
        raise TrackerError(f"codec.{stage.key} works on {kinds} layers, and the anchor has none; leave it out")
    for option, name in stage.named():
        split = not final and name.endswith((".0", ".1")) and name[:-2] in known
        if name in usable or (option == "ignore" and name in known) or split:
            continue
        if name in known:
            raise TrackerError(f"codec.{stage.key} cannot decompose {name}: {pair.reason(known[name])}; leave it out")
        raise unknown_layer(f"codec.{stage.key}.{option}", name, usable)


def _layers(work: Work) -> list[Layer]:
    """All layers whose costs AIMET counts: two-dimensional convolutions and dense layers."""
    from keras import layers

    stage, known = work.stage, replaceable(work.model)
    inputs = next(iter(work.context.calibration()), None)
    if inputs is None:
        raise TrackerError("there are no calibration inputs to run the model on; add some to the data")
    outputs = traced_shapes(
        work.model, lambda: work.context.predict(work.model, on_device(_first(inputs), work.context.device, None))
    )
    found = []
    for name, layer in layers_by_name(work.model).items():
        if not isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D | layers.SeparableConv2D | layers.Dense):
            continue
        shape, cost = _costs(layer, outputs.get(id(layer)), stage.kind)
        reason = work.pair.reason(layer) if name in known else "its owner's code calls it"
        if not reason and (name in stage.ignore or (stage.layers is not None and name not in stage.layers)):
            reason = "ignored" if name in stage.ignore else "not in layers"
        if not reason and id(layer) not in outputs:
            reason = "the model does not run it"
        if not reason and not shape.saves(1, stage.cost_metric):
            reason = "a pair would cost more than the layer, even at rank 1"
        found.append(Layer(name, layer, shape, cost, reason))
    return found


def _costs(layer: Any, output: tuple[int, ...] | None, kind: str) -> tuple[Shape, Cost]:
    """A layer's shape and cost; a separable convolution is two."""
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    sizes = list(output or (1, 1))
    sizes.pop(-1 if last else 1)  # the channels
    positions = int(np.prod(sizes[1:])) if output else 0  # of one sample
    if not hasattr(layer, "kernel_size"):
        shape = Shape(kind, layer.units, int(layer.kernel.shape[0]), positions=positions)
        return shape, shape.cost()
    stride = (layer.strides[0], layer.strides[1])
    parts = [layer.depthwise_kernel, layer.pointwise_kernel] if hasattr(layer, "pointwise_kernel") else [layer.kernel]
    memory = sum(int(np.prod(part.shape)) for part in parts)
    height, width, into, out = parts[-1].shape
    return Shape(kind, out, into, (height, width), stride, positions), Cost(memory, memory * positions)


def _first(inputs: Any) -> Any:
    """The first sample of a batch."""
    if isinstance(inputs, dict):
        return {key: _first(value) for key, value in inputs.items()}
    return [_first(value) for value in inputs] if isinstance(inputs, tuple | list) else inputs[:1]


def _choose(stage: Decomposition, layer: Layer) -> None:
    """A layer's ratio and rank in mode manual.

    Raises:
        TrackerError: the rank was given for this layer, and is larger than the layer's.
    """
    name, shape, metric = layer.name, layer.shape, stage.cost_metric
    if stage.mode == "auto":
        return
    if name in stage.ranks or (name not in stage.ratios and stage.rank is not None):
        rank = stage.ranks.get(name, stage.rank)
        assert rank is not None
        largest = min(shape.largest(), pair_of(stage.kind).largest_rank(layer.layer))
        if name in stage.ranks and rank > largest:
            raise TrackerError(f"codec.{stage.key}.ranks.{name}={rank} is out of range: it is 1 to {largest}")
        if rank > largest or not shape.saves(rank, metric):
            layer.reason = f"at rank {rank} a pair would cost more than the layer"
            return
        layer.rank = rank
        layer.ratio = Decimal(shape.at(rank).by(metric)) / shape.cost().by(metric)
        return
    ratio = Decimal(str(stage.ratios.get(name, stage.ratio)))
    if ratio >= 1:
        layer.reason = "ratio 1"
        return
    ratio = shape.rounded(ratio, metric, stage.multiplicity)
    if ratio >= 1:
        layer.reason = "at the rounded rank a pair would cost no less than the layer"
        return
    layer.ratio, layer.rank = ratio, shape.rank(ratio, metric)


def _search(work: Work) -> None:
    """Mode auto: score each layer at each ratio, then choose the ratios that meet the target."""
    stage, metric = work.stage, work.stage.cost_metric
    shapes = {layer.name: layer.shape for layer in work.open}
    candidates = [Decimal(1) / Decimal(stage.candidates) * index for index in range(1, stage.candidates)]
    scores = {name: dict[Decimal, float]() for name in shapes}
    state = FRAMEWORK.state(work.model, ())
    kept = Scores(scores_key(work.context, work.model, state, "keras", stage.kind, stage.evaluation_iterations))
    every = [(name, ratio) for name in shapes for ratio in candidates]
    for name, ratio in tqdm(every, desc=f"score {stage.key}", unit="rank", disable=None, leave=False):
        rank = shapes[name].rank(ratio, metric)
        score, source = kept.get(name, rank), "cache"
        if score is None:
            assert work.agreement is not None
            score, source = work.agreement(work.decomposed({name: rank})), "computed"
            kept.put(name, rank, score)
        scores[name][ratio] = score
        row = {"layer": name, "ratio": float(ratio), "rank": rank, "score": score, "source": source}
        work.score_rows.append(row)
    if stage.monotonic_fit:
        scores = {name: monotonic(row) for name, row in scores.items()}
    rest = sum(layer.cost.by(metric) for layer in work.layers if layer.reason)
    ratios = greedy(
        scores, shapes, rest, stage.target, metric, lambda n, r: shapes[n].rounded(r, metric, stage.multiplicity)
    )
    for layer in work.open:
        layer.ratio = ratios[layer.name]
        if layer.ratio is not None and layer.ratio < 1:
            layer.rank = layer.shape.rank(layer.ratio, metric)
    if work.context.folder is not None:
        plain = {name: {str(ratio): score for ratio, score in row.items()} for name, row in scores.items()}
        write_json(work.context.folder / "scores.json", plain)


def _statistics(work: Work, changed: Any) -> dict[str, Any]:
    """Ratios, metrics, tables and figures, named as those of AIMET's stages."""
    stage = work.stage
    rows, before, after = [], Cost(0, 0), Cost(0, 0)
    for layer in work.layers:
        cost = layer.cost if layer.rank is None else layer.shape.at(layer.rank, counted=True)
        before = Cost(before.memory + layer.cost.memory, before.mac + layer.cost.mac)
        after = Cost(after.memory + cost.memory, after.mac + cost.mac)
        shape = layer.shape
        kernel = [] if not hasattr(layer.layer, "kernel_size") else list(shape.kernel)
        rows.append(
            {
                "layer": layer.name,
                "kind": type(layer.layer).__name__,
                "shape": "x".join(map(str, [shape.out, shape.into, *kernel])),
                "ratio": None if layer.rank is None or layer.ratio is None else float(layer.ratio),
                "rank": layer.rank,
                "MACs before": layer.cost.mac,
                "MACs after": cost.mac,
                "memory before": layer.cost.memory,
                "memory after": cost.memory,
                "note": layer.reason,
            }
        )
    ratios = after.mac / before.mac, after.memory / before.memory
    agreed = None if work.agreement is None else work.agreement(changed)
    ranked = sum(row["rank"] is not None for row in rows)
    return reported(stage, ratios, rows, ranked, agreed, work.score_rows)
