"""From a bitstream folder to tensors, trusting nothing in it before its digest was verified."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Iterator
from pathlib import Path

from torch import Tensor

from tracker.bitstream.manifest import Manifest, read_manifest
from tracker.bitstream.state import SIDE, restore
from tracker.codecs.base import Coder
from tracker.errors import TrackerError
from tracker.trust import CODERS, SHOWN, given, trusted_object


def decode_bitstream(
    folder: Path, coder: Coder | None = None, trusted: Collection[str] = (), sha256: str | None = None
) -> dict[str, Tensor]:
    """The state dict in a bitstream.

    Args:
        folder: with manifest.json and the files that it names.
        coder: decodes the files; by default the class that the manifest names, if it comes from a trusted package.
        trusted: packages besides ``tracker`` whose coders may be imported.
        sha256: the digest that is expected, where it is known from elsewhere.

    Raises:
        TrackerError: the bitstream is damaged, another one than expected, or asks for a coder that is not trusted.
    """
    manifest = read_manifest(folder)
    if sha256 is not None and manifest.sha256 != sha256:
        raise TrackerError(f"{folder} holds the bitstream {manifest.sha256}, not {sha256}: refused")
    coder = coder or trusted_coder(manifest, trusted)
    if manifest.follows is not None:
        raise TrackerError(f"{folder} is no whole model but an update of one: apply it to a receiver's state")
    coded = set(manifest.files) - {SIDE}
    with failing(folder, coder):
        # A state dict without any tensor for a coder (all integers, say) has no coder's file to read.
        decoded = coder.decode(folder) if coded else {}
        if coded and not decoded:
            raise TrackerError(f"{folder} is damaged: there is no tensor in {min(coded)[:SHOWN]}; get it again")
        return restore(folder, decoded)


@contextlib.contextmanager
def failing(folder: Path, coder: Coder) -> Iterator[None]:
    """Whatever a coder's decoder raises, in one line."""
    try:
        yield
    except TrackerError:
        raise
    except (Exception, SystemExit) as error:  # whatever a decoder makes of a stream that someone forged
        reason = f"{type(error).__name__}: {error}"
        raise TrackerError(
            f"{folder} cannot be decoded by {type(coder).__name__} ({reason[:200]}); get it again, or mend the coder"
        ) from error


def trusted_coder(manifest: Manifest, trusted: Collection[str] = ()) -> Coder:
    """The coder that a manifest names, imported only from ``tracker.codecs`` or a trusted package.

    Raises:
        TrackerError: it comes from elsewhere, or is no coder.
    """
    path = manifest.coder
    advice = f"name it by --trust {path.split('.')[0][:SHOWN]} (scenario.trust of scenario=receive)"
    found = trusted_object(path, (CODERS, *given(trusted)), "coder", advice)
    if not isinstance(found, type) or not issubclass(found, Coder) or inspect.isabstract(found):
        raise TrackerError(f"the bitstream asks for {path[:SHOWN]}, which is not a coder: refused")
    try:
        return found()
    except (TypeError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise TrackerError(
            f"the bitstream asks for {path[:SHOWN]}, which cannot be built without options: refused"
        ) from error
