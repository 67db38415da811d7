"""The training behind the stage `distill`: distortion + lambda * rate, through a uniform quantiser."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tracker.codecs.base import Context
from tracker.codecs.finetune_inputs import Inputs, side
from tracker.errors import TrackerError
from tracker.nested import cloned, on_device
from tracker.rate_distortion.distortion import Distortion
from tracker.rate_distortion.embeddings import embeddings
from tracker.rate_distortion.latent import Latent
from tracker.rate_distortion.moved import moved
from tracker.rate_distortion.plan import Plan
from tracker.rate_distortion.quantised import Quantised, fine_step
from tracker.rate_distortion.start import Manner, manner

if TYPE_CHECKING:
    from tracker.codecs.distill import Distill

SQUARES = 4  # in a batch
CALMER = 0.3  # learning rate of rounds that mend, over that of others
WARM = 0.03  # the share of a round in which the learning rate rises
RATES = {"weights": 1.0, "vectors": 2.0, "steps": 10.0}  # learning rates, over that of weights of the usual size
AHEAD = 0.05  # of a round
REFRESHED = 8  # steps after which integers are counted anew for their code lengths, which hardly change
SAVED = 30.0  # seconds between checkpoints
MEASURED = 8  # batches on which distortion is told
SOFTENED = 4.0  # temperature, where the likeliest class counts: what the others say of it is worth learning as well
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
    """One student and what is trained of it; in rounds, each of which goes on from the last."""

    def __init__(
        self, options: Distill, student: nn.Module, teacher: nn.Module, context: Context, way: Manner | None = None
    ) -> None:
        """Nothing is trained yet.

        Args:
            options: of the stage.
            student: the network, in which nothing is changed.
            teacher: the anchor.
            context: of the run.
            way: how bold training is; None for what fits.
        """
        self.options, self.student, self.teacher, self.context = options, student, teacher, context
        self.called = Called(student, context)
        self.latent = self._latent()
        self.unseen = self.latent.chosen(embeddings(student))
        groups = [{"params": [leaf], "name": name} for name, leaf in self.latent.leaves().items()]
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.generator = torch.Generator().manual_seed(context.seed)
        first = on_device(next(iter(context.training())), context.device, torch.float32)
        crop = side(context.predict, teacher, first) if options.crop == "auto" else options.crop
        output = self.taught(first)
        auto = SOFTENED if context.by_choice else 1.0
        temperature = auto if options.temperature == "auto" else options.temperature
        self.distance = Distortion.fitting(context, output, options.loss, temperature)
        rate = options.learning_rate
        self.manner = way or manner(self.distance.kind, self.latent, context)
        size = options.batch_size if options.batch_size != "auto" else SQUARES if crop else self.manner.samples
        self.inputs = Inputs(context, size, crop, self.generator)
        self.latent.coarsen(self.manner.vectors)
        self.learning_rate = self.manner.learning_rate if rate == "auto" else rate
        usual = self.manner.usual if rate == "auto" else None
        self.rates = {**RATES, "weights": (self.latent.magnitude() or usual) / usual} if usual else RATES
        self.shifted = isinstance(first, Tensor) and first.ndim == 4 and not crop and self.distance.kind == "kl"
        self.flipped = self.shifted and self._agrees_mirrored(first, output)
        self.epoch, self.drawn = self.generator.get_state(), 0  # the generator before this epoch, and batches of it
        self.endless = self._endless()
        self.bfloat16 = options.precision == "bfloat16"

    def _latent(self) -> Latent:
        """What is trained, with the step sizes of the stage before, or of the coder, and fine ones for vectors."""
        context, parameters = self.context, dict(self.student.named_parameters())
        floats = {name: tensor for name, tensor in parameters.items() if tensor.is_floating_point()}
        weights = [name for name, tensor in floats.items() if tensor.ndim > 1 and tensor.numel()]
        steps = {**(context.coder.step_sizes(context.state(self.student)) if context.coder else {}), **context.steps}
        sizes = {name: steps.get(name) or fine_step(floats[name]) for name in weights}
        fine = {name: context.steps.get(name) or fine_step(floats[name]) for name in floats if name not in sizes}
        return Latent(parameters, sizes, fine)

    def taught(self, inputs: Any) -> Tensor:
        """The teacher's outputs."""
        with torch.no_grad():
            return self.context.predict(self.teacher, cloned(inputs)).float()

    def output(self, inputs: Any, values: Mapping[str, Tensor]) -> Tensor:
        """The student's outputs with other parameters."""
        named = {f"model.{name}": tensor for name, tensor in values.items()}
        found: Tensor = torch.func.functional_call(self.called, named, (cloned(inputs),))
        return found.float()

    def batches(self) -> Iterator[Any]:
        """Training inputs, moved and mirrored at random, without end."""
        for inputs in self.endless:
            inputs = on_device(inputs, self.context.device, torch.float32)
            yield moved(inputs, self.options.shift, self.flipped, self.generator) if self.shifted else inputs

    def distortion(self, values: Mapping[str, Tensor]) -> float:
        """The mean loss of the student with some parameters, without their rate."""
        return self.distances(values, self.distance)[0]

    def distances(self, values: Mapping[str, Tensor], *kinds: Distortion) -> list[float]:
        """Mean distances of the student with some parameters from the teacher, one for each kind."""
        with torch.no_grad():
            found = []
            for inputs in itertools.islice(self.context.calibration(), MEASURED):
                given = on_device(inputs, self.context.device, torch.float32)
                pair = self.output(given, values), self.taught(given)
                found.append([float(kind(*pair)) for kind in kinds])
        return [sum(losses) / len(found) for losses in zip(*found, strict=True)]

    def round(
        self, plan: Plan, distortion: float, share: float, label: str, saved: Progress | None, save: Save
    ) -> tuple[Quantised, float]:
        """Train with one lambda.

        Args:
            plan: how.
            distortion: at the start, of which lambda is a multiple.
            share: of all seconds or steps.
            label: for the progress bar.
            saved: where a killed command left this round, which is restored already.
            save: told now and then where it is.

        Returns:
            What was reached, and the seconds that it took.
        """
        if not saved:
            self.latent.begin(plan.bold, plan.finer)
        first, spent = (saved.steps, saved.seconds) if saved else (0, 0.0)
        rate = self.learning_rate * (1.0 if plan.bold else CALMER)
        began = told = time.monotonic()
        losses: list[float] = []
        with tqdm(total=100, desc=label, unit="%", disable=None, leave=False) as bar:
            for number, inputs in enumerate(self.batches(), first):
                now = time.monotonic()
                done = self._done(number, spent + now - began, share)
                if done >= 1:
                    break
                if done >= self.manner.frozen and not self.latent.frozen:
                    self.latent.freeze()
                for group in self.optimiser.param_groups:
                    group["lr"] = rate * self.rates[group["name"]] * schedule(done)
                if number % REFRESHED == 0:
                    self.latent.refresh()
                losses.append(self._step(inputs, plan.weight * distortion))
                if self.latent.frozen:
                    self.latent.average()
                bar.update(int(100 * done) - bar.n)
                if now - told > SAVED:
                    told = now
                    save(Progress(self.state(), number + 1, spent + time.monotonic() - began))
        self.latent.settle()
        last = losses[-max(1, len(losses) // 10) :]
        loss = sum(last) / len(last) if last else self.distortion(self.latent.quantised()[0])
        return dataclasses.replace(self.latent.snapshot(), loss=loss), spent + time.monotonic() - began

    def _done(self, steps: int, seconds: float, share: float) -> float:
        """The share of a round that is done, by what ends first: its steps or its seconds.

        Seconds count from where they are ahead of steps for sure, or no two runs would be the same.
        """
        by_time = seconds / (self.options.seconds * share) if self.options.seconds else 0.0
        if self.options.steps is None or by_time >= 1:
            return by_time
        return max(steps / max(1, round(self.options.steps * share)), by_time - AHEAD)

    def state(self) -> dict[str, Tensor]:
        """All that training goes on from, by a name for a checkpoint."""
        moments = {
            f"adam.{index}.{name}": value
            for index, state in self.optimiser.state_dict()["state"].items()
            for name, value in state.items()
        }
        leaves = {f"latent.{name}": leaf.detach() for name, leaf in self.latent.leaves().items()}
        means = {f"mean.{name}": mean.clone() for name, mean in self.latent.means.items()}
        return {
            **leaves,
            **moments,
            **means,
            "averaged": torch.tensor(self.latent.averaged),
            "frozen": torch.tensor(self.latent.frozen),
            "unseen": self.unseen.clone(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch.clone(),
            "drawn": torch.tensor(self.drawn),
            **({} if self.latent.lengths is None else {"lengths": self.latent.lengths.clone()}),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        with torch.no_grad():
            for name, leaf in self.latent.leaves().items():
                leaf.copy_(tensors[f"latent.{name}"])
        lengths = tensors.get("lengths")
        self.latent.lengths = None if lengths is None else lengths.to(self.context.device, copy=True)
        self.latent.averaged = int(tensors["averaged"])
        self.latent.means = {
            name.removeprefix("mean."): tensor.to(self.context.device, copy=True)
            for name, tensor in tensors.items()
            if name.startswith("mean.")
        }
        self.latent.logs.requires_grad_(not tensors["frozen"])
        self.unseen.copy_(tensors["unseen"])
        found: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, part = name.split(".", 2)
                found.setdefault(int(index), {})[part] = value.clone()
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": found})
        self.generator.set_state(tensors["epoch"])
        self.endless = self._endless()
        for _ in range(int(tensors["drawn"])):
            next(self.endless)
        self.generator.set_state(tensors["generator"])

    def _step(self, inputs: Any, weight: float) -> float:
        """One step of training; the distortion before it."""
        kind = torch.device(self.context.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.bfloat16):
            target = self.taught(inputs)
            values, bits = self.latent.quantised()
            output = self.output(inputs, values)
        distance = self.distance(output, target)
        if not distance.requires_grad:
            raise TrackerError("distill cannot train this model: its outputs do not depend on its parameters")
        rate = weight * bits / self.latent.count
        self.optimiser.zero_grad()
        if math.isfinite(float((distance + rate).detach())):
            self._pass_back(distance, rate)
            self.optimiser.step()
        return float(distance.detach())

    def _pass_back(self, distance: Tensor, rate: Tensor) -> None:
        """Gradients of the loss, but none for embeddings that no input has had: they would become zero to save bits."""
        leaf = self.latent.weights
        if not self.unseen.any():
            (distance + rate).backward()
            return
        distance.backward(retain_graph=True)
        assert leaf.grad is not None
        self.unseen &= leaf.grad == 0
        rate.backward()
        leaf.grad.masked_fill_(self.unseen, 0.0)

    def _agrees_mirrored(self, inputs: Tensor, output: Tensor) -> bool:
        """Whether the anchor says of mirrored inputs what it says of the inputs: then they are natural ones."""
        agreement = self.context.agreement
        return agreement is not None and agreement(self.taught(inputs.flip(3)), output) >= FLIPPED

    def _endless(self) -> Iterator[Any]:
        while True:
            self.epoch, self.drawn = self.generator.get_state(), 0
            for inputs, _ in self.inputs.epoch():
                self.drawn += 1
                yield inputs


def schedule(done: float) -> float:
    """The learning rate over a round, as a share: up at once, then down as a cosine."""
    return min(1.0, (done + 1e-3) / WARM) * max(0.5 * (1 + math.cos(math.pi * done)), 0.01)
