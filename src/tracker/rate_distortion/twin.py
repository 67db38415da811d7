"""Keras models in stages that are written for PyTorch: they work on a twin in PyTorch, in a context that fits it.

The twin (`tracker.frameworks.keras_torch`) computes what the Keras model does, which is checked before it is used.
What a stage makes of it goes back into the Keras model, which is what is judged, coded and evaluated.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from pydantic import PrivateAttr
from torch import Tensor

from tracker.codecs.base import Coder, Context, Stage
from tracker.codecs.records import Cost, Judged, TensorRecord, Transformed
from tracker.errors import TrackerError
from tracker.nested import cloned, mapped
from tracker.tasks.chances import are_chances

if TYPE_CHECKING:
    from tracker.frameworks.keras_torch import Twin

log = logging.getLogger(__name__)
S = TypeVar("S", bound=Stage)
R = TypeVar("R")
WITHIN = 1e-3  # of the largest output, by which a twin's may differ: both compute in float32
LEAST = 1e-12  # probability of which a logarithm is taken


def in_pytorch(work: Callable[[S, Any, Context], R]) -> Callable[[S, Any, Context], R]:
    """A stage's method of a model and a context, which is written for PyTorch: on Keras models it works on a twin.

    Raises:
        TrackerError: the Keras model cannot be computed in PyTorch.
    """

    @functools.wraps(work)
    def with_twin(stage: S, model: Any, context: Context) -> R:
        if context.framework == "pytorch":
            return work(stage, model, context)
        studio = Studio(stage, model, context)
        return studio.returned(work(stage, studio.twin, studio.inside))

    return with_twin


class Studio:
    """A Keras model, its twin, and the context in which a stage works on that.

    Attributes:
        twin: of the model.
        inside: the context in PyTorch: inputs have their channel second, tensors the names that the twin has.
    """

    def __init__(self, stage: Stage, model: Any, context: Context) -> None:
        """Make the twins of the anchor, once for a run, and of the model.

        Raises:
            TrackerError: see `in_pytorch`.
        """
        self.stage, self.model, self.context = stage, model, context
        kept = context.kept.setdefault("in PyTorch", {})
        self.last = _channels_last(context.anchor)
        if "anchor" not in kept:
            kept["anchor"] = self._made(context.anchor)
            kept["probabilities"] = context.classes is not None and self._gives_probabilities(kept["anchor"])
        self.probabilities = kept["probabilities"]
        self.twin = self._twin(model, kept["anchor"])
        own = {name: here for here, name in self.twin.names.items()}
        self.inside = dataclasses.replace(
            context,
            predict=self.predict,
            calibration=lambda: self._inputs(context.calibration()),
            training=lambda: self._inputs(context.training()),
            anchor=kept["anchor"],
            framework="pytorch",
            judge=self._judge if context.judge is not None else None,
            state=lambda twin: twin.state(),
            coder=Renaming.of(context.coder, self) if context.coder is not None else None,
            size=self._size if context.size is not None else None,
            steps={own[name]: size for name, size in context.steps.items() if name in own},
            exact={own[name] for name in context.exact if name in own},
            unrounded=self._twin(context.unrounded, kept["anchor"]) if stage.takes_unrounded else None,
            kept=kept,
        )

    def predict(self, twin: Any, inputs: Any) -> Tensor:
        """The anchor's `predict` for a twin; logits of classes in place of their probabilities."""
        output = self.context.predict(twin, mapped(inputs, lambda tensor: self._moved(tensor, 1, -1)))
        return output.clamp(min=LEAST).log() if self.probabilities else output

    def returned(self, found: R) -> R:
        """What a stage gave, as of the Keras model, which has the twin's values now."""
        model = self.fill(self.twin)
        return self._outside(found, model) if isinstance(found, Transformed) else found  # type: ignore[return-value]

    def fill(self, twin: Twin) -> Any:
        """The Keras model with a twin's values."""
        from tracker.frameworks.keras import FRAMEWORK

        FRAMEWORK.fill(self.model, twin.give(), "the tensors of the twin")
        return self.model

    def _outside(self, given: Transformed, model: Any) -> Transformed:
        """A result with the names of the Keras model."""
        names = self.twin.names

        def row(values: Mapping[str, Any]) -> dict[str, Any]:
            return {key: names.get(value, value) if key == "tensor" else value for key, value in values.items()}

        return dataclasses.replace(
            given,
            model=model,
            steps={names[name]: size for name, size in given.steps.items()},
            exact={names[name] for name in given.exact},
            tables={title: [row(values) for values in rows] for title, rows in given.tables.items()},
        )

    def _judge(self, twin: Twin) -> Judged:
        assert self.context.judge is not None
        return self.context.judge(self.fill(twin))

    def _size(self, given: Transformed) -> int:
        assert self.context.size is not None
        return self.context.size(self._outside(given, self.fill(given.model)))

    def _inputs(self, batches: Iterable[Any]) -> Iterable[Any]:
        return (mapped(inputs, lambda tensor: self._moved(tensor, -1, 1)) for inputs in batches)

    def _moved(self, tensor: Any, channel: int, place: int) -> Any:
        """An input with its channel elsewhere: PyTorch has it second, as what changes and makes inputs expects."""
        if not self.last or not isinstance(tensor, Tensor) or tensor.ndim < 3 or not tensor.is_floating_point():
            return tensor
        return tensor.movedim(channel, place)

    def _twin(self, model: Any, anchor: Twin) -> Any:
        """A model's twin: a copy of the anchor's, where both have the same architecture; None for no model."""
        from tracker.frameworks.keras import FRAMEWORK

        if model is None:
            return None
        if FRAMEWORK.describe(model) != FRAMEWORK.describe(self.context.anchor):
            return self._made(model)
        twin = copy.deepcopy(anchor)
        twin.take(FRAMEWORK.state(model, ()))
        return twin

    def _made(self, model: Any) -> Twin:
        """A twin that computes what the model does: layer by layer, or else as a whole on TensorFlow."""
        from tracker.frameworks.keras_torch import Twin

        inputs = next(iter(self.context.calibration()))
        wanted = self.context.predict(model, cloned(inputs))
        reason = ""
        for apart in (True, False):
            try:
                twin = Twin(model, apart).eval()
                with torch.no_grad():
                    found = self.context.predict(twin, cloned(inputs))
                if found.shape == wanted.shape and bool((found - wanted).abs().max() <= WITHIN * wanted.abs().max()):
                    return twin
                reason = "its outputs are others there"
            except Exception as error:  # a user's own layers and `predict` raise what they like
                reason = " ".join(str(error).split())[:160] or type(error).__name__
            if apart:
                log.info("the layers of %s cannot be told apart in PyTorch (%s)", type(model).__name__, reason)
        raise TrackerError(
            f"codec.{self.stage._configured or type(self.stage).__name__} computes in PyTorch, and the Keras model "
            f"{type(model).__name__} cannot be computed there ({reason}); leave the stage out"
        )

    def _gives_probabilities(self, twin: Twin) -> bool:
        """Whether the anchor ends in a softmax."""
        with torch.no_grad():
            output = self.context.predict(twin, cloned(next(iter(self.context.calibration()))))
        assert self.context.classes is not None
        return are_chances(output, self.context.classes)


