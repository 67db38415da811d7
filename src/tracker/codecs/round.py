"""Integers that keep each layer's outputs on calibration inputs, with the coder's bits in the cost (`rounding`).

Layers are rounded in the order in which they run, each on inputs that come through the rounded ones before it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tracker.bitstream.state import aliases
from tracker.codecs.base import Coder, Context
from tracker.codecs.finetune import Trained, full_precision
from tracker.codecs.records import Transformed
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import state_tensors
from tracker.models import weights_digest
from tracker.rate_distortion.embeddings import embeddings
from tracker.rate_distortion.hooks import hooked
from tracker.rate_distortion.inputs import Source, norms_of, one_batch
from tracker.rate_distortion.moments import CONVOLUTIONS, TRANSPOSED, second_moments
from tracker.rate_distortion.quantised import on_grid
from tracker.rate_distortion.rounding import PRICES, following, on_path, remaining, rounded
from tracker.rate_distortion.twin import in_pytorch

LARGEST = 6144  # inputs of an output, beyond which a layer's covariance is too large, and it is rounded to nearest
SHORTEST = 8  # inputs of an output, with which a row can end in any state of dependent quantisation


class Round(Trained):
    """Choose each layer's integers by the outputs' error and by their bits."""

    frameworks: ClassVar[frozenset[str]] = frozenset({"pytorch", "keras"})
    makes_steps: ClassVar[bool] = True
    for_rounding: ClassVar[bool] = True
    takes_steps: ClassVar[bool] = True

    inputs: Source = Field(
        default="calibration",
        description="on which errors are measured; synthetic: made from the anchor's BatchNorms, without data",
    )
    follow: bool | Literal["auto"] = Field(
        default="auto",
        description="first change weights so that the anchor's outputs follow from the inputs here; auto: with "
        "inputs that are data, or pictures",
    )
    dependent: bool | Literal["auto"] = Field(
        default="auto", description="by dependent quantisation, the trellis of NNC; auto: where the coder takes it"
    )
    rate_weight: Literal["auto"] | Annotated[float, Field(ge=0, le=100)] = Field(
        default="auto",
        description="of bits against errors, over the balance that rounding to nearest has; auto: 0.5, and 0.1 where "
        "quantisation is dependent",
    )

    def check_model(self, model: Any, framework: str) -> None:
        """See `Stage.check_model`.

        Raises:
            TrackerError: as `Trained`, or dependent quantisation is asked for of a Keras model.
        """
        super().check_model(model, framework)
        if self.dependent is True and framework == "keras":
            raise TrackerError(
                "codec.round.dependent=true is for PyTorch models: take auto, or uniform integers (false)"
            )

    def check_coder(self, coder: Coder) -> None:
        """See `Transform.check_coder`.

        Raises:
            TrackerError: it lacks dependent quantisation that is asked for.
        """
        if self.dependent is True and not coder.dependent:
            raise TrackerError("codec.round.dependent=true needs nnc after it, with use_dq=true and scan_order=0")

    @in_pytorch
    def apply(self, model: Any, context: Context) -> Transformed:
        """Round the weights of the layers that `entering` tells of; all other tensors are left to the coder.

        Raises:
            TrackerError: the coder gives no step sizes, or lacks dependent quantisation that is asked for.
        """
        coder = context.coder
        if coder is None:
            raise TrackerError("round needs a coder after it")
        self.check_coder(coder)
        steps = {**coder.step_sizes(context.state(model)), **context.steps}
        network = full_precision(model, context.device)
        inputs = one_batch(self.inputs, context)
        wanted, follows = dict[str, Tensor](), self.follows(inputs, context)
        done, dependent = set[str](), set[str]()
        tied = aliases(context.state(network))  # coded under their first names
        tables = embedded(network)

        def note(name: str, _: nn.Module, given: Tensor) -> None:
            wanted.setdefault(tied.get(name, name), given)

        def enter(name: str, module: nn.Module, given: Tensor) -> None:
            name = tied.get(name, name)
            if name in done or name not in steps or module in tables:
                return
            done.add(name)
            before = wanted.pop(name, None)
            before = before if before is not None and before.shape == given.shape else None
            weight = by_outputs(module)
            if self.by_trellis(module, weight, coder):
                dependent.add(name)
            elif name in context.steps and coder.uniform > 1:
                steps[name] = on_grid(coder.uniform * steps[name])
            weight.copy_(self.layer(module, weight, (before, given), steps[name], name in dependent))

        with torch.no_grad():
            if follows:
                reference = full_precision(context.anchor, context.device, copied=True)
                with entering(reference, note):
                    context.predict(reference, inputs)
            with entering(network, enter):
                context.predict(network, inputs)
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data = tensor.data.to("cpu")
        return Transformed(network, steps=steps, exact=done, dependent=dependent)

    def remaining(self, model: Any, context: Context) -> Mapping[str, float]:
        """See `Transform.remaining`: of the layers that are rounded, by what enters them; measured once for a run."""
        coder = context.coder
        if coder is None:
            return {}
        key = f"remaining {self.inputs} {self.on_trellis(coder)} {weights_digest(state_tensors(model))}"
        if key in context.kept:
            return dict(context.kept[key])
        network = full_precision(model, context.device, copied=True)
        tables, tied, found = embedded(network), aliases(context.state(network)), dict[str, float]()

        def enter(name: str, module: nn.Module, given: Tensor) -> None:
            name, weight = tied.get(name, name), by_outputs(module)
            if name in found or module in tables or math.prod(weight.shape[1:]) > LARGEST:
                return
            dependent = self.by_trellis(module, weight, coder)
            groups = range(groups_of(module))
            shares = [remaining(second_moments(module, (None, given), group)[0], dependent) for group in groups]
            found[name] = sum(shares) / len(shares)

        with torch.no_grad(), entering(network, enter):
            context.predict(network, one_batch(self.inputs, context))
        context.kept[key] = found
        return found

    def by_trellis(self, module: nn.Module, weight: Tensor, coder: Coder) -> bool:
        """Whether a layer's integers are those of dependent quantisation."""
        fits = SHORTEST <= math.prod(weight.shape[1:]) <= LARGEST
        return self.on_trellis(coder) and follows_rows(module) and fits

    def on_trellis(self, coder: Coder) -> bool:
        """Whether integers are those of dependent quantisation, where a layer's can be."""
        return coder.dependent if self.dependent == "auto" else self.dependent

    def follows(self, inputs: Any, context: Context) -> bool:
        """Whether weights are changed first: not for inputs that suit BatchNorms, or tokens in a random order."""
        if self.follow != "auto":
            return self.follow
        pictures = isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.ndim == 4
        return self.inputs == "calibration" or (pictures and not norms_of(context.anchor))

    def layer(
        self, module: nn.Module, weight: Tensor, given: tuple[Tensor | None, Tensor], step: float, dependent: bool
    ) -> Tensor:
        """A layer's rounded weights, for what enters it in the anchor (where that is to be followed) and here."""
        rate_weight = PRICES[dependent] if self.rate_weight == "auto" else self.rate_weight
        found, state = [], 0
        for group, part in enumerate(weight.chunk(groups_of(module))):
            matrix = part.flatten(1)
            if matrix.shape[1] > LARGEST:
                found.append((part / step).round() * step)
                continue
            moments, crossed = second_moments(module, given, group)
            if crossed is not None:
                matrix = following(matrix, crossed, moments)
            if dependent:
                multiples, state = on_path(matrix, moments, step, rate_weight, state)
            else:
                multiples = rounded(matrix, moments, step, rate_weight)
            found.append(multiples.view_as(part) * step)
        return torch.cat(found)


