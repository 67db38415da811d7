"""Whose code may be imported because a file names it: a manifest and an architecture may be anyone's."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from tracker.component import locate
from tracker.errors import TrackerError

ENVIRONMENT = "TRACKER_TRUSTED"
ANCHORS, CODERS = "tracker.anchors", "tracker.codecs"
# What an anchor's factory may be of without being named.
ZOOS = ("torchvision.models", "keras.applications", "keras.src.applications")
SHOWN = 80  # characters of a name in a message


def named(trusted: Collection[str] = ()) -> tuple[str, ...]:
    """The packages that the user has named as trusted: those given, and those of the variable ``TRACKER_TRUSTED``.

    Args:
        trusted: packages, or dotted modules; a text is one, or several with commas or spaces between.
    """
    return (*given(trusted), *given(os.environ.get(ENVIRONMENT, "")))


def given(trusted: Collection[str]) -> tuple[str, ...]:
    """Packages, where a text may stand for one or several."""
    return tuple(trusted.replace(",", " ").split() if isinstance(trusted, str) else trusted)


def within(path: str, packages: Collection[str]) -> bool:
    """Whether a dotted path is below one of the packages or modules."""
    return any(path.startswith(f"{package}.") for package in given(packages))


def trusted_object(target: str, packages: Collection[str], word: str, advice: str | None = None) -> Any:
    """What a dotted path names, if it is of a trusted package and was defined in one.

    A module's attributes are more than what it defines: ``package.os.system`` is a path as well.

    Args:
        target: the path; nothing is imported where it begins with another package.
        packages: packages or modules.
        word: what it is, for error messages.
        advice: how to trust it, for error messages; None: by the variable.

    Raises:
        TrackerError: it is of none of them.
    """
    package = target.split(".")[0][: SHOWN // 2]
    refused = TrackerError(
        f"the model asks for the {word} {target[:SHOWN]}, which is of no package that is trusted: if you trust it, "
        f"{advice or f'set {ENVIRONMENT}={package}'}"
    )
    if not within(target, packages):
        raise refused
    found = locate(target, word)
    if not within(f"{getattr(found, '__module__', '')}.", packages):
        raise refused
    return found
