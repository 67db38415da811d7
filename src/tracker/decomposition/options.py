"""What pruning, spatial SVD and weight SVD have in common: their options, and what of a model they refuse.

Names and meanings of the options are those of AIMET (https://quic.github.io/aimet-pages, "Spatial SVD", "Weight SVD",
"Greedy selection of compression ratios").
"""

from __future__ import annotations

import importlib
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tracker.codecs.base import Context, Transform
from tracker.codecs.records import Entry, Transformed
from tracker.errors import TrackerError, unknown_layer

if TYPE_CHECKING:
    from torch import Tensor, nn

Ratio = Annotated[float, Field(gt=0, le=1)]
Rank = Annotated[int, Field(ge=1)]


class ByLayer(Transform):
    """A transform that makes layers smaller, each by a ratio that is given, or chosen by AIMET's greedy search."""

    key: ClassVar[str]  # the stage's name in configs and metrics
    kind: ClassVar[str]  # of the edits

    mode: Literal["manual", "auto"] = "manual"
    ratio: Ratio = Field(default=0.75, description="manual: of every layer; auto: of the model, without target_ratio")
    ratios: dict[str, Ratio] = Field(default={}, description="manual: ratio by layer, before `ratio`")
    layers: list[str] | None = Field(default=None, description="manual: only these layers; null: all")
    ignore: list[str] = Field(default=[], description="layers to leave as they are")
    target_ratio: float | None = Field(
        default=None, gt=0, lt=1, description="auto: cost of the model after over before"
    )
    candidates: int = Field(default=10, ge=2, le=1000, description="auto: ratios to try are 1/candidates apart")
    monotonic_fit: bool = Field(default=False, description="auto: make the scores rise with the ratio")
    evaluation_iterations: int | None = Field(default=4, ge=1, description="calibration batches of a score; null: all")
    cost_metric: Literal["mac", "memory"] = "mac"
    multiplicity: int = Field(default=1, ge=1, description="ranks are rounded up to multiples of this")
    on_failure: Literal["skip", "refuse"] = Field(default="skip", description="where AIMET fails on a layer")

    @field_validator("ratios", "ranks", mode="before", check_fields=False)
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        # null in the config, because Hydra lets no key be added to a dict there without a +; and 0 for "0".
        return {str(name): item for name, item in value.items()} if isinstance(value, dict) else value or {}

    @field_validator("ignore", "layers", mode="before")
    @classmethod
    def _names(cls, value: Any, info: Any) -> Any:
        if value is None:
            return [] if info.field_name == "ignore" else None
        return [str(name) for name in value] if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _consistent(self) -> ByLayer:
        given = {name for _, name in self.given()}
        if self.mode == "auto":
            if given or self.layers is not None:
                raise ValueError("mode=auto chooses the layers' ratios itself: name no layers, or take mode=manual")
            if self.target >= 1:
                raise ValueError("mode=auto needs a ratio below 1: set target_ratio")
        elif self.target_ratio is not None:
            raise ValueError("target_ratio is for mode=auto: add mode=auto, or set ratio")
        both = sorted(set(self.ignore) & {*given, *(self.layers or ())})
        if both:
            raise ValueError(f"{both[0]} is in ignore, and has a value of its own or a place in layers: keep one")
        if self.layers is not None:
            outside = sorted(given - set(self.layers))
            if outside:
                raise ValueError(f"{outside[0]} has a value of its own, but is not in layers: add it there")
            if not self.layers:
                raise ValueError("layers is empty, so nothing would be done: name layers, or set it to null for all")
        return self

    def given(self) -> list[tuple[str, str]]:
        """The layers that have values of their own, each with its option."""
        return [("ratios", name) for name in self.ratios]

    @property
    def target(self) -> float:
        """The model's ratio in mode auto."""
        return self.ratio if self.target_ratio is None else self.target_ratio

    def named(self) -> list[tuple[str, str]]:
        """The layers that the options name, each with its option."""
        others = {"layers": self.layers or (), "ignore": self.ignore}
        return [*self.given(), *((option, name) for option, names in others.items() for name in names)]

    @staticmethod
    @abstractmethod
    def types() -> tuple[type[nn.Module], ...]:
        """The PyTorch layers that the transform is for."""

    def logged(self) -> list[str]:
        """See `Transform.logged`."""
        more = ("scores_computed", "scores_reused") if self.mode == "auto" else ()
        return [f"{self.key}/{name}" for name in ("layers", "agreement", *more)]

    def entries(self, option: str, model: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Entry]:
        """A ratio for each layer that the transform is for."""
        found = self._own(model) if option == "ratios" else {}
        return {name: Entry(self.ratios.get(name, self.ratio)) for name in found}

    def _own(self, model: Any) -> dict[str, nn.Module]:
        """The layers that may have a value of their own; of a Keras model none, where names are not known yet."""
        if not hasattr(model, "named_modules"):
            return {}
        layers = {name: one for name, one in model.named_modules() if isinstance(one, self.types())}
        wanted = [name for name in layers if name not in self.ignore and name in (self.layers or layers)]
        return {name: layers[name] for name in wanted if getattr(layers[name], "groups", 1) == 1}

    def check_model(self, model: Any, framework: str) -> None:
        """Refuse a model without layers for the transform, or without those that the options name.

        Raises:
            TrackerError: that, or aimet-torch is missing.
        """
        super().check_model(model, framework)
        if framework == "pytorch":
            self.check_layers(model)

    def check_layers(self, model: nn.Module) -> None:
        """The same for a PyTorch model."""
        from tracker import aimet
        from tracker.frameworks.pytorch import refuse_program

        refuse_program(model, f"codec.{self.key}")
        aimet.check_installed(self.key)
        kinds = " or ".join(kind.__name__ for kind in self.types())
        if not any(isinstance(module, self.types()) for module in model.modules()):
            raise TrackerError(f"codec.{self.key} works on {kinds} layers, and the anchor has none; leave it out")
        for option, name in self.named():
            self.check_layer(model, option, name, final=False)
        aimet.load()

    def check_layer(self, model: nn.Module, option: str, name: str, final: bool) -> None:
        """Refuse a name that is no layer of a model.

        Args:
            model: to look into.
            option: that has the name.
            name: of a layer.
            final: whether the model is the one that the stage gets; else an earlier stage may yet split a layer, so
                that ``conv.0`` passes where ``conv`` could be split.

        Raises:
            TrackerError: there is none, or it is of another type.
        """
        modules = dict(model.named_modules(remove_duplicate=False))
        kinds = " or ".join(kind.__name__ for kind in self.types())
        found = modules.get(name)
        if isinstance(found, self.types()):
            return
        if found is not None:
            if option == "ignore":
                return
            raise TrackerError(f"codec.{self.key}.{option} names {name}, a {type(found).__name__}, and not a {kinds}")
        parents = [modules.get(name[:at]) for at, letter in enumerate(name) if letter == "."]
        if not final and any(map(_splittable, parents)):
            return
        layers = [known for known, module in modules.items() if isinstance(module, self.types())]
        raise unknown_layer(f"codec.{self.key}.{option}", name, layers)