def groups_of(module: nn.Module) -> int:
    """Of channels, each of which has weights of its own."""
    return int(getattr(module, "groups", 1)) if isinstance(module, CONVOLUTIONS) else 1


def embedded(network: nn.Module) -> set[nn.Module]:
    """Layers whose weights are embeddings too: for that use, errors that make up for each other are only larger."""
    tables = {id(table.weight) for table in embeddings(network).values()}
    return {module for module in network.modules() if id(getattr(module, "weight", None)) in tables}


def follows_rows(module: nn.Module) -> bool:
    """Whether a tensor's values are in the order of `by_outputs`, as those on a path are."""
    return not isinstance(module, TRANSPOSED) and not turned(module)


def by_outputs(module: Any) -> Tensor:
    """A view of a layer's weights with the outputs first; those of a transposed convolution are its pixels' squares."""
    if isinstance(module, nn.MultiheadAttention):
        return module.in_proj_weight
    if isinstance(module, TRANSPOSED):
        module.weight.data = module.weight.data.contiguous()  # or it would be a copy
        return module.weight.flatten(1).T
    return module.weight.T if turned(module) else module.weight


def turned(module: nn.Module) -> bool:
    """Whether it is transformers' own linear layer, which GPT-2 is made of: its weights have the inputs first."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


@contextmanager
def entering(model: nn.Module, told: Any) -> Iterator[None]:
    """Tell what enters each linear and convolution layer, before it runs, by the name of its weights.

    Of attention it is what queries, keys and values are made of, where that is the same; of transposed convolutions,
    those without groups.
    """

    def tell(module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any], name: str) -> None:
        own = inputs_of(module, given, named)
        if own is not None:
            told(name, module, own)

    hooks = [
        module.register_forward_pre_hook(functools.partial(tell, name=f"{name}.{part}".lstrip(".")), with_kwargs=True)
        for name, module in model.named_modules()
        if (part := weights_of(module))
    ]
    with hooked(hooks):
        yield


def weights_of(module: Any) -> str | None:
    """The name of the weights that can be rounded here."""
    if isinstance(module, nn.MultiheadAttention):
        return "in_proj_weight" if module.in_proj_weight is not None else None
    if isinstance(module, TRANSPOSED) and module.groups > 1:
        return None
    known = isinstance(module, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)) or turned(module)
    return "weight" if known and isinstance(module.weight, Tensor) else None


def inputs_of(module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor | None:
    """What the weights are multiplied with; None where attention makes queries of one thing and keys of another."""
    found = [*given, *named.values()]
    if isinstance(module, nn.MultiheadAttention):
        found = [*given[:3], *(named[key] for key in ("query", "key", "value") if key in named)]
        if any(one is not found[0] for one in found[1:]):
            return None
    return found[0]
