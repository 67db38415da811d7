"""Codecs: chains of stages from the anchor to a bitstream. One module a stage; a config in conf/codec names it.

The names below come when they are asked for: a process that codes tensors (`nnc_process`) imports no pydantic with
them, which would be 10 MB in each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracker.codecs.base import Coder, Context, Stage, Transform
    from tracker.codecs.records import Integers, TensorRecord, Transformed
    from tracker.structure.base import Edit

__all__ = ["Coder", "Context", "Edit", "Integers", "Stage", "TensorRecord", "Transform", "Transformed"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tracker.codecs import base, records
    from tracker.structure.base import Edit

    everything = {**vars(records), **vars(base), "Edit": Edit}
    globals().update({other: everything[other] for other in __all__})
    return globals()[name]
