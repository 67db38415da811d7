"""Frameworks: how a model's tensors are read and written, one module each, loaded by the name that an anchor gives."""

from tracker.frameworks.base import Framework, load_framework

__all__ = ["Framework", "load_framework"]
