"""The training behind the stage `distill`: distortion + lambda * rate, through a uniform quantiser."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tracker.codecs.base import Context
from tracker.codecs.finetune_inputs import Inputs, side
from tracker.codecs.finetune_training import parameters_of
from tracker.errors import TrackerError
from tracker.evaluation import cloned, on_device
from tracker.frameworks.pytorch import has_bfloat16
from tracker.rate_distortion.code_length import bits_of, code_lengths, quantised
from tracker.rate_distortion.distortion import Distortion
from tracker.rate_distortion.moved import moved
from tracker.rate_distortion.quantised import Quantised, allowed, fine_step
from tracker.rate_distortion.start import LEARNING_RATE

if TYPE_CHECKING:
    from tracker.codecs.distill import Distill

# The share of a round after which steps stay where they are, on the grid: to get there changes all weights of a layer
# by some percent, which squared errors do not forgive.
FROZEN = {"kl": 0.7, "mse": 0.0}
SAMPLES, SQUARES = 48, 4  # in a batch
WARM = 0.03  # the share of a round in which the learning rate rises
RATES = {"weights": 1.0, "vectors": 2.0, "steps": 10.0}  # learning rates, over that of weights
SAVED = 30.0  # seconds between checkpoints
MEASURED = 8  # batches on which distortion is told
FLIPPED = 0.7  # agreement of the anchor with itself on mirrored inputs, from which they are trained on as well


class Progress(NamedTuple):
    """Where a round is.

    Attributes:
        tensors: all that training goes on from.
        steps: that were done.
        seconds: that they took.
    """

    tensors: Mapping[str, Tensor]
    steps: int
    seconds: float


Save = Callable[[Progress], None]


class Called(nn.Module):
    """A model behind an anchor's `predict`, so that both can be called with other parameters."""

    def __init__(self, model: nn.Module, context: Context) -> None:
        super().__init__()
        self.model, self.context = model, context

    def forward(self, inputs: Any) -> Tensor:
        """What `predict` gives."""
        return self.context.predict(self.model, inputs)


