"""An update's arithmetic, the same on both sides: what is sent, and what a receiver makes of it.

What an update does not name stays as it is. Of a difference, the tensors that the coder coded are added to those that
the receiver has, in float32, so that errors of updates do not pile up: the sender takes the next difference to what the
receiver has then, not to the checkpoint before. All other tensors, and those of another shape, take the place of what
is there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from tracker.bitstream.decoder import decode_bitstream, failing, trusted_coder
from tracker.bitstream.manifest import Follows, Manifest, read_manifest, write_manifest
from tracker.bitstream.state import SIDE, aliases, coded_part, read_side, write_side
from tracker.codecs.base import Coder, Context
from tracker.codecs.chain import Codec
from tracker.codecs.records import TensorRecord
from tracker.structure import Edit
from tracker.structure.base import check_kinds
from tracker.update.modes import Mode, same
from tracker.update.state import SHORT, Missed, State


def encode_update(
    codec: Codec,
    tensors: Mapping[str, Tensor],
    mode: Mode,
    state: State,
    before: Mapping[str, Tensor],
    folder: Path,
    context: Context,
    structure: Sequence[Edit] = (),
) -> tuple[Manifest, list[TensorRecord]]:
    """Write what turns a receiver's state into a checkpoint, or nearly so.

    Args:
        codec: a coder alone.
        tensors: the checkpoint's.
        mode: how; not ``whole``.
        state: the receiver's.
        before: the checkpoint before, which the state is nearly.
        folder: empty.
        context: what else the sender has.
        structure: how the checkpoint's architecture differs from the state's.

    Raises:
        TrackerError: a tensor cannot be coded.
    """
    coded = coded_part(tensors)
    given = mode.given(coded, state, before)
    records = mode.encode(codec.coder, given, folder, context, state) if given else []
    tied = aliases(tensors)
    rest = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in coded and name not in tied and not same(tensor, state.tensors.get(name))
    }
    named = {name: tensors[name] for name in tensors if name in given or name in rest or tied.get(name) in given}
    write_side(named, given, {}, folder)
    coder = type(codec.coder)
    follows = Follows(state.digest[:SHORT], mode.adds)
    return write_manifest(folder, f"{coder.__module__}.{coder.__qualname__}", codec.stages, structure, follows), records


def applied(state: State | None, folder: Path, coder: Coder | None = None, trusted: Collection[str] = ()) -> State:
    """The state after an update.

    Args:
        state: before it; None where there is none yet.
        folder: of the update, or of the bitstream of a whole model.
        coder: decodes the files; by default the class that the manifest names, if it comes from a trusted package.
        trusted: packages besides ``tracker`` whose coders and structure changes may be imported.

    Returns:
        The same object where this update was the last one that was applied.

    Raises:
        Missed: it applies to another state.
        TrackerError: it is damaged, or asks for code that is not trusted.
    """
    manifest = read_manifest(folder)
    check_kinds(manifest.structure, trusted)
    if state is not None and state.update == manifest.sha256:
        return state
    if manifest.follows is None:
        tensors = decode_bitstream(folder, coder, trusted, manifest.sha256)
        return State(tensors, manifest.structure, {}, manifest.sha256)
    if state is None or state.digest[:SHORT] != manifest.follows.state:
        has = "nothing" if state is None else state.digest[:SHORT]
        raise Missed(
            f"{folder} applies to the state {manifest.follows.state}, and the receiver has {has}: an update before it "
            "was lost, have a whole model sent"
        )
    coder = coder or trusted_coder(manifest, trusted)
    with failing(folder, coder):
        coded: Mapping[str, Tensor] = {}
        carried = state.carried
        if set(manifest.files) - {SIDE}:
            if manifest.follows.adds:
                coded, carried = coder.decode_difference(folder, state.carried)
            else:
                coded, carried = coder.decode(folder), {}
        rest, notes = read_side(folder)
        after = dict(state.tensors)
        for name, tensor in coded.items():
            after[name] = _next(after.get(name), tensor, manifest.follows.adds)
        after |= rest
        after |= {name: after[first] for name, first in notes.get("tied", {}).items()}
    structure = [*state.structure, *manifest.structure]
    return State(after, structure, carried, manifest.sha256)


def _next(before: Tensor | None, given: Tensor, adds: bool) -> Tensor:
    """A tensor after an update, of the type that it had."""
    if before is None:
        return given
    if adds and before.shape == given.shape:
        given = before.float() + given.float()
    return given.to(before.dtype)
