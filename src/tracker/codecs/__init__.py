"""Codecs: chains of stages from the anchor to a bitstream. One module a stage; a config in conf/codec names it."""

from tracker.codecs.base import Coder, Context, Stage, TensorRecord, Transform

__all__ = ["Coder", "Context", "Stage", "TensorRecord", "Transform"]
