"""Training after a decomposition or pruning, with the anchor's outputs as targets, so that a drop is recovered.

No labels are used. It is the distillation of Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", where
the anchor teaches its own compressed version. The state that is kept is the one that agrees best with the anchor on
the calibration split, and that may be the one before.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tracker.codecs.base import Context, Transform
from tracker.codecs.finetune_training import Training, parameters_of, rank
from tracker.codecs.records import Transformed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Trained(Transform):
    """A transform that trains the model."""

    def check_model(self, model: Any, framework: str) -> None:
        """Refuse what cannot be trained.

        Raises:
            TrackerError: another framework, a torch.export program, or no floating-point parameters.
        """
        super().check_model(model, framework)
        if framework == "pytorch":
            parameters_of(model, f"codec.{self._configured or type(self).__name__.lower()}")


class Finetune(Trained):
    """A few epochs over the training split's inputs by Adam, the learning rate falling as a cosine to zero."""

    epochs: int = Field(default=5, ge=1, le=10000)
    learning_rate: float = Field(default=1e-3, gt=0, le=1, allow_inf_nan=False)
    loss: Literal["mse", "kl"] = Field(
        default="mse",
        description="squared error over the anchor's variance, for any output; or divergence of the classes' "
        "probabilities, for logits of shape (batch, classes, ...)",
    )
    temperature: float = Field(default=4.0, gt=0, le=1000, allow_inf_nan=False, description="of kl's probabilities")
    norm: Literal["train", "frozen"] = Field(
        default="train", description="whether BatchNorm's means and variances are measured anew, or stay"
    )
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="the largest norm of a step's gradient")
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        default="auto", description="4 to 32, so that an epoch has 64 steps; inputs of several tensors keep the task's"
    )
    crop: Literal["auto"] | Annotated[int, Field(ge=1)] | None = Field(
        default="auto",
        description="train on random squares of this side, for networks that take any image size; auto: 64 where "
        "images are larger than 128 and the output's size follows the input's; null: on whole images",
    )
    calibration_batches: int | None = Field(
        default=16, ge=1, description="calibration batches on which epochs are compared; null: all of them"
    )
    seconds: float | None = Field(default=None, gt=0, description="stop after so long")

    def logged(self) -> list[str]:
        """See `Transform.logged`."""
        names = ("loss_before", "loss_after", "agreement_before", "agreement_after", "epoch")
        return [f"finetune/{name}" for name in names]

    def apply(self, model: Any, context: Context) -> Transformed:
        """Train the model, and keep its best state.

        Raises:
            TrackerError: the model's outputs do not depend on its parameters, or do not fit the anchor's.
        """
        dtypes = {name: tensor.dtype for name, tensor in tensors_of(model)}
        with repeatable(context.seed, model):
            teacher = full_precision(context.anchor, context.device, copied=True)
            student = full_precision(model, context.device)
            rows = Training(self, student, teacher, context).run()
        for name, tensor in tensors_of(student):
            tensor.data = tensor.data.to("cpu", dtypes[name])  # a half-precision model was trained in full precision
        first, best = rows[0], max(rows, key=rank)
        metrics = {
            "finetune/loss_before": first["loss"],
            "finetune/loss_after": best["loss"],
            "finetune/agreement_before": first["agreement"],
            "finetune/agreement_after": best["agreement"],
            "finetune/epoch": float(best["epoch"]),
        }
        known = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
        return Transformed(student, metrics=known, tables={"epochs": rows}, figures={"loss": plotted(rows)})


def tensors_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    """All parameters and buffers by name, also those that no state dict has."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def full_precision(model: nn.Module, device: str, copied: bool = False) -> nn.Module:
    """A model in float32, complex tensors in complex64, and evaluation mode on a device."""
    if copied:
        model = copy.deepcopy(model)
    model = model.to(device).float().eval()  # to(dtype) would take the imaginary parts from complex tensors
    for _, tensor in tensors_of(model):
        if tensor.is_complex():
            tensor.data = tensor.data.to(torch.complex64)
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False  # gradients of its own kind, which only some optimisers take
    return model


@contextmanager
def repeatable(seed: int, model: nn.Module) -> Iterator[None]:
    """The same random numbers for the same seed, and PyTorch's own settings put back.

    Args:
        seed: of them.
        model: of which gradients are taken in evaluation mode: cuDNN has none of recurrent layers then.
    """
    recurrent = any(isinstance(layer, nn.RNNBase) for layer in model.modules())
    cudnn = torch.backends.cudnn.enabled
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    checks: Any = torch.utils.deterministic
    filled = checks.fill_uninitialized_memory
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Else every new tensor is filled, to find reads of what nobody wrote: an eighth of the time of training.
        checks.fill_uninitialized_memory = False
        torch.backends.cudnn.enabled = cudnn and not recurrent
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn)
            checks.fill_uninitialized_memory = filled
            torch.backends.cudnn.enabled = cudnn


def plotted(rows: list[dict[str, Any]]) -> Figure:
    """Loss and agreement over the epochs."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if math.isfinite(row["loss"])]
    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    left.plot([row["epoch"] for row in shown], [row["loss"] for row in shown], marker="o", label="calibration")
    trained = [row for row in rows if row["training loss"] is not None]
    left.plot([row["epoch"] for row in trained], [row["training loss"] for row in trained], label="training")
    if all(row["loss"] > 0 for row in shown):
        left.set_yscale("log")
    left.set_ylabel("loss")
    left.legend()
    scored = [row for row in shown if row["agreement"] is not None]
    right.plot([row["epoch"] for row in scored], [row["agreement"] for row in scored], marker="o", color="#c0504d")
    right.set_ylabel("agreement with the anchor")
    for axis in (left, right):
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    return figure
