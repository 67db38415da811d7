"""Code that travels with a model: of the packages that the user has named, and of no others."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from tracker.errors import TrackerError
from tracker.flavor.architecture import check_plain


class Carried(MetaPathFinder):
    """Finds them where nothing that is installed has their name.

    On ``sys.path`` the folder would stand in for every package that some library looks for and this machine lacks.
    """

    def __init__(self, folder: Path, packages: Collection[str]) -> None:
        self.folder, self.names = str(folder), {package.split(".")[0] for package in packages}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The package or module in the folder; None for others."""
        return PathFinder.find_spec(fullname, [self.folder], target) if fullname in self.names else None


def carry(path: Path, name: str, packages: Collection[str]) -> None:
    """Let packages be imported from a model's folder.

    Args:
        path: of the model.
        name: of the folder in it.
        packages: that the user trusts.

    Raises:
        TrackerError: it is not in the model's folder.
    """
    if Path(name).name != name or name in ("", ".."):
        raise TrackerError(f"{path / 'MLmodel'} names the code {name[:80]!r}, which is not in its folder: refused")
    check_plain(path / name, folder=True)
    sys.meta_path.append(Carried(path.absolute() / name, packages))