class Renaming(Coder):
    """A coder that knows the Keras model's tensors by the names of the twin's."""

    _coder: Coder = PrivateAttr()
    _studio: Any = PrivateAttr()

    @classmethod
    def of(cls, coder: Coder, studio: Studio) -> Renaming:
        """A coder, and whose names it takes."""
        made = cls()
        made._coder, made._studio = coder, studio
        return made

    def costs(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Sequence[Cost]]:
        """See `Coder`."""
        return self._back(self._coder.costs(self._out(tensors)))

    def step_sizes(self, tensors: Mapping[str, Tensor]) -> Mapping[str, float]:
        """See `Coder`."""
        return self._back(self._coder.step_sizes(self._out(tensors)))

    @property
    def uniform(self) -> float:
        """See `Coder`."""
        return self._coder.uniform

    def approximate(self, tensors: Mapping[str, Tensor], model: Any, context: Context) -> Mapping[str, Tensor] | None:
        """See `Coder`."""
        outer, names = self._studio.context, self._studio.twin.names
        exact = {names[name] for name in context.exact}
        own = dataclasses.replace(outer, steps=self._out(context.steps), exact=exact)
        found = self._coder.approximate(self._out(tensors), self._studio.model, own)
        return None if found is None else self._back(found)

    def encode(self, tensors: Mapping[str, Tensor], folder: Path, model: Any, context: Context) -> list[TensorRecord]:
        """Not in PyTorch: a twin is never coded, its Keras model is."""
        raise NotImplementedError

    def decode(self, folder: Path) -> Mapping[str, Tensor]:
        """As `encode`."""
        raise NotImplementedError

    def _out(self, values: Mapping[str, R]) -> dict[str, R]:
        names = self._studio.twin.names
        return {names[name]: value for name, value in values.items()}

    def _back(self, values: Mapping[str, R]) -> dict[str, R]:
        own = {name: here for here, name in self._studio.twin.names.items()}
        return {own[name]: value for name, value in values.items()}


def _channels_last(model: Any) -> bool:
    """Whether no layer of a Keras model says that its inputs have the channel second."""
    layers = model._flatten_layers(include_self=False)
    return not any(getattr(layer, "data_format", None) == "channels_first" for layer in layers)
