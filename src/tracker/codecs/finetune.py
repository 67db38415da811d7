"""Training after a decomposition or pruning, with the anchor's outputs as targets, so that a drop is recovered.

No labels are used. It is the distillation of Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", where
the anchor teaches its own compressed version. The state that is kept is the one that agrees best with the anchor on
the calibration split, and that may be the one before.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from tracker.codecs.base import Context, Transform, Transformed
from tracker.codecs.finetune_inputs import Inputs
from tracker.errors import TrackerError
from tracker.evaluation import KEPT_BYTES, cloned, on_device, tensor_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
NORMS = (nn.modules.batchnorm._BatchNorm,)


class Finetune(Transform):
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
    crop: int | None = Field(
        default=None, ge=1, description="train on random squares of this side, for networks that take any image size"
    )
    calibration_batches: int | None = Field(
        default=16, ge=1, description="calibration batches on which epochs are compared; null: all of them"
    )
    seconds: float | None = Field(default=None, gt=0, description="stop after so long")

    def check_model(self, model: Any, framework: str) -> None:
        """Refuse what cannot be trained.

        Raises:
            TrackerError: another framework, a torch.export program, or no floating-point parameters.
        """
        super().check_model(model, framework)
        parameters_of(model)

    def apply(self, model: Any, context: Context) -> Transformed:
        """Train the model, and keep its best state.

        Raises:
            TrackerError: the model's outputs do not depend on its parameters, or do not fit the anchor's.
        """
        dtypes = {name: tensor.dtype for name, tensor in tensors_of(model)}
        with repeatable(context.seed):
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


class Training:
    """One training of a student by a teacher."""

    def __init__(self, options: Finetune, student: nn.Module, teacher: nn.Module, context: Context) -> None:
        self.options, self.student, self.teacher, self.context = options, student, teacher, context
        self.parameters = parameters_of(student)
        self.generator = torch.Generator().manual_seed(context.seed)
        self.inputs = Inputs(context, options.crop, self.generator)
        self.variance = 0.0  # of the teacher's outputs, by the first batch
        self.taught = self._taught()
        self.targets: list[Tensor] = []  # the teacher's outputs on the calibration batches, as far as they are kept

    def run(self) -> list[dict[str, Any]]:
        """Train; the student is left in its best state.

        Returns:
            A row for the state before training (epoch 0) and one after each epoch: the training loss, the calibration
            split's loss and agreement, and the seconds since the beginning.
        """
        options, began = self.options, time.monotonic()
        flags = [parameter.requires_grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        optimiser = torch.optim.Adam(self.parameters, lr=options.learning_rate)
        rows = [{"epoch": 0, "training loss": None, **self._scores(), "seconds": 0.0}]
        best = cloned(self.student.state_dict())
        with tqdm(total=options.epochs, desc="finetune", unit="epoch", disable=None, leave=False) as bar:
            for epoch in range(1, options.epochs + 1):
                mean, complete = self._epoch(optimiser, epoch - 1, began)
                row = {"epoch": epoch, "training loss": mean, **self._scores(), "seconds": time.monotonic() - began}
                if rank(row) > max(rank(earlier) for earlier in rows):
                    best = cloned(self.student.state_dict())
                rows.append(row)
                bar.update()
                bar.set_postfix(loss=f"{row['loss']:.3g}")
                if not complete:
                    break
        self.student.load_state_dict(best)
        for parameter, flag in zip(self.parameters, flags, strict=True):
            parameter.grad = None
            parameter.requires_grad_(flag)
        self.student.eval()
        return rows

    def _epoch(self, optimiser: torch.optim.Optimizer, done: int, began: float) -> tuple[float | None, bool]:
        """The mean loss over one epoch, and whether training may go on."""
        options, total, count, norms = self.options, 0.0, 0, None
        if options.norm == "train":
            norms = [module for module in self.student.modules() if isinstance(module, NORMS)]
        for index, (inputs, places) in enumerate(self.inputs.epoch()):
            if options.seconds is not None and time.monotonic() - began > options.seconds:
                log.info("finetune: the time given (codec.*.seconds=%g) is over in epoch %d", options.seconds, done + 1)
                return (total / count if count else None), False
            share = (done + min(index / max(self.inputs.batches, 1), 1)) / options.epochs
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
            for module in norms or ():
                module.train()
            known = None if self.taught is None or places is None else self.taught[places].to(self.context.device)
            loss = self._distance(*self._outputs(inputs, known))
            for module in norms or ():
                module.eval()
            value = float(loss.detach())
            if not math.isfinite(value):
                log.warning("finetune: the loss is not finite in epoch %d; lower the learning_rate", done + 1)
                return None, False
            if not loss.requires_grad:
                raise TrackerError("finetune cannot train this model: its outputs do not depend on its parameters")
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, options.clip)
            optimiser.step()
            total, count = total + value, count + 1
        return total / max(count, 1), True

    def _outputs(self, inputs: Any, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's outputs; the latter's may be known."""
        inputs = on_device(inputs, self.context.device, torch.float32)
        if target is None:
            with torch.no_grad():
                target = self.context.predict(self.teacher, cloned(inputs)).float()
        output = self.context.predict(self.student, inputs).float()
        if output.shape != target.shape:
            raise TrackerError(
                f"finetune: the model's outputs are {tuple(output.shape)}, but the anchor's {tuple(target.shape)}"
            )
        return output, target

    def _taught(self) -> Tensor | None:
        """The teacher's outputs for all training inputs, where every epoch has the same and they are small."""
        whole = self.inputs.whole
        if whole is None:
            return None
        made: list[Tensor] = []
        with torch.no_grad():
            for inputs in whole.split(self.inputs.size):
                given = on_device(inputs, self.context.device, torch.float32)
                made.append(self.context.predict(self.teacher, given).float().cpu())
                if tensor_bytes(made[0]) / len(inputs) * len(whole) > KEPT_BYTES or len(made[0]) != len(inputs):
                    return None
        return torch.cat(made)

    def _distance(self, output: Tensor, target: Tensor) -> Tensor:
        """What training makes small."""
        if self.options.loss == "kl":
            if target.ndim < 2 or target.shape[1] < 2:
                raise TrackerError(f"loss=kl needs logits (batch, classes, ...), not {tuple(target.shape)}; use mse")
            heat = self.options.temperature
            wanted, given = (target / heat).log_softmax(dim=1), (output / heat).log_softmax(dim=1)
            divergence = nn.functional.kl_div(given, wanted, reduction="none", log_target=True).sum(dim=1)
            return divergence.mean() * heat**2  # by its square, gradients stay as large (Hinton et al., section 2)
        if not self.variance:
            self.variance = max(float(target.var(correction=0)), 1e-30)
        return (output - target).square().mean() / self.variance

    def _scores(self) -> dict[str, float | None]:
        """Loss and agreement on the calibration split."""
        losses, agreements, sizes = [], [], []
        batches = itertools.islice(self.context.calibration(), self.options.calibration_batches)
        with torch.no_grad():
            for index, inputs in enumerate(batches):
                output, target = self._outputs(inputs, self.targets[index] if index < len(self.targets) else None)
                if index == len(self.targets) and sum(map(tensor_bytes, (*self.targets, target))) <= KEPT_BYTES:
                    self.targets.append(target)
                losses.append(float(self._distance(output, target)))
                if self.context.agreement is not None:
                    agreements.append(self.context.agreement(output, target))
                sizes.append(len(target))
        return {"loss": weighted(losses, sizes), "agreement": weighted(agreements, sizes) if agreements else None}


