"""Data sets with their splits. One module each; a config in conf/data names it by ``_target_``."""

from tracker.data.base import Data, Split

__all__ = ["Data", "Split"]
