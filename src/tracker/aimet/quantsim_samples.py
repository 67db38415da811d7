"""What AIMET's optimisations see: calibration inputs that can be stacked, squares of them where images are large."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tracker.aimet.base import Prepared
from tracker.aimet.quantsim_optimise import forward
from tracker.codecs.base import Context
from tracker.codecs.finetune_inputs import random_square, side, square_count
from tracker.errors import TrackerError

if TYPE_CHECKING:
    from tracker.codecs.quantsim import QuantSim

Batch = tuple[Tensor, ...]
PLACES = 2**20  # of all squares together: AIMET keeps what each layer gets and gives for them
TOGETHER = 16  # squares, at most, in a batch


def samples(stage: QuantSim, prepared: Prepared, context: Context) -> list[Batch]:
    """Batches of one shape, as positional arguments.

    Each iteration of AdaRound runs a layer on 32 samples. Where these are whole photographs, and a layer has as many
    outputs as they have pixels, it takes seconds, and there are thousands for each layer.

    Raises:
        TrackerError: squares are asked for of what is no image.
    """
    given = [positional(inputs) for inputs in itertools.islice(context.calibration(), stage.calibration_batches)]
    crop = automatic(prepared.model, given[0], context.device) if stage.crop == "auto" else stage.crop
    return alike(given) if crop is None else squares(given, crop, torch.Generator().manual_seed(context.seed))


def positional(inputs: Any) -> Batch:
    """A batch as AIMET gives it to the model."""
    if isinstance(inputs, dict):
        return tuple(inputs.values())
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


def alike(given: list[Batch]) -> list[Batch]:
    """Those batches that have the most frequent shapes: AIMET stacks what its optimisations get.

    The last batch of a split may be smaller than the others, and images may differ in size.
    """
    shapes = [tuple(tensor.shape for tensor in batch) for batch in given]
    ((most, _),) = Counter(shapes).most_common(1)
    return [batch for batch, shape in zip(given, shapes, strict=True) if shape == most]


def automatic(model: nn.Module, first: Batch, device: str) -> int | None:
    """The side of squares that do in place of whole images, if any do."""

    def output(network: nn.Module, inputs: Tensor) -> Tensor:
        found = forward(network, (inputs,))
        return found if isinstance(found, Tensor) else torch.zeros(())  # several outputs: not those of an image

    return side(output, model, first[0].to(device)) if len(first) == 1 else None


def squares(given: list[Batch], crop: int, generator: torch.Generator) -> list[Batch]:
    """Random squares of images, as many as cover them, or as `PLACES` allows.

    Args:
        given: batches of images, each one tensor (N, channels, height, width).
        crop: side of the squares, as far as images are that large.
        generator: of where they are.

    Raises:
        TrackerError: those are no images.
    """
    found: list[Batch] = []
    for batch in given:
        if len(batch) != 1 or batch[0].ndim != 4:
            raise TrackerError(
                "codec.quantsim.crop is for models whose input is one tensor (batch, channels, height, width); set it "
                "to null"
            )
        found += [(random_square(batch[0], crop, generator),) for _ in range(square_count(batch[0], crop))]
    found = alike(found)
    size = found[0][0][:, 0].numel()
    chosen = torch.randperm(len(found), generator=generator)[: max(PLACES // size, 1)].tolist()
    parts = [found[index][0] for index in chosen]
    together = min(TOGETHER, len(parts))
    return [(torch.cat(parts[at : at + together]),) for at in range(0, len(parts) - together + 1, together)]
