"""Changes of an architecture, as data: what a decomposition or pruning changed, repeated by the receiver.

A transform describes what it did as `Edit`s. They travel in the manifest, and the receiver applies them to the public
architecture, newly built, before it fills in the decoded tensors. Nothing is unpickled and the tool that made the
change is not needed. One module here for each kind, with one function, ``rebuild(model, layers)``; the kinds that
begin with ``keras_`` are for Keras models, the others for PyTorch's.
"""

from tracker.structure.base import Edit, rebuild

__all__ = ["Edit", "rebuild"]
