"""TensorFlow and PyTorch in one process, whatever was imported first; and TensorFlow without what it prints.

Both TensorFlow and triton, which torchvision makes torch import, have an LLVM of their own. TensorFlow puts its symbols
where every library loaded later finds them, so triton's extension, loaded after it, calls TensorFlow's LLVM and ends
the process with a segmentation fault. Loaded with RTLD_DEEPBIND, triton's extension prefers its own symbols. (The other
order, triton before TensorFlow, works by itself.)
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

EXTENSION = "triton._C.libtriton"
LEVEL, QUIET = "TF_CPP_MIN_LOG_LEVEL", "3"


class DeepLoader(ExtensionFileLoader):
    """Loads an extension so that its own symbols come first."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """As the base class, with RTLD_DEEPBIND where the system has it (glibc)."""
        flags = sys.getdlopenflags()
        sys.setdlopenflags(flags | getattr(os, "RTLD_DEEPBIND", 0))
        try:
            return super().create_module(spec)
        finally:
            sys.setdlopenflags(flags)


class QuietLoader(SourceFileLoader):
    """Loads TensorFlow, whose libraries print to the console before they read how much they may."""

    def exec_module(self, module: ModuleType) -> None:
        """As the base class, with nothing on the console."""
        with silent():
            super().exec_module(module)


class Finder(MetaPathFinder):
    """Looks at two imports on their way: TensorFlow's, and that of triton's extension."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec with a loader of this module; for all else None, so that others find it."""
        if fullname == "tensorflow" and "torch" not in sys.modules:
            # Otherwise torch calls TensorFlow's stand-in for CUDA's runtime, and finds no GPU.
            with contextlib.suppress(ImportError):
                importlib.import_module("torch")
        # A level of the user's own stays. What is wrong comes as an exception; this is for what is not.
        if fullname == "tensorflow" and os.environ.setdefault(LEVEL, QUIET) == QUIET:
            spec = PathFinder.find_spec(fullname, path, target)
            if spec is not None and type(spec.loader) is SourceFileLoader:
                spec.loader = QuietLoader(fullname, spec.loader.path)
            return spec
        if fullname == EXTENSION and sys.modules.get("tensorflow") is not None and hasattr(sys, "setdlopenflags"):
            spec = PathFinder.find_spec(fullname, path, target)
            if spec is not None and type(spec.loader) is ExtensionFileLoader:
                spec.loader = DeepLoader(fullname, spec.loader.path)
            return spec
        return None


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Within the block nothing written to standard error arrives, not even by libraries."""
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    sys.stderr.flush()
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def install() -> None:
    """Watch imports from now on."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
