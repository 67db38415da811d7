"""Channel pruning of a PyTorch model by AIMET's ModelCompressor (https://github.com/quic/aimet).

AIMET chooses channels and fits weights. The model that comes out is built by `tracker.structure`, as the receiver
builds it, and filled with AIMET's weights, so that both have the same layers under the same names.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import warnings
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from torch import nn
from tqdm import tqdm

from tracker import aimet
from tracker.aimet.channels import Channels, Costs, rows, running, same, smaller, unfit
from tracker.aimet.compressor import Work, adapted, replaced, run
from tracker.aimet.layers import tied_weights
from tracker.aimet.points import POINTS, generators, images, points
from tracker.aimet.winnow import Guard, any_operation
from tracker.codecs.base import Context
from tracker.codecs.records import Transformed
from tracker.decomposition.report import reported, tell_left
from tracker.decomposition.scores import Agreement, Scores, scores_key
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import load, state_tensors
from tracker.structure import Edit, rebuild
from tracker.structure.prune import describe

if TYPE_CHECKING:
    from tracker.codecs.prune import Prune


def apply(options: Prune, model: nn.Module, context: Context) -> Transformed:
    """A PyTorch model with channels pruned.

    Args:
        options: of the stage.
        model: changed in place.
        context: of the stage.

    Raises:
        TrackerError: the options do not fit the model, or AIMET cannot prune it.
    """
    for option, name in options.named():
        options.check_layer(model, option, name, final=True)
    assert context.folder is not None
    with aimet.session(context.folder), generators(), any_operation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about how AIMET uses it
        pruning = Pruning(options, model, context)
        with adapted(pruning.work), pruning.guard.guarding(), points(options.reconstruction_samples, pruning.images):
            return pruning.run(model)


class Pruning:
    """One run of AIMET's channel pruning."""

    def __init__(self, options: Prune, model: nn.Module, context: Context) -> None:
        self.options, self.context = options, context
        self.images = images(context, options.reconstruction_samples)
        # In float32, which AIMET's fitted weights are whatever the model is.
        prepared = aimet.prepared(copy.deepcopy(model).float(), context)
        self.model, self.prefix = prepared.model, prepared.prefix
        self.example = smaller(self.model, self.images.batches[0][0][:2].to(context.device))
        named = {self.prefix + name for option, name in options.named() if option != "ignore"}
        self.guard = Guard(self.example, options.on_failure == "refuse", named, self.prefix, context.seed)
        self.unfit: set[str] = set()  # layers that pruning is not for, wherever they are in the model
        agreement = Agreement(context, options.evaluation_iterations) if context.agreement or self._auto else None
        self.work = Work(options, context, prepared, self._channels(), agreement)
        if self._auto:
            version = importlib.metadata.version("aimet-torch")
            how = (options.kind, options.evaluation_iterations, options.reconstruction_samples, context.seed, version)
            self.work.scores = Scores(scores_key(context, model, state_tensors(model), *how))

    @property
    def _auto(self) -> bool:
        return self.options.mode == "auto"

    def _channels(self) -> Channels:
        from aimet_torch.common.defs import CostMetric

        return Channels(CostMetric[self.options.cost_metric])

    def run(self, model: nn.Module) -> Transformed:
        """Prune, and repeat what AIMET did on the stage's model, by its description.

        Raises:
            TrackerError: AIMET fails.
        """
        from aimet_torch.layer_database import LayerDatabase

        database = run(self.work, lambda: LayerDatabase(self.model, self.work.prepared.example))
        ratios = self._wanted(database)
        if self._auto:
            with self._costs(database, ratios):
                pruned, stats = self._compress(ratios)
        else:
            pruned, stats = self._compress(ratios)
        if ratios.keys() <= self.guard.failures.keys():
            raise TrackerError(f"codec.prune can prune no layer of the model{self._why()}; leave the stage out")
        self._tell()
        layers = describe(self._own(self.model), self._own(pruned))
        edits = [Edit(self.options.kind, layers)] if layers else []
        self._check(rebuilt(copy.deepcopy(self._own(self.model)), self._own(pruned), edits), pruned)
        before = {self.work.plain(layer.name): layer for layer in database}
        return Transformed(rebuilt(model, self._own(pruned), edits), edits, **self._statistics(before, stats))

    def _own(self, model: nn.Module) -> nn.Module:
        """The stage's model in the one that AIMET has."""
        return model.get_submodule(self.prefix.rstrip("."))

    def _check(self, model: nn.Module, pruned: nn.Module) -> None:
        """Refuse a description of which something else comes than what AIMET made.

        Raises:
            TrackerError: that.
        """
        whole = copy.copy(pruned)
        if self.prefix:
            whole._modules = {**pruned._modules, self.prefix.rstrip("."): model}
        if not same(whole if self.prefix else model, pruned, self.example):
            raise TrackerError(
                "AIMET prunes this model in a way that tracker does not know; use aimet-torch 2.x as tested, or leave "
                "the stage out"
            )

    def _wanted(self, database: Any) -> dict[str, float]:
        """The layers to prune and their ratios, in the order in which they run; the others get a reason.

        Raises:
            TrackerError: there are none, or one cannot be pruned and that is to be refused.
        """
        options, known, wanted = self.options, {layer.name for layer in database}, {}
        tied = tied_weights(self.model)
        calls, self.guard.first = run(self.work, lambda: running(self.model, self.example))
        for name, module in self.model.named_modules():
            own = self.work.plain(name)
            if not isinstance(module, nn.Conv2d) or (options.layers is not None and own not in options.layers):
                continue
            if own in options.ignore:
                continue
            reason = unfit(module)
            if reason:
                self.unfit.add(name)
            elif name not in calls or name not in known:
                reason = "AIMET does not see it run"
            elif calls[name] > 1:
                reason = "it is called more than once"
            elif id(module.weight) in tied:
                reason = "its weight is shared with another layer"
            if reason:
                self.guard.fail(name, ValueError(reason))
            else:
                wanted[name] = options.ratios.get(own, options.ratio)
        if not wanted:
            raise TrackerError(f"codec.prune can prune no layer of the model{self._why()}; leave the stage out")
        return {name: wanted[name] for name in calls if name in wanted}

    def _why(self) -> str:
        """The reason for which the most layers cannot be pruned."""
        if not self.guard.failures:
            return ""
        reason, count = Counter(self.guard.failures.values()).most_common(1)[0]
        names = [self.work.plain(name) for name, why in self.guard.failures.items() if why == reason]
        return f" ({names[0]}{f' and {count - 1} more' if count > 1 else ''}: {reason})"

    def _tell(self) -> None:
        """A warning about the layers that AIMET fails on, and those that the user named and that pruning is not for."""
        told = []
        for name, reason in self.guard.failures.items():
            if name in self.guard.named or (name not in self.unfit and reason != self.guard.FIRST):
                told.append((self.work.plain(name), reason))
        tell_left(self.options, told)

    @contextlib.contextmanager
    def _costs(self, database: Any, ratios: dict[str, float]) -> Iterator[None]:
        """Find what pruning each layer does, and let AIMET's search count by that."""
        from aimet_torch.channel_pruning.channel_pruner import ChannelPruningCostCalculator, InputChannelPruner

        costs, shape = Costs(self.work.tools), tuple(self.work.prepared.example[0].shape)
        pruner = InputChannelPruner(self.images, shape, self.images.count * POINTS, True)
        run(
            self.work,
            lambda: costs.find(pruner, database, self.guard, tqdm(ratios, "prune", disable=None, leave=False)),
        )
        if not costs.sources:
            raise TrackerError(f"codec.prune can prune no layer of the model{self._why()}; leave the stage out")
        with replaced(
            ChannelPruningCostCalculator, "calculate_compressed_cost", lambda _, db, pairs, __: costs.cost(db, pairs)
        ):
            yield

    def _compress(self, ratios: dict[str, float]) -> tuple[nn.Module, Any]:
        """ModelCompressor's model and statistics.

        Raises:
            TrackerError: AIMET fails.
        """
        from aimet_torch.common.defs import CompressionScheme, GreedySelectionParameters
        from aimet_torch.compress import ModelCompressor
        from aimet_torch.defs import ChannelPruningParameters as Kind
        from aimet_torch.defs import ModuleCompRatioPair

        options, modules = self.options, dict(self.model.named_modules())
        parameters: Any
        if self._auto:
            mode = Kind.Mode.auto
            left = [module for name, module in modules.items() if name not in ratios or name in self.guard.failures]
            greedy = GreedySelectionParameters(Decimal(str(options.target)), options.candidates, options.monotonic_fit)
            parameters = Kind.AutoModeParams(greedy, left)
        else:
            mode = Kind.Mode.manual
            pairs = [ModuleCompRatioPair(modules[name], ratio) for name, ratio in ratios.items()]
            parameters = Kind.ManualModeParams(pairs)
        given = Kind(self.images, self.images.count * POINTS, True, mode, parameters, options.multiplicity)
        compressed: tuple[nn.Module, Any] = run(
            self.work,
            lambda: ModelCompressor.compress_model(
                self.model,
                self.work.evaluate,
                options.evaluation_iterations,
                tuple(self.work.prepared.example[0].shape),
                CompressionScheme.channel_pruning,
                self.work.tools.metric,
                given,
            ),
        )
        return compressed

    def _statistics(self, before: dict[str, Any], stats: Any) -> dict[str, Any]:
        """Ratios, metrics, tables and figures."""
        work = self.work
        ratios = float(stats.mac_compression_ratio), float(stats.memory_compression_ratio)
        reasons = {work.plain(name): reason for name, reason in self.guard.failures.items()}
        table = rows(before, work.after, work.ratios, reasons)
        fewer = sum(row["input channels kept"] < row["input channels"] for row in table)
        scores = [
            {"channels" if key == "rank" else key: value for key, value in row.items()} for row in work.score_rows
        ]
        return reported(self.options, ratios, table, fewer, work.agreed, scores)


def rebuilt(model: nn.Module, pruned: nn.Module, edits: list[Edit]) -> nn.Module:
    """A model changed as the receiver changes it, with the tensors of AIMET's.

    Args:
        model: changed in place.
        pruned: AIMET's, whose layers that choose channels have tensors of their own.
        edits: the description.
    """
    model = rebuild(model, edits)
    wanted = model.state_dict().keys()
    load(model, {name: tensor for name, tensor in pruned.state_dict().items() if name in wanted}, "AIMET's weights")
    return model.eval()
