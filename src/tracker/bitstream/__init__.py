"""The bitstream: a folder with what the receiver needs besides the public architecture."""

from tracker.bitstream.decoder import decode_bitstream
from tracker.bitstream.encoder import encode_bitstream
from tracker.bitstream.manifest import bitstream_bytes, read_manifest

__all__ = ["bitstream_bytes", "decode_bitstream", "encode_bitstream", "read_manifest"]
