"""The receiver in Python: from a bitstream folder to a model that runs.

    from tracker.receiver import decode_model

    model = decode_model("bitstream", MyNetwork())

It needs the public architecture and the bitstream, and none of the sender's tools: what a decomposition or pruning
changed in the architecture is data in the manifest.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from tracker.bitstream.decoder import decode_bitstream
from tracker.bitstream.manifest import read_manifest
from tracker.codecs.base import Coder
from tracker.frameworks import load_framework
from tracker.structure import rebuild
from tracker.structure.base import check_kinds


def decode_model(
    folder: str | Path,
    model: Any,
    framework: str = "pytorch",
    coder: Coder | None = None,
    trusted: Collection[str] = (),
    sha256: str | None = None,
) -> Any:
    """Decode a bitstream into a model.

    Args:
        folder: with manifest.json and the files that it names.
        model: the public architecture, newly built: a torch.nn.Module or a Keras model. It is changed in place where
            the bitstream's structure says so, and all of its values are overwritten.
        framework: ``pytorch`` or ``keras``.
        coder: decodes the files; by default the class that the manifest names, if it comes from a trusted package.
        trusted: packages besides ``tracker`` whose coders and structure changes may be imported.
        sha256: the digest that is expected, where it is known from elsewhere, such as a run's tag.

    Returns:
        The decoded model in evaluation mode.

    Raises:
        TrackerError: the bitstream is damaged, another one than expected, asks for code that is not trusted, or does
            not fit the architecture.
    """
    folder, used = Path(folder), load_framework(framework)
    manifest = read_manifest(folder)
    check_kinds(manifest.structure, trusted)  # what is refused is refused before anything is imported for the rest
    # Read once more with its digest, so that the structure and the tensors are of the same bitstream.
    tensors = decode_bitstream(folder, coder, trusted, sha256 or manifest.sha256)
    changed = rebuild(model, manifest.structure, trusted)
    used.fill(changed, tensors, "the decoded tensors")
    return used.ready(changed, "cpu")
