"""Codecs: chains of stages from the anchor to a bitstream. One module a stage; a config in conf/codec names it."""

from tracker.codecs.base import Coder, Context, Integers, Stage, TensorRecord, Transform, Transformed
from tracker.structure.base import Edit

__all__ = ["Coder", "Context", "Edit", "Integers", "Stage", "TensorRecord", "Transform", "Transformed"]
