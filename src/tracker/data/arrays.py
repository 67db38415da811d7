"""Data sets that are arrays: a safetensors file of the user's, or scikit-learn's diabetes table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from tracker.data.base import Data, Decoded, Samples, Split, arrays_digest
from tracker.errors import TrackerError

if TYPE_CHECKING:
    from torch import Tensor


def three_parts(inputs: Tensor, targets: Tensor, split: Split, seed: int) -> tuple[Tensor, Tensor]:
    """A shuffled cut into calibration (one fifth), search and report (two fifths each)."""
    import torch

    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    fifth = len(inputs) // 5
    index = {
        "calibration": order[:fifth],
        "search": order[fifth : 3 * fifth],
        "report": order[3 * fifth :],
        "all": order[fifth:],
    }[split]
    return inputs[index], targets[index]


class Arrays(Data):
    """Tensors ``inputs`` (N, ...) and ``targets`` (N, ...) in a safetensors file, shuffled by `seed` and cut in three.

    Where the file holds ``calibration.inputs``, ``search.inputs``, ``report.inputs`` and the targets of each instead,
    these are the splits.
    """

    name: str = "arrays"
    path: Path
    seed: int = Field(default=0, ge=0)

    def _arrays(self, split: Split) -> tuple[Tensor, Tensor]:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not self.path.is_file():
            raise TrackerError(f"data.path={self.path} does not exist; give a safetensors file with inputs and targets")
        try:
            tensors = load_file(self.path)
        except SafetensorError as error:
            raise TrackerError(f"data.path={self.path} is not a safetensors file ({error})") from error
        for name, inputs in tensors.items():
            targets = tensors.get(name.removesuffix("inputs") + "targets") if name.endswith("inputs") else None
            if targets is not None and (not inputs.ndim or inputs.shape[:1] != targets.shape[:1]):
                raise TrackerError(f"data.path={self.path}: {name} and its targets differ in number")
        if "inputs" in tensors and "targets" in tensors:
            return three_parts(tensors["inputs"], tensors["targets"], split, self.seed)
        if ("inputs" in tensors) != ("targets" in tensors):
            lacking = "targets" if "inputs" in tensors else "inputs"
            raise TrackerError(f"data.path={self.path} has no tensor {lacking!r}; it holds {sorted(tensors)}")
        wanted = ("search", "report") if split == "all" else (split,)
        try:
            return (
                torch.cat([tensors[f"{part}.inputs"] for part in wanted]),
                torch.cat([tensors[f"{part}.targets"] for part in wanted]),
            )
        except KeyError as error:
            raise TrackerError(f"data.path={self.path} has no tensor {error}; it holds {sorted(tensors)}") from error

    def samples(self, split: Split) -> Samples:
        """(input, target) tensors without the first dimension."""
        inputs, targets = self._arrays(split)
        return Decoded(range(len(inputs)), lambda i: (inputs[i], targets[i]))

    def digest(self, split: Split) -> str:
        """Over inputs and targets."""
        return arrays_digest(*self._arrays(split))


class Diabetes(Data):
    """Scikit-learn's diabetes table: 442 patients, 10 standardised features, disease progression as target."""

    name: str = "diabetes"
    seed: int = Field(default=0, ge=0)

    def _arrays(self, split: Split) -> tuple[Tensor, Tensor]:
        import torch
        from sklearn.datasets import load_diabetes

        table = load_diabetes()
        inputs = torch.from_numpy(table.data).float()
        targets = torch.from_numpy(table.target).float().unsqueeze(1)
        return three_parts(inputs, targets, split, self.seed)

    def samples(self, split: Split) -> Samples:
        """(features (10,), target (1,))."""
        inputs, targets = self._arrays(split)
        return Decoded(range(len(inputs)), lambda i: (inputs[i], targets[i]))

    def digest(self, split: Split) -> str:
        """Over features and targets."""
        return arrays_digest(*self._arrays(split))
