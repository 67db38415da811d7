"""Anchors: the uncompressed reference models. One module each; a config in conf/anchor names it by ``_target_``."""

from tracker.anchors.base import Anchor

__all__ = ["Anchor"]
