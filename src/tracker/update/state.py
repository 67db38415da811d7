"""What a receiver has after some updates, in memory and in a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tracker.bitstream.state import own_memory
from tracker.errors import TrackerError
from tracker.models import weights_digest
from tracker.structure import Edit

FILE = "state.safetensors"
FORMAT = "tracker-state-1"
TENSOR, CARRIED = "tensor:", "carried:"  # before names in the file
SHORT = 32  # hexadecimal digits of a state's digest that an update names


class Missed(TrackerError):
    """An update applies to another state than the receiver's: one before it was lost, and a whole model is needed."""


@dataclass(frozen=True)
class State:
    """A decoded model, and what the next update may refer to.

    Attributes:
        tensors: the model's, by name.
        structure: how its architecture differs from the public one.
        carried: what the coder left for the next difference, by its own names.
        update: digest of the bitstream that led here.
    """

    tensors: Mapping[str, Tensor]
    structure: list[Edit] = field(default_factory=list)
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    update: str = ""

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over all that the next update depends on."""
        return hashlib.sha256(f"{weights_digest(self._named())}{self._edits()}".encode()).hexdigest()

    def _named(self) -> dict[str, Tensor]:
        """All tensors, by their names in the file."""
        named = {f"{TENSOR}{name}": tensor for name, tensor in self.tensors.items()}
        return named | {f"{CARRIED}{name}": tensor for name, tensor in self.carried.items()}

    def _edits(self) -> str:
        return json.dumps([[edit.kind, edit.layers] for edit in self.structure], sort_keys=True)

    def save(self, folder: Path) -> None:
        """Write it whole or not at all: a receiver that is killed has the state before or this one.

        Raises:
            TrackerError: it cannot be written.
        """
        partial = folder / f"{FILE}.{os.getpid()}.partial"
        about = {"format": FORMAT, "digest": self.digest, "structure": self._edits(), "update": self.update}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(own_memory(self._named()), partial, about)
            with partial.open("rb") as written:
                os.fsync(written.fileno())  # or the name could be on the disk before the content
            partial.replace(folder / FILE)
        except (OSError, SafetensorError) as error:
            raise TrackerError(
                f"{folder / FILE} cannot be written ({error}); make space, and apply it again"
            ) from error
        finally:
            partial.unlink(missing_ok=True)


def load(folder: Path) -> State | None:
    """The state in a folder; None where there is none yet.

    Raises:
        TrackerError: it is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            about = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (it is no mapping)
        edits = [Edit(kind, layers) for kind, layers in json.loads(about.get("structure", ""))]
        own, carried = (
            {n.removeprefix(p): t for n, t in tensors.items() if n.startswith(p)} for p in (TENSOR, CARRIED)
        )
        state = State(own, edits, carried, about.get("update", ""))
        known = about.get("format") == FORMAT and about.get("digest") == state.digest
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise TrackerError(f"{path} is damaged ({error}); remove it, and have a whole model sent") from error
    if not known:
        raise TrackerError(f"{path} is damaged, or of another version; remove it, and have a whole model sent")
    return state
