"""Post-training quantisation through AIMET's QuantizationSimModel.

What the options do is described in the AIMET documentation (https://quic.github.io/aimet-pages), in Nagel et al. 2019,
"Data-Free Quantization Through Weight Equalization and Bias Correction" (BatchNorm folding, cross-layer equalisation,
high-bias folding), in Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization" (AdaRound), and
in Nagel et al. 2021, "A White Paper on Neural Network Quantization". AIMET is the sender's alone: the receiver gets the
integers, their scales and the changes of the architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tracker import aimet
from tracker.codecs.base import Context, Transform
from tracker.codecs.records import Entry, Transformed
from tracker.errors import unknown_layer

if TYPE_CHECKING:
    from torch import Tensor, nn

BITS = range(4, 17)
SEQUENTIAL_MSE_BITS = 4  # AIMET leaves layers of more bits out of its sequential MSE


class QuantSim(Transform):
    """Weights as integers and scales, as AIMET's quantisers make them; activations simulated on top."""

    final: ClassVar[bool] = True
    makes_integers: ClassVar[bool] = True

    bits: int = Field(default=8, description="of the weights, 4 to 16")
    bits_per_layer: dict[str, int] = Field(default={}, description="bits by layer name, before the above")
    ignore: list[str] = Field(default=[], description="layers, or modules with all in them, kept in floating point")
    per_channel: bool = Field(default=True, description="a scale for each output channel, not for each tensor")
    symmetric: bool = Field(default=True, description="encodings around zero; false: with an offset")
    scheme: Literal["min_max", "tf_enhanced"] = Field(
        default="min_max", description="how ranges are chosen: all values, or the best signal-to-noise ratio"
    )
    fold_norm: bool = Field(default=True, description="fold BatchNorm into the layers beside it")
    equalise: bool = Field(default=False, description="cross-layer equalisation and high-bias folding")
    replace_relu6: bool = Field(default=False, description="ReLU in place of ReLU6, which equalisation cannot pass")
    rounding: Literal["nearest", "adaround"] = "nearest"
    adaround_iterations: int | None = Field(default=None, ge=1, description="for each layer; null: AIMET's own")
    sequential_mse: bool = Field(default=False, description="search the range that is best for each layer's output")
    candidates: int = Field(default=20, ge=2, description="ranges that sequential_mse tries")
    crop: Literal["auto"] | Annotated[int, Field(ge=1)] | None = Field(
        default="auto",
        description="side of the random squares of images that adaround and sequential_mse see; auto: 64 for large "
        "images, where the network takes them; null: whole images",
    )
    activations: Literal[8, 16] | None = Field(default=None, description="also simulate activations of so many bits")
    calibration_batches: int | None = Field(default=16, ge=1, description="of the calibration split; null: all of it")

    # null in the config, because Hydra lets no key be added to a dict there without a +; and it reads the names of a
    # sequential model's layers as numbers.

    @field_validator("bits_per_layer", mode="before")
    @classmethod
    def _bits_by_name(cls, value: Any) -> Any:
        return {str(name): bits for name, bits in value.items()} if isinstance(value, Mapping) else value or {}

    @field_validator("ignore", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        given = isinstance(value, Sequence) and not isinstance(value, str)
        return [str(name) for name in value] if given else value or []

    @model_validator(mode="after")
    def _consistent(self) -> QuantSim:
        named = {"bits": self.bits} | {f"bits_per_layer.{name}": bits for name, bits in self.bits_per_layer.items()}
        for name, bits in named.items():
            if bits not in BITS:
                raise ValueError(f"{name}={bits} does not exist: weights have {BITS[0]} to {BITS[-1]} bits")
        if self.equalise and not self.fold_norm:
            raise ValueError("equalise works on layers into which BatchNorm was folded: set fold_norm=true")
        if self.replace_relu6 and not self.equalise:
            raise ValueError("replace_relu6 serves nothing but equalisation: set equalise=true, or leave it out")
        if self.rounding != "adaround" and self.adaround_iterations is not None:
            raise ValueError("adaround_iterations needs rounding=adaround")
        if self.sequential_mse and SEQUENTIAL_MSE_BITS not in named.values():
            raise ValueError(
                f"AIMET's sequential MSE works on layers of {SEQUENTIAL_MSE_BITS} bits only, and there are none: set "
                f"bits={SEQUENTIAL_MSE_BITS}, or leave sequential_mse out"
            )
        return self

    def check(self) -> None:
        """Refuse a machine without aimet-torch."""
        aimet.check_installed("quantsim")

    def check_model(self, model: nn.Module, framework: str) -> None:
        """Refuse names of layers that the model does not have.

        Raises:
            TrackerError: there is such a name, or it is no PyTorch model.
        """
        super().check_model(model, framework)
        modules = dict(model.named_modules())
        for key, name in self._named():
            # A stage before this one may have put several layers in the place of one: svd makes conv1.0 of conv1.
            if name not in modules and not (name.rpartition(".")[0] in modules and _leaf(modules, name)):
                raise unknown_layer(f"codec.quantsim.{key}", name, modules)

    def entries(self, option: str, model: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Entry]:
        """Bits for each layer with a weight."""
        from tracker.aimet.quantsim_graph import LAYERS

        layers = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
        wanted = [name for name in layers if name not in self.ignore] if option == "bits_per_layer" else []
        return {name: Entry(self.bits_per_layer.get(name, self.bits)) for name in wanted}

    def logged(self) -> list[str]:
        """See `Transform.logged`."""
        names = ("bits", "quantised_percent", "folded_norms", "equalised_groups", "sqnr_db")
        simulated = ["performance/simulated", "performance/simulated_drop"] if self.activations else []
        return [*(f"quantsim/{name}" for name in names), *simulated]

    def prepare(self) -> None:
        """Import AIMET."""
        aimet.load()

    def apply(self, model: nn.Module, context: Context) -> Transformed:
        """Quantise the weights.

        Returns:
            The model with the values of the integers, the integers, the BatchNorms that were folded, a table and a
            plot of the layers, and with ``activations`` a simulation of them.

        Raises:
            TrackerError: AIMET cannot work on the model, or a name in the configuration is not in it.
        """
        from tracker.aimet.quantsim import quantise

        modules = dict(model.named_modules())
        for key, name in self._named():
            if name not in modules:
                raise unknown_layer(f"codec.quantsim.{key}", name, modules)
        return quantise(self, model, context)

    def _named(self) -> list[tuple[str, str]]:
        """Names of layers in the configuration, and where they are."""
        return [("ignore", name) for name in self.ignore] + [("bits_per_layer", name) for name in self.bits_per_layer]


def _leaf(modules: dict[str, nn.Module], name: str) -> bool:
    """Whether the module in which another one is said to be is a layer itself."""
    parent = name.rpartition(".")[0]
    return bool(parent) and not list(modules[parent].children())
