"""What is trained of a network that will be quantised: weights, norms and biases, and the weights' step sizes.

All weights are one vector, and all norms and biases another: a network has a hundred small tensors, and work on each of
them would take longer than the work itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from tracker.rate_distortion.code_length import bits_of, code_lengths, quantised
from tracker.rate_distortion.quantised import Quantised, allowed, on_grid

RECENT = 20  # steps, over which values are averaged
NEXT = 0.12  # a bit more than half of the largest distance between step sizes on the grid, as a logarithm


class Latent:
    """The leaves of training.

    Attributes:
        weights: of all weight tensors, shape (weights,).
        vectors: norms and biases, shape (values,); their step sizes stay.
        logs: logarithms of the weights' step sizes, shape (weight tensors,).
        means: of weights and vectors over recent steps, by name; empty until there are such.
        averaged: steps that means are of.
    """

    def __init__(self, parameters: Mapping[str, Tensor], sizes: Mapping[str, float], fine: Mapping[str, float]) -> None:
        """Take the values as they are.

        Args:
            parameters: of the network; those that have no step size stay constant.
            sizes: step sizes of the weights, by name.
            fine: those of norms and biases.
        """
        self.given, self.fine = dict(sizes), dict(fine)
        self.constant = {name: p.detach() for name, p in parameters.items() if name not in sizes and name not in fine}
        self.shapes = {name: parameters[name].shape for name in (*sizes, *fine)}
        self.device = next(iter(parameters.values())).device
        self.weights, self.counts = self._joined(parameters, list(sizes))
        self.vectors, self.vector_counts = self._joined(parameters, list(fine))
        self.rows = self._each(torch.arange(len(sizes), device=self.device), self.counts)
        self.coarsen(1.0)
        self.logs = torch.zeros(len(sizes), device=self.device, requires_grad=True)
        self.lengths: Tensor | None = None
        self.means: dict[str, Tensor] = {}
        self.averaged = 0
        self.set_steps(sizes)

    @property
    def count(self) -> int:
        """Of weights."""
        return max(len(self.weights), 1)

    def magnitude(self) -> float:
        """The root mean square of the weights that are not zero."""
        found = self.weights.detach()
        count = int(found.count_nonzero())
        return float((found.square().sum() / count).sqrt()) if count else 0.0

    def leaves(self) -> dict[str, Tensor]:
        """By name, what an optimiser changes."""
        return {"weights": self.weights, "vectors": self.vectors, "steps": self.logs}

    def chosen(self, names: Collection[str]) -> Tensor:
        """Which of the weights are those of some tensors: bool, shape (weights,)."""
        own = torch.tensor([name in names for name in self.given], dtype=torch.bool, device=self.device)
        return self._each(own, self.counts).bool().clone()

    def coarsen(self, times: float) -> None:
        """Larger step sizes of norms and biases."""
        if times != 1:
            self.fine = {name: on_grid(times * size) for name, size in self.fine.items()}
        self.fine_each = self._each(torch.tensor(list(self.fine.values()), device=self.device), self.vector_counts)

    def set_values(self, parameters: Mapping[str, Tensor]) -> None:
        """Values of the weights, the norms and the biases."""
        with torch.no_grad():
            for leaf, names in ((self.weights, self.given), (self.vectors, self.fine)):
                leaf.copy_(self._joined(parameters, list(names))[0])
        self.lengths = None

    def set_steps(self, sizes: Mapping[str, float]) -> None:
        """Step sizes of the weights."""
        with torch.no_grad():
            self.logs.copy_(torch.tensor([math.log(sizes[name]) for name in self.given]))
        self.lengths = None

    def sizes(self) -> Tensor:
        """Step sizes of the weights, shape (weight tensors,); gradients pass until they are frozen."""
        return self.logs.exp()

    def named_sizes(self) -> dict[str, float]:
        """Step sizes of the weights as they are coded: those that were given, or on the grid that NNC has."""
        found = self.logs.detach().exp().tolist()
        return {name: allowed(size, given) for (name, given), size in zip(self.given.items(), found, strict=True)}

    @property
    def frozen(self) -> bool:
        """Whether step sizes stay as they are."""
        return not self.logs.requires_grad

    def freeze(self) -> None:
        """Step sizes as they are coded, on which they stay from now on."""
        self.set_steps(self.named_sizes())
        self.logs.requires_grad_(False)

    def begin(self, learned: bool, finer: float) -> None:
        """Step sizes for a round of training, which learns them or not, after they have become finer."""
        if finer != 1:
            self.set_steps(self._finer(finer))
        self.logs.requires_grad_(learned)
        self.means, self.averaged = {}, 0

    def average(self) -> None:
        """Take the values as they are into their means."""
        self.averaged += 1
        for name, leaf in (("weights", self.weights), ("vectors", self.vectors)):
            mean = self.means.setdefault(name, leaf.detach().clone())
            mean.lerp_(leaf.detach(), 1 / min(self.averaged, RECENT))

    def settle(self) -> None:
        """Values become their means, if there are such.

        Weights between two integers go to and fro, and where they are in the end is a matter of luck (Nagel et al.
        2022, "Overcoming Oscillations in Quantization-Aware Training").
        """
        with torch.no_grad():
            for name, mean in self.means.items():
                self.leaves()[name].copy_(mean)
        self.lengths = None

    def _finer(self, finer: float) -> dict[str, float]:
        """Step sizes on the grid that are finer on the whole: what one tensor cannot be, the next one is."""
        found, owed, each = {}, 0.0, math.log(finer)
        for (name, size), count in zip(self.named_sizes().items(), self.counts, strict=True):
            wanted = each + owed / max(count, 1)
            found[name] = on_grid(size * math.exp(min(max(wanted, each - NEXT), 0.0)))
            owed += count * (each - math.log(found[name] / size))
        return found

    def refresh(self) -> None:
        """Count the integers anew: their code lengths are those of the rate from now on."""
        with torch.no_grad():
            integers = quantised(self.weights, self._each(self.sizes(), self.counts))[1]
            self.lengths = torch.stack([code_lengths(part) for part in integers.split(self.counts)])

    def quantised(self) -> tuple[dict[str, Tensor], Tensor]:
        """All parameters after quantisation, by name, and the bits of the weights."""
        values = dict(self.constant)
        bits = torch.zeros((), device=self.device)
        if len(self.weights):
            if self.lengths is None:
                self.refresh()
            assert self.lengths is not None
            each = self._each(self.sizes(), self.counts)
            values |= self._named(quantised(self.weights, each)[0], self.counts, list(self.given))
            bits = bits_of(self.weights / each, self.lengths, self.rows)
        if len(self.vectors):
            found = quantised(self.vectors, self.fine_each)[0]
            values |= self._named(found, self.vector_counts, list(self.fine))
        return values, bits

    def snapshot(self) -> Quantised:
        """The network as it is coded; its loss is not known."""
        sizes = self.named_sizes()
        with torch.no_grad():
            before = self.logs.clone()
            self.set_steps(sizes)
            values, bits = self.quantised()
            self.logs.copy_(before)
            self.lengths = None
        values = {name: tensor.detach().clone() for name, tensor in values.items()}
        return Quantised(values, {**sizes, **self.fine}, float(bits) / self.count, math.nan)

    def _joined(self, parameters: Mapping[str, Tensor], names: Sequence[str]) -> tuple[Tensor, list[int]]:
        parts = [parameters[name].detach().flatten() for name in names]
        joined = torch.cat(parts) if parts else torch.zeros(0, device=self.device)
        return joined.clone().requires_grad_(True), [part.numel() for part in parts]

    def _each(self, values: Tensor, counts: Sequence[int]) -> Tensor:
        """One value for each element of tensors, from one for each tensor."""
        # Gradients of an index would be added in any order.
        parts = [value.expand(count) for value, count in zip(values.unbind(), counts, strict=True)]
        return torch.cat(parts) if parts else torch.zeros(0, device=self.device)

    def _named(self, joined: Tensor, counts: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        parts = joined.split(list(counts))
        return {name: part.view(self.shapes[name]) for name, part in zip(names, parts, strict=True)}
