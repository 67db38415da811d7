"""An NNC bitstream is a row of units: a few for the whole model, then one for each tensor or block of tensors.

NNCodec codes a model in one pass, which holds several copies of it and copies all of it anew for every tensor. Coded
one by one, with the number that each tensor has in the model, the units are the same bytes; put together they are the
same bitstream, in little memory, and one can see how far it is.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tracker.codecs.nnc_entries import where_needed
from tracker.codecs.nnc_guard import Implausible, checked_shapes
from tracker.codecs.nnc_workers import each
from tracker.errors import TrackerError
from tracker.memory import physical_bytes

if TYPE_CHECKING:
    import numpy as np

    from tracker.codecs.nnc_fold import Folded

log = logging.getLogger(__name__)
CLIPPED = re.compile(r"INFO: QP for (.*) has been clipped from -?\d+ to (-?\d+) ")
NDU = 5  # nnr_unit_type of a compressed data unit
# Where other processes begin to pay: they take half a second to start, and a core codes about 1.7 million elements a
# second and decodes about 2 million bytes.
ELEMENTS, BYTES = 1 << 22, 1 << 22


def encode_units(
    arrays: Mapping[str, np.ndarray],
    folded: Folded | None,
    options: Mapping[str, Any],
    exact: Mapping[str, Mapping[str, Any]] | None = None,
    numbers: Mapping[str, int] | None = None,
) -> tuple[bytes, dict[str, int], dict[str, int]]:
    """Code a model unit by unit.

    Args:
        arrays: float32, by name.
        folded: what is coded in their place where BatchNorm is folded.
        options: keyword arguments of ``nncodec.nnc.compress``.
        exact: other options for tensors (of a block: its weight), such as for those that are coded without loss, as
            multiples of their step sizes.
        numbers: of the tensors, in place of their places in `arrays`; where nothing is folded.

    Returns:
        The bitstream, equal to that of one call for all arrays; bytes by name, a block's under its weight; and the qps
        that NNCodec raised to keep integers within 32 bits.
    """
    if folded is not None:
        arrays, blocks, numbers = folded.arrays, folded.blocks, folded.numbers
    else:
        blocks, numbers = None, numbers or {name: number for number, name in enumerate(arrays)}
    parts = groups(arrays, blocks)

    def task(name: str) -> tuple[Any, ...]:
        members = parts[name]
        own = {member: arrays[member] for member in members}
        given = _options(members, options, (exact or {}).get(name))
        return own, _of(numbers, members), _tables(blocks, members) if len(members) > 1 else None, given

    costs = {name: sum(arrays[member].size for member in members) for name, members in parts.items()}
    units: dict[str, list[tuple[int, bytes]]] = {}
    clipped: dict[str, int] = {}
    for name, (coded, printed) in each("encode", compress, costs, task, ELEMENTS):
        units[name] = split(bytes(coded))
        clipped.update(_told(printed))
    head = b"".join(unit for kind, unit in units[next(iter(parts))] if kind != NDU)
    data = {name: b"".join(unit for kind, unit in units[name] if kind == NDU) for name in parts}
    return head + b"".join(data.values()), {name: len(unit) for name, unit in data.items()}, clipped


def quantise_units(
    arrays: Mapping[str, np.ndarray], options: Mapping[str, Any], exact: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, np.ndarray]:
    """What `decode_units` gives for the bitstream of a model, without making it; no folded BatchNorm.

    Args:
        arrays: float32 or int32, by name.
        options: keyword arguments of ``nncodec.nnc.compress``.
        exact: see `encode_units`.
    """
    numbers = {name: number for number, name in enumerate(arrays)}
    options = {**options, "quantize_only": True}

    def task(name: str) -> tuple[Any, ...]:
        own = _options([name], options, (exact or {}).get(name))
        return {name: arrays[name]}, _of(numbers, [name]), None, own

    found: dict[str, np.ndarray] = {}
    for _, (values, printed) in each("quantise", compress, {n: a.size for n, a in arrays.items()}, task, ELEMENTS):
        found.update(values)
        _told(printed)
    return found


def decode_units(bitstream: bytes) -> dict[str, np.ndarray]:
    """Decode a bitstream unit by unit; the scales of folded BatchNorm are multiplied into the weights.

    Raises:
        TrackerError: a tensor's shape is impossible.
    """
    units = split(bitstream)
    head = b"".join(unit for kind, unit in units if kind != NDU)
    data = [unit for kind, unit in units if kind == NDU]
    costs = {index: len(unit) for index, unit in enumerate(data)}
    arrays: dict[int, dict[str, np.ndarray]] = {}
    taken = 0

    def decode(apart: bool) -> None:
        nonlocal taken
        taken = 0

        def task(index: int) -> tuple[Any, ...]:
            return head + data[index], physical_bytes() - taken, apart

        for index, (decoded, printed) in each("decode", decompress, costs, task, BYTES, apart):
            arrays[index] = decoded
            taken += sum(array.nbytes for array in decoded.values())
            _told(printed)

    try:
        decode(False)
    except Implausible:  # whatever becomes of it, in processes whose end is told
        decode(True)
    return {name: array for index in range(len(data)) for name, array in arrays.pop(index).items()}


def split(bitstream: bytes) -> list[tuple[int, bytes]]:
    """The units of a bitstream: their nnr_unit_type and their bytes.

    Each unit begins with nnr_unit_size_flag (1 bit) and nnr_unit_size (15 or 31 bits), then nnr_unit_type (6 bits).

    Raises:
        ValueError: the sizes do not add up.
    """
    units, at = [], 0
    while at < len(bitstream):
        width = 4 if bitstream[at] & 0x80 else 2
        size = int.from_bytes(bitstream[at : at + width], "big") & ((1 << (8 * width - 1)) - 1)
        if size <= width or at + size > len(bitstream):
            raise ValueError(f"a unit of {size} bytes at {at} of {len(bitstream)}")
        units.append((bitstream[at + width] >> 2, bitstream[at : at + size]))
        at += size
    return units


def groups(names: Mapping[str, Any], blocks: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Which tensors are coded together: by the name of each block's weight, or of the tensor that stands alone."""
    if blocks is None:
        return {name: [name] for name in names}
    block_of, types = blocks["block_identifier"], blocks["parameter_type"]
    members: dict[str, list[str]] = {}
    for name in names:
        if block_of[name] is not None:
            members.setdefault(block_of[name], []).append(name)
    return {
        name: [name] if block_of[name] is None else members[block_of[name]]
        for name in names
        if block_of[name] is None or types[name] == "weight"
    }


