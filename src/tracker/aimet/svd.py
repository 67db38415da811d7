"""Spatial and weight SVD of PyTorch models, by AIMET's ModelCompressor (https://github.com/quic/aimet).

AIMET decides ranks and computes weights. The model that comes out is built by `tracker.structure`, as the receiver
builds it, and filled with AIMET's weights, so that both have the same layers under the same names.
"""

from __future__ import annotations

import copy
import importlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tracker import aimet
from tracker.aimet import layers as aimet_layers
from tracker.aimet.compressor import Tools, Work, adapted, run
from tracker.aimet.layers import Found
from tracker.codecs.base import Context
from tracker.codecs.records import Transformed
from tracker.decomposition.report import reported, tell_left
from tracker.decomposition.scores import Agreement, Scores, scores_key
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import state_tensors
from tracker.structure import Edit, rebuild

if TYPE_CHECKING:
    from tracker.decomposition.options import Decomposition

    SvdWork = Work[Decomposition, Tools]


def apply(stage: Decomposition, model: nn.Module, context: Context) -> Transformed:
    """A PyTorch model with layers decomposed.

    Args:
        stage: the options.
        model: changed in place.
        context: of the stage.

    Raises:
        TrackerError: the options do not fit the model, or AIMET fails.
    """
    for option, name in stage.named():
        stage.check_layer(model, option, name, final=True)
    assert context.folder is not None
    with aimet.session(context.folder), torch.random.fork_rng(devices=[]):
        work = _start(stage, model, context)
        with adapted(work):
            found = _layers(work)
            chosen = _chosen(work, found)
            stats = _compressed(work, found, chosen)
        return _result(work, model, _told(found, chosen), stats)


def _start(stage: Decomposition, model: nn.Module, context: Context) -> SvdWork:
    """A copy to work on, and the measure."""
    # In float32: AIMET's spatial SVD gives float32 whatever it gets, and numpy decomposes no half precision.
    copied = copy.deepcopy(model).float()
    prepared = aimet.prepared(copied, context)
    if isinstance(copied, stage.types()) and not prepared.prefix:
        # AIMET replaces a layer in its parent, so there has to be one.
        wrapped = aimet.Positional(copied, context.predict, lambda tensors: tensors[0]).eval()
        prepared = aimet.Prepared(wrapped, prepared.example, "model.")
    needed = stage.mode == "auto" or context.agreement is not None
    agreement = Agreement(context, stage.evaluation_iterations) if needed else None
    work = Work(stage, context, prepared, _tools(stage), agreement)
    if stage.mode == "auto":
        parts = stage.kind, stage.evaluation_iterations
        work.scores = Scores(scores_key(context, model, state_tensors(model), *parts))
    return work


def _tools(stage: Decomposition) -> Tools:
    from aimet_torch.common import cost_calculator
    from aimet_torch.common.defs import CostMetric
    from aimet_torch.svd import svd_splitter

    word = "SpatialSvd" if stage.kind == "spatial_svd" else "WeightSvd"
    splitter = getattr(svd_splitter, f"{word}ModuleSplitter")
    return Tools(splitter, getattr(cost_calculator, f"{word}CostCalculator"), CostMetric[stage.cost_metric])


def _layers(work: SvdWork) -> list[Found]:
    """All layers; refuses what is configured to be refused.

    Raises:
        TrackerError: none can be decomposed, or AIMET fails on one and ``on_failure`` is ``refuse``.
    """
    from aimet_torch.layer_database import LayerDatabase

    stage = work.stage
    database = run(work, lambda: LayerDatabase(work.prepared.model, work.prepared.example))
    found = aimet_layers.find(work.prepared, database, work.tools.splitter, stage.types())
    wanted = [layer for layer in found if _wanted(stage, layer.name)]
    failures = [layer for layer in wanted if layer.failure]
    named = {name for option, name in stage.named() if option != "ignore"}
    for layer in wanted:
        if layer.name in named and layer.reason and not layer.failure:
            raise TrackerError(f"codec.{stage.key} cannot decompose {layer.name}: {layer.reason}; leave it out")
    if not any(not layer.reason for layer in wanted):
        first = next((layer for layer in [*failures, *wanted] if layer.reason), None)
        reason = f" ({first.name or 'the model'}: {first.reason})" if first else ""
        raise TrackerError(f"codec.{stage.key} can decompose no layer of the model{reason}; leave the stage out")
    if failures and stage.on_failure == "refuse":
        raise TrackerError(
            f"AIMET cannot decompose {failures[0].name}: {failures[0].reason}; put it into codec.{stage.key}.ignore, "
            f"or set codec.{stage.key}.on_failure=skip"
        )
    tell_left(stage, [(layer.name, layer.reason) for layer in failures])
    return found


def _wanted(stage: Decomposition, name: str) -> bool:
    return name not in stage.ignore and (stage.layers is None or name in stage.layers)