class Decomposition(ByLayer):
    """Layers as products of two of lower rank.

    A ratio is a layer's cost after the decomposition over its cost before; AIMET takes the largest rank that keeps it
    within the ratio. Ratio 1 leaves a layer as it is, and so does a rank at which the pair would cost more than the
    layer.
    """

    frameworks: ClassVar[frozenset[str]] = frozenset({"pytorch", "keras"})

    rank: Rank | None = Field(default=None, description="manual: rank of every layer, instead of `ratio`")
    ranks: dict[str, Rank] = Field(default={}, description="manual: rank by layer, before all others")

    @model_validator(mode="after")
    def _ranks(self) -> Decomposition:
        if self.mode == "auto" and self.rank is not None:
            raise ValueError("mode=auto chooses the layers' ratios itself: leave out rank, or take mode=manual")
        if self.multiplicity > 1 and (self.ranks or self.rank is not None):
            raise ValueError(
                "multiplicity rounds the ranks that follow from ratios: leave it at 1 where ranks are given"
            )
        twice = sorted(self.ratios.keys() & self.ranks.keys())
        if twice:
            raise ValueError(f"{twice[0]} has both a ratio and a rank: keep one of them")
        return self

    def given(self) -> list[tuple[str, str]]:
        """The layers that have a ratio or a rank of their own, each with its option."""
        return [*super().given(), *(("ranks", name) for name in self.ranks)]

    def check_model(self, model: Any, framework: str) -> None:
        """Refuse a model without layers to decompose, or without those that the options name.

        Raises:
            TrackerError: that, or aimet-torch is missing for a PyTorch model.
        """
        super().check_model(model, framework)
        if framework == "keras":
            keras_side().check(self, model)

    def entries(self, option: str, model: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Entry]:
        """A ratio or a rank for each layer; ranks for those only where some rank saves weights.

        The first rank that does not is the last to be searched: it leaves the layer as it is.
        """
        if option != "ranks":
            return super().entries(option, model, tensors)
        shapes = {name: tensors[f"{name}.weight"].shape for name in self._own(model) if f"{name}.weight" in tensors}
        most = {name: largest_rank(tuple(shape), self.kind) for name, shape in shapes.items()}
        return {name: Entry(self.ranks.get(name, rank + 1), rank + 1) for name, rank in most.items() if rank > 0}

    def apply(self, model: Any, context: Context) -> Transformed:
        """The model with its layers decomposed.

        Raises:
            TrackerError: the options do not fit the model, or AIMET cannot run it.
        """
        if context.framework == "keras":
            given: Transformed = keras_side().apply(self, model, context, self.kind)
            return given
        from tracker.aimet import svd as aimet_svd

        return aimet_svd.apply(self, model, context)


def largest_rank(shape: tuple[int, ...], kind: str) -> int:
    """The largest rank at which the two layers have fewer weights than the one; 0 where none has.

    Args:
        shape: of the weight: (outputs, inputs, *kernel).
        kind: ``spatial_svd`` (columns, then rows of the kernel) or ``weight_svd`` (1 x 1, then the whole kernel).
    """
    out, into, *kernel = shape
    if kind == "spatial_svd":
        first, second = into * kernel[0], out * kernel[1]
    else:
        first, second = into, out * math.prod(kernel)
    return (math.prod(shape) - 1) // (first + second)  # always below the full rank, at which a pair is larger


def keras_side() -> Any:
    """Our own SVD of Keras models; by name, so that TensorFlow's side is imported only where there is such a model."""
    return importlib.import_module("tracker.decomposition.keras")


def _splittable(module: Any) -> bool:
    """Whether a transform may put a Sequential of layers in a module's place."""
    from torch import nn

    return isinstance(module, nn.Conv2d | nn.Linear)