def optimised_qp(arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> dict[str, int]:
    """The qp of each tensor by NNCodec's rule ``opt_qp``, which looks at all tensors together."""
    from nncodec.nnc_core import approximator
    from nncodec.nnc_core.nnr_model import NNRModel

    info = NNRModel(dict(arrays)).model_info
    data = approximator.init_approx_data(dict(arrays), info, options["qp_density"], options["scan_order"])
    chosen = approximator.ApproxInfo(
        data,
        info,
        approx_method="uniform",
        codebook_mode=0,
        qp=options["qp"],
        opt_qp=True,
        disable_dq=False,
        cabac_unary_length_minus1=options["cabac_unary_length_minus1"],
        lambda_scale=options["lambda_scale"],
        nonweight_qp=options["nonweight_qp"],
        qp_per_tensor=options["qp_per_tensor"],
    )
    return {name: int(qp) for name, qp in chosen.approx_info["qp"].items()}


def compress(
    own: dict[str, np.ndarray], numbers: Mapping[str, int], blocks: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> tuple[Any, str]:
    """What ``nncodec.nnc.compress`` gives for some tensors of a model, and what it printed.

    Args:
        own: the tensors.
        numbers: the number that each has in the model.
        blocks: NNCodec's ``block_id_and_param_type`` for them, or None.
        options: keyword arguments; with ``quantize_only`` it gives values, else bytes.
    """
    from nncodec import nnc
    from nncodec.nnc_core.nnr_model import NNRModel

    model = NNRModel(own)
    model.model_info["parameter_index"].update(numbers)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), where_needed():
        # bitstream_path=None, because nncodec otherwise writes into the current folder.
        coded = nnc.compress(
            own,
            model=model,
            bitstream_path=None,
            return_bitstream=True,
            bnf=blocks is not None,
            block_id_and_param_type=blocks,
            verbose=False,
            **options,
        )
    return coded, printed.getvalue()


def decompress(bitstream: bytes, memory: int, apart: bool) -> tuple[dict[str, np.ndarray], str]:
    """What ``nncodec.nnc.decompress`` gives, where it takes no more bytes of memory; and what it printed.

    Args:
        bitstream: of one unit, and those of the whole model.
        memory: in bytes.
        apart: whether this process may end by it.
    """
    from nncodec import nnc

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), checked_shapes(memory, None if apart else len(bitstream)):
        return nnc.decompress(bytearray(bitstream), reconstruct_lsa=True), printed.getvalue()


def _options(members: list[str], options: Mapping[str, Any], exact: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those of some tensors: the qps of a whole model would go to another process with each of them."""
    given = {**options, **(exact or {})}
    qps = given.get("qp_per_tensor")
    return {**given, "qp_per_tensor": {name: qps[name] for name in members if name in qps}} if qps else given


def _of(numbers: Mapping[str, int], members: list[str]) -> dict[str, int]:
    """Those of some tensors."""
    return {name: numbers[name] for name in members}


def _tables(blocks: Mapping[str, Any] | None, members: list[str]) -> Mapping[str, Any] | None:
    """NNCodec's ``block_id_and_param_type`` for some tensors."""
    return blocks and {part: {name: table[name] for name in members} for part, table in blocks.items()}


def _told(printed: str) -> dict[str, int]:
    """Log what nncodec printed, that it changed a qp as INFO, the rest as DEBUG; the qps that it changed."""
    for line in printed.splitlines():
        log.log(logging.INFO if "clipped" in line else logging.DEBUG, "nncodec: %s", line.strip())
    return {name: int(qp) for name, qp in CLIPPED.findall(printed)}


@contextlib.contextmanager
def told_in_one_line() -> Iterator[None]:
    """Whatever nncodec raises, SystemExit among it, as one line."""
    try:
        yield
    except TrackerError:
        raise
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise TrackerError(f"nncodec cannot code this model with these options ({reason[:200]})") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What nncodec prints goes to the log."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        _told(printed.getvalue())
