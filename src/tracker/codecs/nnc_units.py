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

from tqdm import tqdm

from tracker.errors import TrackerError

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)
CLIPPED = re.compile(r"INFO: QP for (.*) has been clipped from -?\d+ to (-?\d+) ")
NDU = 5  # nnr_unit_type of a compressed data unit


def encode_units(
    arrays: Mapping[str, np.ndarray], blocks: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> tuple[bytes, dict[str, int], dict[str, int]]:
    """Code a model unit by unit.

    Args:
        arrays: float32, by name.
        blocks: NNCodec's ``block_id_and_param_type`` where BatchNorm is folded.
        options: keyword arguments of ``nncodec.nnc.compress``.

    Returns:
        The bitstream, equal to that of one call for all arrays; bytes by name, a block's under its weight; and the qps
        that NNCodec raised to keep integers within 32 bits.
    """
    numbers = {name: number for number, name in enumerate(arrays)}
    head, coded = b"", []
    sizes: dict[str, int] = {}
    clipped: dict[str, int] = {}
    for name, members in tqdm(groups(arrays, blocks).items(), desc="encode", unit="tensor", disable=None, leave=False):
        own = {member: arrays[member] for member in members}
        units = split(bytes(_compress(own, numbers, blocks if len(members) > 1 else None, options, clipped)))
        head = head or b"".join(unit for kind, unit in units if kind != NDU)
        data = b"".join(unit for kind, unit in units if kind == NDU)
        coded.append(data)
        sizes[name] = len(data)
    return head + b"".join(coded), sizes, clipped


def quantise_units(arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What `decode_units` gives for the bitstream of a model, without making it; no folded BatchNorm.

    Args:
        arrays: float32 or int32, by name.
        options: keyword arguments of ``nncodec.nnc.compress``.
    """
    numbers = {name: number for number, name in enumerate(arrays)}
    found: dict[str, np.ndarray] = {}
    for name in tqdm(arrays, desc="quantise", unit="tensor", disable=None, leave=False):
        found.update(_compress({name: arrays[name]}, numbers, None, {**options, "quantize_only": True}, {}))
    return found


def decode_units(bitstream: bytes) -> dict[str, np.ndarray]:
    """Decode a bitstream unit by unit; the scales of folded BatchNorm are multiplied into the weights."""
    from nncodec import nnc

    units = split(bitstream)
    head = b"".join(unit for kind, unit in units if kind != NDU)
    arrays: dict[str, np.ndarray] = {}
    data = [unit for kind, unit in units if kind == NDU]
    with quiet():
        for unit in tqdm(data, desc="decode", unit="tensor", disable=None, leave=False):
            arrays.update(nnc.decompress(bytearray(head + unit), reconstruct_lsa=True))
    return arrays


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


def _compress(
    own: dict[str, np.ndarray],
    numbers: Mapping[str, int],
    blocks: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    clipped: dict[str, int],
) -> Any:
    """What ``nncodec.nnc.compress`` gives for some tensors of a model: bytes, or values where it only quantises."""
    from nncodec import nnc
    from nncodec.nnc_core.nnr_model import NNRModel

    model = NNRModel(own)
    model.model_info["parameter_index"].update({name: numbers[name] for name in own})
    block = blocks and {part: {name: table[name] for name in own} for part, table in blocks.items()}
    with quiet() as printed:
        # bitstream_path=None, because nncodec otherwise writes into the current folder.
        coded = nnc.compress(
            own,
            model=model,
            bitstream_path=None,
            return_bitstream=True,
            bnf=block is not None,
            block_id_and_param_type=block,
            verbose=False,
            **options,
        )
    clipped.update((name, int(qp)) for name, qp in CLIPPED.findall(printed.getvalue()))
    return coded


@contextlib.contextmanager
def told_in_one_line() -> Iterator[None]:
    """Whatever nncodec raises, SystemExit among it, as one line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise TrackerError(f"nncodec cannot code this model with these options ({reason[:200]})") from error


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """What nncodec prints goes to the log: that it changed a qp to INFO, the rest to DEBUG."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield printed
    finally:
        for line in printed.getvalue().splitlines():
            log.log(logging.INFO if "clipped" in line else logging.DEBUG, "nncodec: %s", line.strip())
