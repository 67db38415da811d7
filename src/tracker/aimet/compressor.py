"""AIMET's ModelCompressor as a stage uses it: with the model's own inputs, and with scores from the cache.

AIMET makes random inputs by shape, writes pickles into the working folder, and counts the operations of linear layers
for inputs of two dimensions only. What it would do otherwise is put back when the stage is through.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from tqdm import tqdm

from tracker import aimet
from tracker.aimet import layers as aimet_layers
from tracker.codecs.base import Context
from tracker.decomposition.scores import Agreement, Scores, write_json
from tracker.errors import TrackerError

if TYPE_CHECKING:
    from tracker.decomposition.options import ByLayer


S = TypeVar("S", bound="ByLayer")
T = TypeVar("T", bound="Counting")


class Counting(Protocol):
    """What a search has to know: how many ranks or channels a ratio leaves, and what AIMET is to make small."""

    @property
    def metric(self) -> Any:
        """AIMET's cost metric."""

    def rank(self, layer: Any, ratio: Any) -> int:
        """The rank, or the number of channels, of a layer at a ratio."""


@dataclass
class Work(Generic[S, T]):
    """One use of AIMET.

    Attributes:
        stage: the options.
        context: of the stage.
        prepared: a copy of the model, in float32 on the device.
        tools: AIMET's splitter, cost calculator and metric for this kind of decomposition.
        agreement: the measure; None where the task has none and none is needed.
        scores: of the greedy search, kept in the cache.
        score_rows: the same as a table.
        after: AIMET's records of the decomposed model's layers, by name.
        ratios: by layer, as AIMET used them.
        agreed: how well the decomposed model agrees with the anchor.
    """

    stage: S
    context: Context
    prepared: aimet.Prepared
    tools: T
    agreement: Agreement | None
    scores: Scores | None = None
    score_rows: list[dict[str, Any]] = field(default_factory=list)
    after: dict[str, Any] = field(default_factory=dict)
    ratios: dict[str, Any] = field(default_factory=dict)
    agreed: float | None = None

    def plain(self, name: str) -> str:
        """A layer's name in the stage's model."""
        return aimet_layers.plain_name(name, self.prepared.prefix)

    def evaluate(self, model: Any, *_: Any, **__: Any) -> float:
        """AIMET's callback: the agreement; of the given model it is not needed."""
        if self.agreement is None or model is self.prepared.model:
            return float("nan")
        return self.agreement(model.model if self.prepared.prefix else model)


@dataclass(frozen=True)
class Tools:
    """AIMET's parts for one kind of decomposition."""

    splitter: Any
    calculator: Any
    metric: Any

    def saves(self, layer: Any, rank: int) -> bool:
        """Whether a pair of this rank costs less than the layer."""
        return self.ratio(layer, rank) < 1

    def ratio(self, layer: Any, rank: int) -> Decimal:
        """A ratio from which AIMET finds this rank: half an operation above its cost, against rounding."""
        name = self.metric.name
        cost = getattr(self.calculator.calculate_cost_given_rank(layer, rank), name)
        whole = getattr(self.calculator.compute_layer_cost(layer), name)
        return Decimal(2 * cost + 1) / Decimal(2 * whole)

    def rank(self, layer: Any, ratio: Any) -> int:
        """AIMET's rank for a ratio."""
        return int(self.calculator.calculate_rank_given_comp_ratio(layer, ratio, self.metric))


