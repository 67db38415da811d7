"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN = 5
LONGEST = 2000  # characters: a name in a forged file may have a million


class TrackerError(Exception):
    """A mistake of the user's or a failure of the surroundings, told in one line with the way to mend it.

    The command line prints the message without a traceback and exits with status 1.
    """

    def __init__(self, message: str) -> None:
        text = " ".join(str(message).split())
        half = LONGEST // 2  # of both ends: a data loader's worker tells our line behind a whole traceback
        super().__init__(text if len(text) <= LONGEST else f"{text[:half]}…{text[-half:]}")


def unknown_layer(option: str, name: str, layers: Iterable[str]) -> TrackerError:
    """The refusal of an option that names a layer which the model does not have.

    Args:
        option: such as ``codec.svd.ratios``.
        name: as it was given.
        layers: that the option can name, in the model's order.
    """
    known = [layer for layer in layers if layer]
    close = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    if known and not close:
        more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
        hint = f"; those that it can name are {', '.join(known[:SHOWN])}{more}"
    return TrackerError(f"{option} names {name}, and the model has no such layer{hint}")
