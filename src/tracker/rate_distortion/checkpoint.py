"""Long work that can be killed: its state in the cache, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tracker.cache import cache_folder


class Checkpoint:
    """Tensors and facts under a key; there is one for each piece of work."""

    def __init__(self, stage: str, *parts: Any) -> None:
        """Nothing is read or written yet.

        Args:
            stage: whose work it is.
            parts: all that the work depends on.
        """
        key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
        folder = cache_folder() / "unfinished"
        folder.mkdir(exist_ok=True)
        self.path = folder / f"{stage}-{key}.safetensors"

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace what was saved before."""
        from safetensors.torch import save_file

        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        try:
            own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
            save_file(own, partial, metadata={"facts": json.dumps(facts)})
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved; None where there is nothing that can be read."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["facts"])
                return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def clear(self) -> None:
        """The work is done."""
        self.path.unlink(missing_ok=True)
