"""What Keras's spatial and weight SVD have in common: which layers they are for, and how pairs take their place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from tracker.errors import TrackerError
from tracker.structure.base import count


class KerasPair(ABC):
    """A way to put two layers in the place of one."""

    @abstractmethod
    def kinds(self) -> tuple[type, ...]:
        """The layers that it is for."""

    @abstractmethod
    def largest_rank(self, layer: Any) -> int:
        """The rank at which the pair computes the same."""

    @abstractmethod
    def split(self, layer: Any, rank: int, name: str) -> tuple[Any, Any]:
        """The two layers, named after the one."""

    def reason(self, layer: Any) -> str:
        """Why a layer cannot be split; empty where it can be."""
        if type(layer) not in self.kinds():
            return f"{type(layer).__name__} layers are left alone by it"
        if getattr(layer, "groups", 1) != 1:
            return "grouped convolutions are left alone by it"
        if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
            return "it has LoRA or quantised weights"
        return ""

    def rebuild(self, model: Any, layers: dict[str, Any]) -> Any:
        """Replace layers by pairs of them, their weights not yet filled in.

        Args:
            model: a graph of layers; not changed.
            layers: ranks by layer name.

        Returns:
            The changed model.

        Raises:
            TrackerError: a name is no such layer, or a rank is none that it can have.
        """
        from tracker.frameworks.keras import checked
        from tracker.frameworks.keras_graph import rebuilt, replaceable

        known = replaceable(checked(model))
        pairs = {}
        for name, rank in layers.items():
            layer = known.get(name)
            reason = self.reason(layer) if layer is not None else "there is no such layer"
            if reason:
                raise TrackerError(
                    f"the bitstream's structure does not fit the architecture: {name[:80]!r}: {reason}; is this the "
                    "anchor that it was made of?"
                )
            rank = count(rank, name, self.largest_rank(layer))
            pairs[name] = self.split(layer, rank, name.rpartition("/")[2])
        return rebuilt(model, pairs)
