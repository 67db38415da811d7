"""What NNCodec can be told, and what of it goes together."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tracker.codecs import nnc_steps
from tracker.codecs.base import Coder

# What nncodec 2.1.3 offers but cannot do here, and why; each is a field, so that it is refused by its own name.
NOT_WORKING = {
    "lsa": "local scaling is trained by NNCodec's own data loaders and use cases, which fit none of our anchors",
    "ioq": "inference-optimised QP needs a model executer from NNCodec's own use cases",
    "fine_tune": "fine-tuning needs a model executer from NNCodec's own use cases",
    "tca": "temporal context adaptation codes a model update against an earlier one; here a whole model is coded",
}


class NncOptions(Coder):
    """The options of `Nnc`, by the names of ``nncodec.nn.encode``."""

    rate_falls_with: ClassVar[str] = "qp"

    qp: float = Field(
        default=-32, allow_inf_nan=False, description="quantisation parameter of weights, -2^(5+d) to 2^(5+d)-1"
    )
    qp_early: float = Field(
        default=0.0, allow_inf_nan=False, description="added to the qp of the first weight, ever less up to the middle"
    )
    qp_late: float = Field(
        default=0.0, allow_inf_nan=False, description="added to the qp of the last weight, ever less down to the middle"
    )
    qp_density: int = Field(default=2, ge=0, le=4, description="d: 2^d steps of qp halve or double the step size")
    nonweight_qp: int | None = Field(default=-75, description="the same for other tensors; null: qp - 2^(d+1)")
    qp_per_tensor: dict[str, int] = Field(default={}, description="qp by tensor name, before the two above")
    use_dq: bool = Field(default=True, description="dependent (trellis-coded) quantisation")
    lambda_scale: float = Field(default=0.0, ge=0, description="rate-distortion trade-off of the trellis")
    opt_qp: bool = Field(default=False, description="qp by NNCodec's rule from each tensor's size and deviation")
    bitdepth: int | None = Field(default=None, ge=2, le=24, description="integers of so many bits, instead of a qp")
    approx_method: Literal["uniform", "codebook"] = "uniform"
    param_opt: bool = Field(default=True, description="optimise the context models' adaptation rates for each tensor")
    cabac_unary_length_minus1: int = Field(default=10, ge=0, le=15)
    scan_order: int = Field(default=0, ge=0, le=4, description="0: row by row; 1 to 4: blocks of 8, 16, 32, 64")
    row_skipping: bool = Field(default=True, description="signal output channels that are all zero")
    sparsity: float = Field(default=0.0, ge=0, lt=1, description="share of weights set to zero, by magnitude")
    struct_spars_factor: float = Field(
        default=0.0,
        ge=0,
        le=2,
        description="also zero whole channels whose mean "
        "magnitude is below this times the tensor's mean; needs sparsity",
    )
    bnf: bool | Literal["auto"] = Field(
        default=False, description="fold BatchNorm into scales and biases of the layer before it; auto: where it works"
    )
    lsa: bool = False
    ioq: bool = False
    fine_tune: bool = False
    tca: bool = False

    @field_validator("qp", mode="after")
    @classmethod
    def _whole_is_int(cls, value: float) -> float:
        return int(value) if value == int(value) else value

    @field_validator("qp_per_tensor", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        # null in the config, because Hydra lets no key be added to a dict there without a +.
        return {} if value is None else value

    @field_validator(*NOT_WORKING)
    @classmethod
    def _refused(cls, value: bool, info: Any) -> bool:
        if value:
            raise ValueError(f"this option of nncodec does not work here: {NOT_WORKING[info.field_name]}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> NncOptions:
        limit = 2 ** (5 + self.qp_density)
        named = {"qp": self.qp, "nonweight_qp": self.nonweight} | {
            f"qp_per_tensor.{name}": qp for name, qp in self.qp_per_tensor.items()
        }
        lowest = self.lowest
        for name, qp in named.items():
            if not lowest <= qp < limit:
                implied = " (null: qp - 2^(d+1))" if name == "nonweight_qp" and self.nonweight_qp is None else ""
                mode = " and a codebook" if lowest > -limit else ""
                raise ValueError(
                    f"{name}={qp}{implied} is out of range: with qp_density={self.qp_density}{mode} it is {lowest} to "
                    f"{limit - 1}"
                )
        for name, value in (("qp_early", self.qp + self.qp_early), ("qp_late", self.qp + self.qp_late)):
            if not lowest <= value < limit:
                raise ValueError(f"{name}: qp + {name} = {value:g} is out of range, {lowest} to {limit - 1}")
        nnc_steps.resolve(self.qp_density, self.qp, None, {}, (0.0, 0.0), [])  # refuses what lies between two steps
        if (self.qp_early or self.qp_late) and (self.opt_qp or self.bitdepth is not None):
            raise ValueError("qp_early and qp_late set all step sizes: leave out opt_qp and bitdepth")
        if self.nonweight_qp == 0:
            raise ValueError("nonweight_qp=0 means 'not set' to nncodec; take -1 or 1, or null for qp - 2^(d+1)")
        if self.bitdepth is not None and (self.qp_per_tensor or self.opt_qp):
            raise ValueError("bitdepth sets all step sizes itself: leave out opt_qp and qp_per_tensor")
        if self.struct_spars_factor and not self.sparsity:
            raise ValueError("struct_spars_factor needs sparsity > 0")
        if self.bnf is True and (self.bitdepth is not None or self.approx_method == "codebook"):
            raise ValueError("bnf does not work with bitdepth or a codebook: nncodec has no step size for the scales")
        return self

    @property
    def lowest(self) -> int:
        """The smallest qp that NNCodec takes."""
        # In codebook mode nncodec makes up for the lack of dependent quantisation by a step half as large.
        return -(2 ** (5 + self.qp_density)) + (
            2**self.qp_density if self.approx_method == "codebook" and self.use_dq else 0
        )

    @property
    def nonweight(self) -> float:
        """The qp of tensors other than weights."""
        return self.qp - 2 ** (self.qp_density + 1) if self.nonweight_qp is None else self.nonweight_qp
