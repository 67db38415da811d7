"""How a round of training through a quantiser goes."""

from __future__ import annotations

from typing import NamedTuple


class Plan(NamedTuple):
    """How a round is trained.

    Attributes:
        weight: lambda over the distortion at the start.
        bold: step sizes are learned, at the full learning rate; else they stay, and what was learned is mended.
        finer: by this, step sizes become smaller before it.
    """

    weight: float
    bold: bool
    finer: float = 1.0