def _chosen(work: SvdWork, found: list[Found]) -> dict[str, Any]:
    """Ratios by layer (None: AIMET's choice); layers that stay as they are have a reason, a string.

    Raises:
        TrackerError: a rank is larger than the layer's, or nothing is left to decompose.
    """
    stage, tools, chosen = work.stage, work.tools, dict[str, Any]()
    for layer in found:
        name = layer.name
        if layer.reason:
            continue
        if not _wanted(stage, name):
            chosen[name] = "ignored" if name in stage.ignore else "not in layers"
        elif not tools.saves(layer.aimet, 1):
            chosen[name] = "a pair would cost more than the layer, even at rank 1"
        elif stage.mode == "auto":
            chosen[name] = None
        elif name in stage.ranks or (name not in stage.ratios and stage.rank is not None):
            chosen[name] = _ratio_of_rank(work, layer, stage.ranks.get(name))
        else:
            ratio = stage.ratios.get(name, stage.ratio)
            chosen[name] = ratio if ratio < 1 else "ratio 1"
    if stage.mode == "auto" and None not in chosen.values():
        raise TrackerError(
            f"codec.{stage.key} has no layer left to choose ratios for; shorten codec.{stage.key}.ignore"
        )
    return chosen


def _ratio_of_rank(work: SvdWork, layer: Found, own: int | None) -> Any:
    """The ratio from which AIMET finds a rank, or why the layer stays as it is.

    Raises:
        TrackerError: the rank was given for this layer, and is larger than the layer's.
    """
    stage = work.stage
    rank = own if own is not None else stage.rank
    assert rank is not None
    module: Any = importlib.import_module(f"tracker.structure.{stage.kind}")
    largest = module.largest_rank(layer.module, layer.name)
    if own is not None and own > largest:
        raise TrackerError(f"codec.{stage.key}.ranks.{layer.name}={own} is out of range: it is 1 to {largest}")
    if rank > largest or not work.tools.saves(layer.aimet, rank):
        return f"at rank {rank} a pair would cost more than the layer"
    return work.tools.ratio(layer.aimet, rank)


def _compressed(work: SvdWork, found: list[Found], chosen: dict[str, Any]) -> Any:
    """Run ModelCompressor.

    Returns:
        AIMET's statistics.
    """
    from aimet_torch import defs
    from aimet_torch.common.defs import CompressionScheme, GreedySelectionParameters, RankSelectScheme
    from aimet_torch.compress import ModelCompressor

    stage = work.stage
    spatial = stage.kind == "spatial_svd"
    kind = defs.SpatialSvdParameters if spatial else defs.WeightSvdParameters
    if stage.mode == "auto":
        greedy = GreedySelectionParameters(Decimal(str(stage.target)), stage.candidates, stage.monotonic_fit)
        left = [layer.module for layer in found if layer.reason or chosen[layer.name] is not None]
        scheme = () if spatial else (RankSelectScheme.greedy,)
        parameters = kind(kind.Mode.auto, kind.AutoModeParams(*scheme, greedy, left), stage.multiplicity)
    else:
        pairs = [
            defs.ModuleCompRatioPair(layer.module, chosen[layer.name])
            for layer in found
            if not layer.reason and not isinstance(chosen[layer.name], str)
        ]
        parameters = kind(kind.Mode.manual, kind.ManualModeParams(pairs), stage.multiplicity)
    compressed, stats = run(
        work,
        lambda: ModelCompressor.compress_model(
            work.prepared.model,
            work.evaluate,
            stage.evaluation_iterations,
            tuple(work.prepared.example[0].shape),
            CompressionScheme[stage.kind],
            work.tools.metric,
            parameters,
        ),
    )
    del compressed  # its layers are in work.after
    return stats


def _told(found: list[Found], chosen: dict[str, Any]) -> list[Found]:
    """The layers with the reasons why some stay as they are."""
    reasons = {name: reason for name, reason in chosen.items() if isinstance(reason, str)}
    return [
        Found(layer.name, layer.module, layer.aimet, layer.reason or reasons.get(layer.name, ""), layer.failure)
        for layer in found
    ]


def _result(work: SvdWork, model: nn.Module, found: list[Found], stats: Any) -> Transformed:
    """The stage's model with the new layers, and what is told about them."""
    stage = work.stage
    pairs = {
        layer.name: [work.after[half].module for half in aimet_layers.halves(layer.name)]
        for layer in found
        if not layer.reason and aimet_layers.halves(layer.name)[0] in work.after
    }
    edits = [Edit(stage.kind, {name: first.weight.shape[0] for name, (first, _) in pairs.items()})] if pairs else []
    model = rebuild(model, edits)
    for name, pair in pairs.items():
        made = model.get_submodule(name)
        given = nn.Sequential(*pair)
        if str(made) != str(given):
            raise TrackerError(
                f"AIMET splits {name} in a way that tracker does not know; use aimet-torch 2.x as tested"
            )
        made.load_state_dict(given.state_dict())
    return Transformed(model, edits, **_statistics(work, found, stats))


def _statistics(work: SvdWork, found: list[Found], stats: Any) -> dict[str, Any]:
    """Ratios, metrics, tables and figures."""
    ratios = float(stats.mac_compression_ratio), float(stats.memory_compression_ratio)
    rows = aimet_layers.cost_rows(found, work.after, work.ratios, work.tools.calculator.compute_layer_cost)
    ranked = sum(row["rank"] is not None for row in rows)
    return reported(work.stage, ratios, rows, ranked, work.agreed, work.score_rows)
