#!/usr/bin/env bash
# A coder that is a pair of commands: here xz, lossless; MPEG's own NCTM software is plugged in the same way.
set -euo pipefail
python -m tracker +codec=external \
    "codec.external.encode_command='xz --keep --stdout {input}'" \
    "codec.external.decode_command='xz --decompress --stdout {input}'"
