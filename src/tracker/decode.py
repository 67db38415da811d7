"""``python -m tracker.decode BITSTREAM_FOLDER OUT.safetensors``: the receiver, without MLflow and without an anchor."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from tracker.errors import TrackerError


def main(arguments: list[str] | None = None) -> int:
    """Decode a bitstream into a safetensors file.

    Args:
        arguments: the command line's words.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tracker.decode", description="Decode a bitstream folder into a safetensors file."
    )
    parser.add_argument("bitstream", type=Path, help="folder with manifest.json")
    parser.add_argument("output", type=Path, help="the safetensors file to write")
    parser.add_argument("--sha256", help="the digest that the bitstream must have (the run's tag)")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package with a coder of your own that may be imported; repeatable",
    )
    parser.add_argument("--decode-command", help="for bitstreams of the codec `external`: the command that decodes")
    parser.add_argument(
        "--exchange",
        default="safetensors",
        choices=["safetensors", "pt", "npz"],
        help="and the format that it writes",
    )
    chosen = parser.parse_args(arguments)
    try:
        names = decode(
            chosen.bitstream,
            chosen.output,
            chosen.sha256,
            chosen.trust,
            chosen.decode_command,
            chosen.exchange,
        )
    except (TrackerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{chosen.output}: {names} tensors")
    return 0


def decode(
    bitstream: Path, output: Path, sha256: str | None, trusted: list[str], command: str | None, exchange: str
) -> int:
    """Write the tensors of a bitstream; the number of tensors.

    The file is written whole or not at all. Tied tensors are written under each of their names.

    Raises:
        TrackerError: the bitstream is damaged, is not the one that was asked for, or asks for code that is not trusted.
        OSError: the output cannot be written.
    """
    from tracker.bitstream.decoder import decode_bitstream
    from tracker.bitstream.manifest import read_manifest
    from tracker.bitstream.state import own_memory
    from tracker.imports import silent
    from tracker.structure.base import check_kinds

    coder = None
    if command is not None:
        from tracker.codecs.external import External
        from tracker.component import build

        coder = build(
            {"_target_": f"{External.__module__}.External", "decode_command": command, "exchange": exchange},
            "--decode-command",
            External,
        )
    check_kinds(read_manifest(bitstream).structure, trusted)  # not needed here; a forged manifest is refused as a whole
    with silent() if coder is None else contextlib.nullcontext():  # a decoder's own words on what ends in one line here
        tensors = decode_bitstream(bitstream, coder, trusted, sha256)
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
    try:
        save_file(own_memory(tensors), partial)
        partial.replace(output)
    except (OSError, SafetensorError) as error:  # safetensors tells a full disk by an exception of its own
        raise TrackerError(f"{output} cannot be written ({getattr(error, 'strerror', None) or error})") from error
    finally:
        partial.unlink(missing_ok=True)
    return len(tensors)


if __name__ == "__main__":
    sys.exit(main())
