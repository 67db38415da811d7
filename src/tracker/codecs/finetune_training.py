"""The training behind the stage `finetune`: a student learns a teacher's outputs, and keeps its best state."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tracker.codecs.base import Context
from tracker.codecs.finetune_inputs import Inputs, side
from tracker.errors import TrackerError
from tracker.evaluation import KEPT_BYTES
from tracker.frameworks.pytorch import refuse_program
from tracker.nested import cloned, on_device, tensor_bytes

if TYPE_CHECKING:
    from tracker.codecs.finetune import Finetune

log = logging.getLogger(__name__)
# An epoch after which the loss is this much above that before training is taken back, and the next one begins with the
# learning rate divided by LOWER, down to a share of LOWEST.
WORSE, LOWER, LOWEST = 1.5, 3.0, 0.01
TEACHING = 128  # inputs at once, of which the teacher's outputs are taken
NORMS = (nn.modules.batchnorm._BatchNorm,)


class Training:
    """One training of a student by a teacher."""

    def __init__(self, options: Finetune, student: nn.Module, teacher: nn.Module, context: Context) -> None:
        self.options, self.student, self.teacher, self.context = options, student, teacher, context
        self.parameters = parameters_of(student)
        self.generator = torch.Generator().manual_seed(context.seed)
        crop = self._side() if options.crop == "auto" else options.crop
        size = None if options.batch_size == "auto" else options.batch_size
        self.inputs = Inputs(context, size, crop, self.generator)
        self.variance = 0.0  # of the teacher's outputs, by the first batch
        self.taught = self._taught()
        self.targets: list[Tensor] = []  # the teacher's outputs on the calibration batches, as far as they are kept

    def _side(self) -> int | None:
        """Of squares to train on in place of whole images, where that can be."""
        first = next(iter(self.context.training()), None)
        return side(self.context.predict, self.teacher, on_device(first, self.context.device, torch.float32))

    def run(self) -> list[dict[str, Any]]:
        """Train; the student is left in its best state.

        An epoch that makes the loss much worse than it was before training is taken back, and the learning rate goes
        down: which one suits depends on the network, and Adam's first steps can ruin one without normalisation.

        Returns:
            A row for the state before training (epoch 0) and one after each epoch: the training loss, the calibration
            split's loss and agreement, the learning rate that it began with, and the seconds since the beginning.
        """
        flags = [parameter.requires_grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        with tqdm(total=self.options.epochs, desc="finetune", unit="epoch", disable=None, leave=False) as bar:
            rows, best = self._epochs(bar)
        self.student.load_state_dict(best)
        for parameter, flag in zip(self.parameters, flags, strict=True):
            parameter.grad = None
            parameter.requires_grad_(flag)
        self.student.eval()
        return rows

    def _epochs(self, bar: tqdm[Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The rows, and the best state."""
        options, began, rate, done = self.options, time.monotonic(), self.options.learning_rate, 0
        rows: list[dict[str, Any]] = [
            {"epoch": 0, "learning rate": None, "training loss": None, **self._scores(), "seconds": 0.0}
        ]
        best = copy.deepcopy(self.student.state_dict())  # with its versions and extra states
        optimiser = torch.optim.Adam(self.parameters, lr=rate)
        while done < options.epochs:
            mean, complete = self._epoch(optimiser, rate, done, began)
            row: dict[str, Any] = {"epoch": done + 1, "learning rate": rate, "training loss": mean, **self._scores()}
            row["seconds"] = time.monotonic() - began
            if rank(row) > max(rank(earlier) for earlier in rows):
                best = copy.deepcopy(self.student.state_dict())
            rows.append(row)
            if complete and not (math.isfinite(row["loss"]) and row["loss"] <= WORSE * rows[0]["loss"]):
                rate /= LOWER
                if rate < options.learning_rate * LOWEST:
                    log.warning("finetune: every epoch makes the model worse; lower the learning_rate")
                    break
                log.info("finetune: epoch %d made the model worse; learning rate %.2g", done + 1, rate)
                self.student.load_state_dict(best)
                optimiser = torch.optim.Adam(self.parameters, lr=rate)
                continue
            done += 1
            bar.update()
            bar.set_postfix(loss=f"{row['loss']:.3g}")
            if not complete:
                break
        return rows, best

    def _epoch(
        self, optimiser: torch.optim.Optimizer, rate: float, done: int, began: float
    ) -> tuple[float | None, bool]:
        """The mean loss over one epoch, and whether training may go on.

        Args:
            optimiser: to step.
            rate: the learning rate, that falls over the epochs.
            done: epochs before this one.
            began: when training did.
        """
        options, total, count, norms = self.options, 0.0, 0, None
        if options.norm == "train":
            norms = [module for module in self.student.modules() if isinstance(module, NORMS)]
        for index, (inputs, places) in enumerate(self.inputs.epoch()):
            if options.seconds is not None and time.monotonic() - began > options.seconds:
                log.info("finetune: the time given (codec.*.seconds=%g) is over in epoch %d", options.seconds, done + 1)
                return (total / count if count else None), False
            share = (done + min(index / max(self.inputs.batches, 1), 1)) / options.epochs
            for group in optimiser.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * share))
            for module in norms or ():
                module.train()
            known = None if self.taught is None or places is None else self.taught[places].to(self.context.device)
            loss = self._distance(*self._outputs(inputs, known))
            for module in norms or ():
                module.eval()
            if not math.isfinite(value := float(loss.detach())):
                return None, True
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
            for inputs in whole.split(TEACHING):
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
            return divergence(output, target, self.options.temperature)
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


def divergence(output: Tensor, target: Tensor, heat: float, axis: int = 1) -> Tensor:
    """The mean Kullback-Leibler divergence of the classes' probabilities at a temperature.

    Args:
        output, target: logits, of the same shape.
        heat: the temperature.
        axis: of the classes.
    """
    wanted, given = (target / heat).log_softmax(dim=axis), (output / heat).log_softmax(dim=axis)
    divergences = nn.functional.kl_div(given, wanted, reduction="none", log_target=True).sum(dim=axis)
    return divergences.mean() * heat**2  # by its square, gradients stay as large (Hinton et al., section 2)


def rank(row: dict[str, Any]) -> tuple[float, float]:
    """By what the best epoch is chosen: agreement, then loss; a state that is not finite comes last."""
    agreement = row["agreement"] if row["agreement"] is not None else 0.0
    if not math.isfinite(row["loss"]) or not math.isfinite(agreement):
        return -math.inf, -math.inf
    return agreement, -row["loss"]


def weighted(values: list[float], sizes: list[int]) -> float:
    """The mean over samples of values that are means over batches."""
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / max(sum(sizes), 1)


def parameters_of(model: nn.Module, stage: str = "finetune") -> list[nn.Parameter]:
    """The floating-point and complex parameters of a model that can be trained.

    Args:
        model: of PyTorch.
        stage: for messages.

    Raises:
        TrackerError: it has none, or is a torch.export program.
    """
    refuse_program(model, stage)
    found = [parameter for parameter in model.parameters() if parameter.is_floating_point() or parameter.is_complex()]
    if not found:
        raise TrackerError(f"{stage} needs a model with floating-point parameters, and this one has none; leave it out")
    return found
