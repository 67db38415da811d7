"""Edits, and how they are applied."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from tracker.errors import TrackerError
from tracker.trust import SHOWN, given, trusted_object, within

OURS, OUR_MODULES = re.compile(r"[a-z][a-z0-9_]*"), "tracker.structure"


@dataclass(frozen=True)
class Edit:
    """One change of an architecture.

    Attributes:
        kind: the name of a module of `tracker.structure`, such as ``spatial_svd``; or the dotted path of a user's own
            module, which the receiver loads only from a trusted package.
        layers: what the change needs to know, by the name of the layer that it changes, such as its rank; plain JSON.
    """

    kind: str
    layers: dict[str, Any]


def rebuild(model: Any, edits: Iterable[Edit], trusted: Collection[str] = ()) -> Any:
    """Apply edits to a newly built architecture, in order.

    Args:
        model: changed in place where its framework can do that.
        edits: of a manifest.
        trusted: packages besides ``tracker`` whose modules may be imported.

    Returns:
        The changed model.

    Raises:
        TrackerError: a kind is unknown or not trusted, or an edit does not fit the architecture.
    """
    for edit in edits:
        function = _function(edit.kind, trusted)
        _check_framework(edit.kind, model)
        try:
            model = function(model, edit.layers)
        except TrackerError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise TrackerError(
                f"the bitstream's structure ({edit.kind}) does not fit the architecture: {type(error).__name__}: "
                f"{reason}; is this the anchor that it was made of?"
            ) from error
    return model


def check_kinds(edits: Iterable[Edit], trusted: Collection[str] = ()) -> None:
    """Refuse edits of which one is of a kind that `rebuild` would not import.

    Args:
        edits: of a manifest.
        trusted: as for `rebuild`.

    Raises:
        TrackerError: that.
    """
    for edit in edits:
        _packages(edit.kind, trusted)


def _function(kind: str, trusted: Collection[str]) -> Callable[[Any, dict[str, Any]], Any]:
    """What repeats an edit."""
    packages = _packages(kind, trusted)
    module = f"{OUR_MODULES}.{kind}" if packages == (OUR_MODULES,) else kind
    found: Callable[[Any, dict[str, Any]], Any] = trusted_object(f"{module}.rebuild", packages, "structure.kind")
    return found


def _packages(kind: str, trusted: Collection[str]) -> tuple[str, ...]:
    """The packages that a kind may be of: ours, or those that are trusted.

    Raises:
        TrackerError: it comes from elsewhere.
    """
    if OURS.fullmatch(kind) and kind != "base" and importlib.util.find_spec(f"{OUR_MODULES}.{kind}") is not None:
        return (OUR_MODULES,)
    if within(f"{kind}.", trusted):
        return given(trusted)
    package = kind.split(".")[0][:SHOWN]
    raise TrackerError(
        f"the bitstream's structure asks for {kind[:SHOWN]!r}, which is not a part of this version of tracker: if it "
        f"is a package's that you trust, name {package} in trusted (scenario.trust of scenario=receive)"
    )


def _check_framework(kind: str, model: Any) -> None:
    """Refuse an edit of ours for a model of the other framework; a user's own kinds know themselves what they take.

    Raises:
        TrackerError: that.
    """
    if not OURS.fullmatch(kind):
        return
    # By their packages, as nothing here imports a framework that the model is not of.
    packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    given = "Keras" if "keras" in packages else "PyTorch" if "torch" in packages else ""
    made = "Keras" if kind.startswith("keras_") else "PyTorch"
    if given not in ("", made):
        raise TrackerError(
            f"the bitstream is of a {made} model, and the anchor is a {given} model: give the anchor that it was made "
            "of"
        )


def one_of(model: Any, name: str, kinds: type | tuple[type, ...]) -> Any:
    """The module of a PyTorch model that an edit names.

    Raises:
        TrackerError: there is none of that name and kind.
    """
    found = dict(model.named_modules()).get(name)
    if not name or not isinstance(found, kinds):
        what = type(found).__name__ if found is not None and name else "nothing"
        raise TrackerError(
            f"the bitstream's structure does not fit the architecture: {name[:80]!r} is {what} there; "
            "is this the anchor that it was made of?"
        )
    return found


def replace(model: Any, name: str, module: Any) -> None:
    """Put a module in the place of a PyTorch model's module."""
    parent, _, last = name.rpartition(".")
    owner = model.get_submodule(parent)
    if last not in owner._modules:
        raise TrackerError(f"the bitstream's structure does not fit the architecture: there is no {name[:80]!r}")
    owner._modules[last] = module


def split_layers(
    model: Any,
    layers: dict[str, Any],
    kinds: type | tuple[type, ...],
    largest: Callable[[Any, str], int],
    split: Callable[[Any, int], Any],
) -> Any:
    """Replace layers of a PyTorch model by pairs of lower rank.

    Args:
        model: changed in place; an empty name stands for the model itself.
        layers: ranks by layer name.
        kinds: of the layers.
        largest: the largest rank of a layer, from it and its name.
        split: the pair, from a layer and its rank.

    Returns:
        The model; another one where the model itself is the layer.

    Raises:
        TrackerError: a name is no such layer, or a rank is none that it can have.
    """
    for name, rank in layers.items():
        layer = model if not name else one_of(model, name, kinds)
        pair = split(layer, count(rank, name, largest(layer, name)))
        if not name:
            return pair
        replace(model, name, pair)
    return model


def count(value: Any, name: str, largest: int) -> int:
    """A number of an edit, such as a rank: 1 to ``largest``.

    Raises:
        TrackerError: it is none, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise TrackerError(f"the bitstream's structure has {str(value)[:40]!r} for {name[:80]!r}: not 1 to {largest}")
    return value
