"""AIMET's removal of channels ("winnowing") made safe: models with any operations, and a check of each step.

AIMET knows the operations of a fixed table, and raises NotImplementedError for a model with any other, such as a
functional relu, wherever in the model it stands. Here elementwise functions pass on which channels are needed, and any
other unknown operation keeps all of its channels.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tracker.aimet.compressor import replaced
from tracker.errors import TrackerError

log = logging.getLogger(__name__)

# Functions of one value of one channel, in AIMET's and PyTorch's spelling without case and underscores.
ELEMENTWISE = frozenset(
    {"relu", "relu6", "clip", "clamp", "hardtanh", "leakyrelu", "sigmoid", "tanh", "silu", "swish", "hardswish"}
    | {"hardsigmoid", "gelu", "elu", "selu", "celu", "softplus", "softsign", "mish", "logsigmoid", "dropout"}
    | {"identity", "contiguous", "clone", "detach", "neg", "abs", "exp", "sqrt"}
)
# Kinds in AIMET's table that are treated as unknown operations. "skip" looks at no channels, though such operations may
# rearrange or combine them; and of "concat" AIMET takes back at the end what it has already passed on.
UNSAFE = ("skip", "concat")
JOINING = ("add", "concat", "split")  # kinds with several inputs or outputs


@contextlib.contextmanager
def any_operation() -> Iterator[None]:
    """Let AIMET winnow models with operations that are not in its table."""
    from aimet_torch.common.utils import ModelApi
    from aimet_torch.common.winnow import mask, mask_propagator, winnow_utils

    table, kinds = winnow_utils.OpConnectivity, winnow_utils.ConnectivityType

    def connectivity(_: Any, operation: str) -> Any:
        known = table.pytorch_dict.get(operation)
        if known is not None and known.name not in UNSAFE:
            return known
        return kinds.direct if operation.lower().replace("_", "") in ELEMENTWISE else kinds.stop

    def keep_all(self: Any, into: int | None, out: int | None, is_null_connectivity: bool) -> None:
        if is_null_connectivity:
            original(self, into, out, is_null_connectivity)
            return
        # AIMET's own needs an output that something reads, and a known number of channels.
        for masks, channels in ((self._input_channel_masks, into), (self._output_channel_masks or [], out)):
            for one in masks:
                one.extend([1] * (channels or 0))
        self._internal_connectivity = mask.StopInternalConnectivity([], [])

    def defaults(self: Any, into: int | None, out: int | None) -> None:
        # Of an addition and the like AIMET reads what comes behind it, which the model's own output has not.
        if self._op_output is None and table.get_op_connectivity(ModelApi.pytorch, self._op_type).name in JOINING:
            keep_all(self, into, out, False)
        else:
            usual(self, into, out)

    def propagate(self: Any) -> None:
        passed_on(self)
        # Layers behind an operation that keeps its channels have to keep them too, up to the convolution that wants
        # fewer; AIMET sees to that behind additions only.
        for operation in self._graph.ordered_ops:
            masks = self.op_to_mask_dict[operation]
            if not isinstance(masks.internal_connectivity, mask.DirectInternalConnectivity):
                continue
            if operation.type in winnow_utils.get_conv_ops_for_api(ModelApi.pytorch):
                continue  # a depthwise convolution can choose its channels
            if len(operation.input_ops) != 1 or not operation.outputs:
                continue
            (source,) = operation.input_ops
            given = self.op_to_mask_dict[source].output_channel_masks
            place = source.output_ops.index(operation) if len(given) > 1 else 0
            if len(given[place]) == len(masks.input_channel_masks[0]):
                masks.set_input_channel_mask(0, given[place])
                for index in range(len(masks.output_channel_masks)):
                    masks.set_output_channel_mask(index, given[place])

    name, propagator = "_set_default_masks_for_null_and_stop_connectivity_ops", mask_propagator.MaskPropagator
    original, passed_on = getattr(mask.Mask, name), propagator.propagate_masks
    usual = mask.Mask._set_default_input_output_masks
    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(table, "get_op_connectivity", connectivity))
        stack.enter_context(replaced(mask.Mask, name, keep_all))
        stack.enter_context(replaced(mask.Mask, "_set_default_input_output_masks", defaults))
        stack.enter_context(replaced(propagator, "propagate_masks", propagate))
        yield


class Guard:
    """Each removal of channels, checked, and taken back where AIMET fails.

    Attributes:
        failures: why a layer was left as it is, by layer name.
        checked: layers without whose channels the model was seen to compute what it should.
        first: layers that read the model's own input.
    """

    FIRST = "its input is the model's, whose channels stay"

    def __init__(self, example: Tensor, refuse: bool, named: set[str], prefix: str, seed: int) -> None:
        """Nothing has failed yet.

        Args:
            example: an input of the model.
            refuse: whether a failure is an error.
            named: layers that the user has named; only for them it is an error that they have the model's own input.
            prefix: of layers' names in the model that AIMET has.
            seed: of the points on which a layer's weights are fitted.
        """
        self.example, self.refuse, self.named, self.prefix, self.seed = example, refuse, named, prefix, seed
        self.failures: dict[str, str] = {}
        self.checked: set[str] = set()
        self.first: set[str] = set()

    @contextlib.contextmanager
    def guarding(self) -> Iterator[None]:
        """Stand between AIMET's pruner and its winnower."""
        from aimet_torch.channel_pruning.channel_pruner import InputChannelPruner

        name = "_winnow_and_reconstruct_layer"
        original = getattr(InputChannelPruner, name)

        def guarded(
            pruner: Any, first: Any, db: Any, layer: Any, comp_ratio: Any, perform_reconstruction: bool
        ) -> None:
            self.step(original, pruner, first, db, layer, comp_ratio, perform_reconstruction)

        with replaced(InputChannelPruner, name, guarded):
            yield

    def step(self, original: Any, pruner: Any, first: Any, db: Any, layer: Any, ratio: Any, reconstruct: bool) -> None:
        """Remove one layer's channels, as AIMET's method does.

        Args:
            original: the method.
            pruner: its object.
            first: the database of the layers of the whole model.
            db: that of the model under work, changed.
            layer: of `db`, whose input channels are to be removed.
            ratio: the share of them to keep.
            reconstruct: whether to fit the remaining weights to the layer's outputs.

        Raises:
            TrackerError: AIMET fails, and that is to be refused.
        """
        name = layer.name
        if name in self.failures:
            return
        indices = pruner._select_inp_channels(layer.module, ratio)
        if not indices:
            return  # the ratio rounds to all channels, for which AIMET has an error of its own
        import numpy as np

        np.random.seed(self.seed % 2**32)  # the same points whatever was done before, or found in the cache
        backup = copy.deepcopy(db)
        try:
            if name in self.checked:
                original(pruner, first, db, layer, ratio, reconstruct)
                return
            wanted = without(db.model, layer.module, indices, self.example)
            original(pruner, first, db, layer, ratio, False)
            if not close(after(db.model, self.example), wanted):
                raise ValueError("the model without the channels does not compute the same as with zeros for them")
            if reconstruct:
                whole = first.find_layer_by_name(name).module
                pruner._data_subsample_and_reconstruction(whole, layer.module, first.model, db.model)
            self.checked.add(name)
        except Exception as error:  # AIMET and the model raise what they like
            self.fail(name, error)
            vars(db).update(vars(backup))

    def fail(self, name: str, error: BaseException) -> None:
        """Note, or refuse, a layer that AIMET fails on."""
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        # Of some models AIMET does not see which layer that is, and looks for a layer before it.
        first = "first module" in reason or (name in self.first and isinstance(error, LookupError))
        if first:
            reason = self.FIRST
        elif isinstance(error, LookupError | TypeError | AttributeError):  # of AIMET's code, and words to nobody else
            reason = f"AIMET cannot follow its channels through the model ({type(error).__name__}: {reason})"
        shown = name.removeprefix(self.prefix)
        log.debug("codec.prune leaves %s as it is: %s", shown, reason)
        if self.refuse and (not first or name in self.named):
            raise Refused(
                f"AIMET cannot prune {shown} ({reason}); add it to codec.prune.ignore, or set on_failure=skip"
            ) from error
        self.failures[name] = reason