def rank(row: dict[str, Any]) -> tuple[float, float]:
    """By what the best epoch is chosen: agreement, then loss; a state that is not finite comes last."""
    agreement = row["agreement"] if row["agreement"] is not None else 0.0
    if not math.isfinite(row["loss"]) or not math.isfinite(agreement):
        return -math.inf, -math.inf
    return agreement, -row["loss"]


def weighted(values: list[float], sizes: list[int]) -> float:
    """The mean over samples of values that are means over batches."""
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / max(sum(sizes), 1)


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """The floating-point parameters of a model that can be trained.

    Raises:
        TrackerError: it has none, or is a torch.export program.
    """
    if isinstance(model, torch.fx.GraphModule) and "eval" in vars(model):
        raise TrackerError("finetune cannot train a torch.export program; leave the stage out")
    found = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    if not found:
        raise TrackerError("finetune needs a model with floating-point parameters, and this one has none; leave it out")
    return found


def tensors_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    """All parameters and buffers by name, also those that no state dict has."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def full_precision(model: nn.Module, device: str, copied: bool = False) -> nn.Module:
    """A model in float32 and evaluation mode on a device."""
    if copied:
        model = copy.deepcopy(model)
    return model.to(device, torch.float32).eval()


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """The same random numbers for the same seed, and PyTorch's own settings put back."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn)


def plotted(rows: list[dict[str, Any]]) -> Figure:
    """Loss and agreement over the epochs."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if math.isfinite(row["loss"])]
    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    left.plot([row["epoch"] for row in shown], [row["loss"] for row in shown], marker="o", label="calibration")
    trained = [row for row in rows if row["training loss"] is not None]
    left.plot([row["epoch"] for row in trained], [row["training loss"] for row in trained], label="training")
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
