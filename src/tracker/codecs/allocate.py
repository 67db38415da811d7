"""A step size for each tensor, from what it costs and what it does to the outputs.

Rates are measured by coding each tensor at several step sizes (`nnc_tables`), sensitivities without labels
(`distortion`); together they are solved as a Lagrangian (`lagrangian`), whose multiplier is searched until the target
is met. Norms and biases take part: at these rates they are a tenth of the bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, PrivateAttr
from torch import Tensor

from tracker.bitstream.state import aliases
from tracker.codecs.base import Context, Transform
from tracker.codecs.records import Transformed
from tracker.errors import TrackerError
from tracker.frameworks.pytorch import refuse_program
from tracker.rate_distortion.inputs import Source
from tracker.rate_distortion.lagrangian import Curve, allocated, curve, prices
from tracker.rate_distortion.norms import plain_norms
from tracker.rate_distortion.sensitivity import sensitivities_on
from tracker.rate_distortion.twin import in_pytorch

FINEST = 0.02  # of all bits, between the prices that a target is looked for among


class Allocate(Transform):
    """Step sizes at one price of a bit for all tensors; the values stay as they are, for the coder to quantise."""

    frameworks: ClassVar[frozenset[str]] = frozenset({"pytorch", "keras"})
    aims: ClassVar[bool] = True
    answer: ClassVar[str] = "price"
    makes_steps: ClassVar[bool] = True

    inputs: Source | Literal["none"] = Field(
        default="calibration",
        description="on which sensitivities are measured; synthetic: made without data, from BatchNorms if there are "
        "any; none: every weight tensor's relative error counts the same",
    )
    feedback: bool = Field(
        default=True, description="count of each tensor's errors what is left by a stage that makes up for some (round)"
    )
    price: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="lambda, distortion for a bit; null: by the target"
    )
    _curves: dict[str, Curve] = PrivateAttr(default_factory=dict)

    def logged(self) -> list[str]:
        """See `Transform.logged`."""
        return ["allocate/price", "allocate/kilobytes"]

    def check_model(self, model: Any, framework: str) -> None:
        """See `Stage.check_model`.

        Raises:
            TrackerError: a torch.export program.
        """
        super().check_model(model, framework)
        if framework == "pytorch":
            refuse_program(model, f"codec.{self._configured or 'allocate'}")

    @in_pytorch
    def apply(self, model: Any, context: Context) -> Transformed:
        """Choose the step sizes.

        Raises:
            TrackerError: the coder has no rate tables, or the model's outputs do not depend on its parameters.
        """
        plain_norms(model)
        curves = self._curves or self._measured(model, context)
        price = self.price if self.price is not None else 0.0
        steps, bits = allocated(curves, price)
        rows = [
            {"tensor": name, "step size": step, "kilobytes": curves[name].best(price)[1] / 8000}
            for name, step in steps.items()
        ]
        return Transformed(
            model,
            steps=steps,
            metrics={"allocate/price": price, "allocate/kilobytes": bits / 8000},
            tables={"steps": rows},
        )

    @in_pytorch
    def places(self, model: Any, context: Context) -> Sequence[Allocate]:
        """One price after the other; rates and sensitivities are measured once."""
        if self.price is not None:
            return ()
        plain_norms(model)
        self._curves = self._measured(model, context)
        places = []
        for price in prices(self._curves, FINEST):
            places.append(self.model_copy(update={"price": price}))
            places[-1]._curves = self._curves
        return places

    def _measured(self, model: Any, context: Context) -> dict[str, Curve]:
        """Rate and distortion of each tensor that is coded, by step size."""
        if context.coder is None:
            raise TrackerError("allocate needs a coder after it")
        state = context.state(model)
        tied = aliases(state)
        tensors = {
            name: tensor
            for name, tensor in state.items()
            if tensor.is_floating_point() and tensor.ndim and name not in tied
        }
        weighed = self._sensitivities(model, tensors, context)
        if self.feedback:
            for name, share in context.remaining(model, context).items():
                if name in weighed and name not in context.exact:
                    weighed[name] *= share
        found = context.coder.costs({name: tensors[name] for name in weighed})
        return {
            name: curve([r.step for r in rows], [r.bytes for r in rows], [r.error for r in rows], weighed[name])
            for name, rows in found.items()
        }

    def _sensitivities(self, model: Any, tensors: Mapping[str, Tensor], context: Context) -> dict[str, float]:
        """Distortion over squared error, of each tensor that it is known of."""
        if self.inputs == "none":
            # A layer's outputs are off by as much as its weights are, relatively.
            return {
                name: 1 / max(float(tensor.double().square().sum()), 1e-30)
                for name, tensor in tensors.items()
                if tensor.ndim > 1 and tensor.numel()
            }
        found = sensitivities_on(self.inputs, model, context)
        # A quadratic approximation: half of the second derivative.
        return {name: max(0.5 * float(values.mean()), 1e-30) for name, values in found.items() if name in tensors}