class Refused(TrackerError):
    """A layer that AIMET fails on, where that is to end the run."""


def outputs(model: nn.Module, example: Tensor) -> Tensor:
    """A model's output for the example."""
    with torch.no_grad():
        output = model(example)
    assert isinstance(output, Tensor)
    return output


def after(model: nn.Module, example: Tensor) -> Tensor:
    """The output of a model that AIMET has changed.

    Raises:
        ValueError: its layers do not fit together any more.
    """
    try:
        return outputs(model, example)
    except Exception as error:  # PyTorch's and the model's own
        raise ValueError("the model does not run without the channels") from error


def without(model: nn.Module, layer: nn.Conv2d, indices: list[int], example: Tensor) -> Tensor:
    """The model's output with zeros for the weights of some of a layer's input channels."""
    weight = layer.weight.data
    layer.weight.data = weight.index_fill(1, torch.tensor(indices, device=weight.device), 0)
    try:
        return outputs(model, example)
    finally:
        layer.weight.data = weight


def close(given: Tensor, wanted: Tensor) -> bool:
    """Whether outputs are equal but for the order of summation."""
    if given.shape != wanted.shape:
        return False
    scale = float(wanted.abs().max()) if wanted.numel() else 0.0
    return torch.allclose(given, wanted, rtol=1e-3, atol=1e-4 * scale + 1e-12, equal_nan=True)