def run(work: Work[Any, Any], call: Any) -> Any:
    """What a call of AIMET gives; what it raises in one line."""
    try:
        return call()
    except TrackerError:
        raise
    except Exception as error:  # AIMET and the model raise what they like
        reason = " ".join(str(error).split())[:200]
        raise TrackerError(
            f"codec.{work.stage.key}: AIMET fails on this model ({type(error).__name__}: {reason}); if one layer is "
            f"at fault, put it into codec.{work.stage.key}.ignore, else leave the stage out"
        ) from error


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value for an attribute of a class or module of AIMET's, put back at the end."""
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def adapted(work: Work[Any, Any]) -> Iterator[None]:
    """AIMET with this model's inputs and costs, the cache for its scores, and no files in the working folder."""
    from aimet_torch import compression_factory
    from aimet_torch.common.comp_ratio_select import GreedyCompRatioSelectAlgo as Greedy
    from aimet_torch.common.compression_algo import CompressionAlgo
    from aimet_torch.layer_database import LayerDatabase

    hook, compile_stats = LayerDatabase._custom_hook_to_collect_layer_attributes, CompressionAlgo._compile_stats
    folder, spell = work.context.folder, work.plain
    assert folder is not None

    def collect(self: Any, module: Any, inputs: Any, output: Any) -> None:
        # AIMET asserts that depthwise convolutions have as many output channels as input channels: it does not count
        # others, and here they are not decomposed anyway.
        with contextlib.suppress(AssertionError):
            hook(self, module, inputs, output)
            layer = self._compressible_layers[id(module)]
            layer.output_shape = aimet_layers.fixed_shapes(module, output, layer.output_shape)

    def keep_ratios(_: Any, pairs: Any) -> None:
        work.ratios = {spell(pair.layer.name): pair.comp_ratio for pair in pairs}
        ratios = {name: None if ratio is None else float(ratio) for name, ratio in work.ratios.items()}
        write_json(folder / "ratios.json", ratios)

    def keep_layers(self: Any, database: Any, *rest: Any) -> Any:
        work.after = {spell(layer.name): layer for layer in database}
        stats = compile_stats(self, database, *rest)
        work.agreed = None if work.agreement is None else float(stats.compressed_model_accuracy)
        return stats

    def keep_scores(_: Any, scores: Any) -> None:
        plain = {spell(name): {str(ratio): score for ratio, score in row.items()} for name, row in scores.items()}
        write_json(folder / "scores.json", plain)

    changes: list[tuple[Any, str, Any]] = [
        (compression_factory, "create_rand_tensors_given_shapes", lambda *_: list(work.prepared.example)),
        (LayerDatabase, "_custom_hook_to_collect_layer_attributes", collect),
        (CompressionAlgo, "_pickle_comp_ratio_list", keep_ratios),
        (CompressionAlgo, "_compile_stats", keep_layers),
        (Greedy, "_pickle_eval_scores_dict", keep_scores),
        (Greedy, "_compute_eval_scores_for_all_comp_ratio_candidates", lambda self: _scores(work, self)),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, value in changes:
            stack.enter_context(replaced(owner, name, value))
        yield


def _scores(work: Work[Any, Any], greedy: Any) -> dict[str, dict[Decimal, float]]:
    """AIMET's table of scores by layer and ratio: those of the cache, and the others measured."""
    layers, ratios = greedy._layer_db.get_selected_layers(), greedy._comp_ratio_candidates
    table: dict[str, dict[Decimal, float]] = {}
    title = f"score {work.stage.key}"
    with tqdm(total=len(layers) * len(ratios), desc=title, unit="score", disable=None, leave=False) as progress:
        for layer in layers:
            table[layer.name] = {}
            for ratio in ratios:
                table[layer.name][ratio] = _score(work, greedy, layer, ratio)
                progress.update()
    return table


def _score(work: Work[Any, Any], greedy: Any, layer: Any, ratio: Decimal) -> float:
    """The model's agreement with one layer decomposed."""
    from aimet_torch.common.defs import LayerCompRatioPair

    assert work.scores is not None
    name, rank = work.plain(layer.name), work.tools.rank(layer, ratio)
    score, source = work.scores.get(name, rank), "cache"
    if score is None:
        database = greedy._pruner.prune_model(
            greedy._layer_db, [LayerCompRatioPair(layer, ratio)], greedy._cost_metric, None
        )
        score, source = work.evaluate(database.model), "computed"
        database.destroy()
        work.scores.put(name, rank, score)
    work.score_rows.append({"layer": name, "ratio": float(ratio), "rank": rank, "score": score, "source": source})
    return score
