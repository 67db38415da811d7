"""Code that an anchor needs at the receiver and that no package index has: the user's own modules."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Collection
from pathlib import Path

LARGEST = 1 << 23  # bytes; what is larger is more than an architecture


def own_code(names: Collection[str]) -> list[str]:
    """Files and folders of the modules that dotted paths begin with, as far as they are not installed.

    Args:
        names: such as ``wine.WineNet``; their modules are imported already.

    Returns:
        For ``code_paths``; what is too large for an architecture is left out.
    """
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib")]
    found = []
    for top in sorted({name.split(".")[0] for name in names} - {"tracker", "__main__", ""}):
        origin = getattr(sys.modules.get(top), "__file__", None)
        if not origin:
            continue
        file = Path(origin).resolve()
        place = file.parent if file.name == "__init__.py" else file
        if not any(file.is_relative_to(folder) for folder in installed) and _size(place) <= LARGEST:
            found.append(str(place))
    return found


def _size(place: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    return sum(file.stat().st_size for file in (place.rglob("*") if place.is_dir() else [place]) if file.is_file())