class Training:
    """One student, its latent parameters and step sizes; trained in rounds, each of which goes on from the last."""

    def __init__(self, options: Distill, student: nn.Module, teacher: nn.Module, context: Context) -> None:
        parameters_of(student)
        self.options, self.student, self.teacher, self.context = options, student, teacher, context
        self.called = Called(student, context)
        self.parameters = {
            name: parameter.detach().clone().requires_grad_(parameter.is_floating_point())
            for name, parameter in student.named_parameters()
        }
        floats = {name: tensor for name, tensor in self.parameters.items() if tensor.is_floating_point()}
        self.weights = [name for name, tensor in floats.items() if tensor.ndim > 1 and tensor.numel()]
        steps = {**(context.coder.step_sizes(context.state(student)) if context.coder else {}), **context.steps}
        self.sizes = {name: steps.get(name) or fine_step(floats[name]) for name in self.weights}
        self.vectors = {
            name: context.steps.get(name) or fine_step(tensor)
            for name, tensor in floats.items()
            if name not in self.weights
        }
        self.logs: dict[str, Tensor] = {}
        self.count = max(sum(self.parameters[name].numel() for name in self.weights), 1)
        self.generator = torch.Generator().manual_seed(context.seed)
        first = on_device(next(iter(context.training())), context.device, torch.float32)
        crop = side(context.predict, teacher, first) if options.crop == "auto" else options.crop
        size = options.batch_size if options.batch_size != "auto" else SQUARES if crop else SAMPLES
        self.inputs = Inputs(context, size, crop, self.generator)
        output = self.taught(first)
        self.distance = Distortion.fitting(context, output, options.loss, options.temperature)
        rate = options.learning_rate
        self.learning_rate = LEARNING_RATE[self.distance.kind] if rate == "auto" else rate
        self.shifted = isinstance(first, Tensor) and first.ndim == 4 and not crop and self.distance.kind == "kl"
        self.flipped = self.shifted and self._agrees_mirrored(first, output)
        self.endless = self._endless()
        self.bfloat16 = options.precision == "bfloat16" or (
            options.precision == "auto" and has_bfloat16(context.device)
        )

    def set_steps(self, sizes: Mapping[str, float]) -> None:
        """Step sizes of the weights."""
        device = self.context.device
        self.logs = {n: torch.tensor(math.log(sizes[n]), device=device, requires_grad=True) for n in self.weights}

    def spread(self, exact: Collection[str]) -> None:
        """Weights that are multiples of their steps, moved at random within half a step, as if they had never been.

        Of a coarser quantiser many of them would lie on the borders, and all of these be rounded the same way.
        """
        with torch.no_grad():
            for name in self.weights:
                if name in exact:
                    noise = torch.rand(self.parameters[name].shape, generator=self.generator) - 0.5
                    self.parameters[name] += (self.sizes[name] * noise).to(self.parameters[name])

    def taught(self, inputs: Any) -> Tensor:
        """The teacher's outputs."""
        with torch.no_grad():
            return self.context.predict(self.teacher, cloned(inputs)).float()

    def output(self, inputs: Any, values: Mapping[str, Tensor] | None = None) -> Tensor:
        """The student's outputs, with its latent parameters or with others."""
        named = {f"model.{name}": tensor for name, tensor in (values or self.parameters).items()}
        found: Tensor = torch.func.functional_call(self.called, named, (cloned(inputs),))
        return found.float()

    def batches(self) -> Iterator[Any]:
        """Training inputs, moved and mirrored at random, without end."""
        for inputs in self.endless:
            inputs = on_device(inputs, self.context.device, torch.float32)
            yield moved(inputs, self.options.shift, self.flipped, self.generator) if self.shifted else inputs

    def distortion(self) -> float:
        """The mean loss of the quantised student, without its rate."""
        with torch.no_grad():
            values, _ = self._quantised(self._sizes())
            losses = []
            for inputs in itertools.islice(self.context.calibration(), MEASURED):
                given = on_device(inputs, self.context.device, torch.float32)
                losses.append(float(self.distance(self.output(given, values), self.taught(given))))
        return sum(losses) / len(losses)

    def snapshot(self) -> Quantised:
        """The quantised student as it is coded: steps on the grid."""
        with torch.no_grad():
            sizes = {name: allowed(float(log.exp()), self.sizes[name]) for name, log in self.logs.items()}
            tensors = {name: torch.tensor(size, device=self.context.device) for name, size in sizes.items()}
            values, bits = self._quantised(tensors)
            values = {name: tensor.detach().clone() for name, tensor in values.items()}
            return Quantised(values, {**sizes, **self.vectors}, float(bits) / self.count, math.nan)

    def round(
        self, weight: float, share: float, calm: float, label: str, saved: Progress | None, save: Save
    ) -> tuple[Quantised, float]:
        """Train with one lambda.

        Args:
            weight: lambda: of bits per weight, in the loss.
            share: of all seconds or steps.
            calm: of all learning rates.
            label: for the progress bar.
            saved: where a killed command left this round.
            save: told now and then where it is.

        Returns:
            What was reached, and the seconds that it took.
        """
        if saved:
            self.restore(saved.tensors)
        options, optimiser = self.options, self._optimiser()
        first, spent = self._resume(optimiser, saved) if saved else (0, 0.0)
        began = told = time.monotonic()
        limit = max(1, round(options.steps * share)) if options.steps else None
        frozen: dict[str, Tensor] | None = None
        losses: list[float] = []
        with tqdm(total=100, desc=label, unit="%", disable=None, leave=False) as bar:
            for number, inputs in enumerate(self.batches(), first):
                now = time.monotonic()
                done = number / limit if limit else (spent + now - began) / (options.seconds * share)
                if done >= 1:
                    break
                if now - told > SAVED:
                    told = now
                    save(Progress(self._state(optimiser), number, spent + now - began))
                if done >= FROZEN[self.distance.kind] and frozen is None:
                    frozen = self._frozen()
                for group in optimiser.param_groups:
                    group["lr"] = calm * self.learning_rate * RATES[group["name"]] * schedule(done)
                losses.append(self._step(optimiser, inputs, weight, frozen))
                bar.update(int(100 * done) - bar.n)
        last = losses[-max(1, len(losses) // 10) :]
        loss = sum(last) / len(last) if last else self.distortion()
        return dataclasses.replace(self.snapshot(), loss=loss), spent + time.monotonic() - began

    def latent(self) -> dict[str, Tensor]:
        """What is trained, by a name for a checkpoint."""
        return {
            **{f"latent.{name}": tensor for name, tensor in self.parameters.items()},
            **{f"log.{name}": tensor for name, tensor in self.logs.items()},
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `latent` gave."""
        self.set_steps(dict.fromkeys(self.weights, 1.0))
        with torch.no_grad():
            for name, tensor in self.latent().items():
                tensor.copy_(tensors[name])

    def _optimiser(self) -> torch.optim.Adam:
        groups = {
            "weights": [self.parameters[name] for name in self.weights],
            "vectors": [self.parameters[name] for name in self.vectors],
            "steps": list(self.logs.values()),
        }
        return torch.optim.Adam(
            [{"params": tensors, "name": name} for name, tensors in groups.items()], betas=(0.9, 0.99)
        )

    def _state(self, optimiser: torch.optim.Adam) -> dict[str, Tensor]:
        """All that training goes on from."""
        moments = {
            f"adam.{index}.{name}": value
            for index, state in optimiser.state_dict()["state"].items()
            for name, value in state.items()
        }
        return {**self.latent(), **moments, "generator": self.generator.get_state()}

    def _resume(self, optimiser: torch.optim.Adam, saved: Progress) -> tuple[int, float]:
        """Take up the optimiser's and the generator's part of `_state`; the steps and the seconds that were done."""
        found: dict[int, dict[str, Tensor]] = {}
        for name, value in saved.tensors.items():
            if name.startswith("adam."):
                _, index, part = name.split(".", 2)
                found.setdefault(int(index), {})[part] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": found})
        self.generator.set_state(saved.tensors["generator"])
        return saved.steps, saved.seconds

    def _step(
        self, optimiser: torch.optim.Optimizer, inputs: Any, weight: float, frozen: Mapping[str, Tensor] | None
    ) -> float:
        """One step of training; the distortion before it."""
        kind = torch.device(self.context.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.bfloat16):
            target = self.taught(inputs)
            values, bits = self._quantised(frozen or self._sizes())
            output = self.output(inputs, values)
        distance = self.distance(output, target)
        if not distance.requires_grad:
            raise TrackerError("distill cannot train this model: its outputs do not depend on its parameters")
        loss = distance + weight * bits / self.count
        optimiser.zero_grad()
        if math.isfinite(float(loss.detach())):
            loss.backward()
            optimiser.step()
        return float(distance.detach())

    def _sizes(self) -> dict[str, Tensor]:
        return {name: log.exp() for name, log in self.logs.items()}

    def _frozen(self) -> dict[str, Tensor]:
        """Steps on the grid, on which they stay."""
        for name, log in self.logs.items():
            log.data.fill_(math.log(allowed(float(log.detach().exp()), self.sizes[name])))
        return {name: log.detach().exp() for name, log in self.logs.items()}

    def _quantised(self, sizes: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """All parameters after quantisation, and the bits of the weights."""
        values = dict(self.parameters)
        bits = torch.zeros((), device=self.context.device)
        for name in self.weights:
            values[name], integers = quantised(self.parameters[name], sizes[name])
            bits = bits + bits_of(self.parameters[name] / sizes[name], code_lengths(integers))
        for name, size in self.vectors.items():
            values[name] = quantised(self.parameters[name], size)[0]
        return values, bits

    def _agrees_mirrored(self, inputs: Tensor, output: Tensor) -> bool:
        """Whether the anchor says of mirrored inputs what it says of the inputs: then they are natural ones."""
        agreement = self.context.agreement
        return agreement is not None and agreement(self.taught(inputs.flip(3)), output) >= FLIPPED

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from (inputs for inputs, _ in self.inputs.epoch())


def schedule(done: float) -> float:
    """The learning rate over a round, as a share: up at once, then down as a cosine."""
    return min(1.0, (done + 1e-3) / WARM) * max(0.5 * (1 + math.cos(math.pi * done)), 0.01)
