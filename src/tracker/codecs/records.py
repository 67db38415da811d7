"""What a codec's stages give each other, and what they tell about their work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from tracker.structure import Edit


@dataclass(frozen=True)
class TensorRecord:
    """How a coder coded a tensor: a row of the run's tensors.json.

    Attributes:
        name: the tensor's name in the model.
        step_size: the quantisation step, where there is one for the whole tensor.
        bytes: its share of the bitstream, where the format lets it be told.
        scaled: whether decoded values are no multiples of the step size, as scales are in them.
    """

    name: str
    step_size: float | None = None
    bytes: int | None = None
    scaled: bool = False


@dataclass(frozen=True)
class Integers:
    """A weight that a transform made integers of: its value is ``integers * scale``, in float32.

    Attributes:
        integers: int32, in the weight's shape, around 0.
        scale: float32, broadcast against the integers: of shape (), or with the length of one dimension.
        bits: width of the integers.
    """

    integers: Tensor
    scale: Tensor
    bits: int

    def value(self) -> Tensor:
        """The weight."""
        return self.integers.float() * self.scale

    def bytes(self) -> int:
        """Size without entropy coding: the integers at their width, and the scales as float32."""
        return -(-self.integers.numel() * self.bits // 8) + 4 * self.scale.numel()


@dataclass(frozen=True)
class Entry:
    """What an option with a value for each layer or tensor has for one of them, for a search over it.

    Attributes:
        value: that the layer has where the option says nothing about it.
        most: the largest value that makes a difference; None where all do.
    """

    value: Any
    most: int | None = None


@dataclass(frozen=True)
class Cost:
    """What a tensor costs at a step size, and what that does to it.

    Attributes:
        step: the step size.
        bytes: of its part of the bitstream.
        error: sum of squared errors.
    """

    step: float
    bytes: float
    error: float


@dataclass(frozen=True)
class Judged:
    """What the split for decisions says of a model.

    Attributes:
        drop: on it.
        bound: the largest drop that is likely on another split as large (by ``target.confidence``); what decides.
        systematic: the same without the noise of single answers there, which is the same for all models that change as
            many: where soft scores tell nothing, `bound`.
    """

    drop: float
    bound: float
    systematic: float


@dataclass(frozen=True)
class Target:
    """What a stage that finds the working point itself looks for: the smallest within a drop, or the best of a size.

    Attributes:
        drop: the largest one.
        bytes: of the bitstream; None to go by the drop.
        ahead: how many places beyond the last one within the drop are looked at: what is measured goes up and down.
    """

    drop: float = 0.0
    bytes: int | None = None
    ahead: int = 2


@dataclass(frozen=True)
class Transformed:
    """What a transform gives the next stage, and what it tells about its work.

    Attributes:
        model: the changed model.
        edits: the changes of the architecture, from which the receiver rebuilds it.
        integers: weights that are integers now, by tensor name; the model has their values.
        steps: step sizes by tensor name, for a coder that `takes_steps`.
        exact: of those tensors, the ones whose values are multiples of their step sizes, coded without another loss.
        dependent: of these, the ones whose multiples are those of dependent quantisation (`rate_distortion.trellis`).
        mac_ratio: multiply-accumulate operations of the changed model over those of the given one.
        memory_ratio: the same for the memory of its weights.
        metrics: further figures, logged as they are named here.
        tables: rows by name, logged as ``stages/STAGE/NAME.json``.
        figures: matplotlib figures by name, logged as ``plots/STAGE-NAME.png``.
        simulate: from the decoded model to one that also simulates what the receiver's device will do beyond its
            weights (integer activations); its performance is logged apart.
        met: whether a stage that finds the working point itself has found one within the target.
    """

    model: Any
    edits: Sequence[Edit] = ()
    integers: Mapping[str, Integers] = field(default_factory=dict)
    steps: Mapping[str, float] = field(default_factory=dict)
    exact: Collection[str] = frozenset()
    dependent: Collection[str] = frozenset()
    mac_ratio: float = 1.0
    memory_ratio: float = 1.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    simulate: Callable[[Any], Any] | None = None
    met: bool = True
