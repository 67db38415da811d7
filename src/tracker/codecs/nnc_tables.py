"""Rate tables: what each tensor costs at several step sizes, and its error, measured with NNCodec itself.

Tensors are coded alone, on all cores; what was measured once is read from the cache by every later run and trial.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.cache import cache_folder
from tracker.codecs import nnc_units
from tracker.codecs.nnc_steps import step_size
from tracker.codecs.nnc_workers import each
from tracker.codecs.records import Cost
from tracker.errors import TrackerError

if TYPE_CHECKING:
    import numpy as np

LARGEST = 1 << 20  # elements of a tensor that are coded for a table: of larger ones, rows as far as they fit
WORTH = 1 << 21  # elements times step sizes from which other processes are used


def tables(
    arrays: Mapping[str, np.ndarray], qps: Mapping[str, Sequence[int]], options: Mapping[str, Any]
) -> dict[str, list[Cost]]:
    """Measure all tensors, each at its own qps.

    Args:
        arrays: float32, by name.
        qps: by name, at the density of the options.
        options: keyword arguments of ``nncodec.nnc.compress``.

    Returns:
        By name, at all qps from the first to the last; between those that were measured, logarithms are interpolated.
    """
    shared = {name: value for name, value in options.items() if name not in ("qp", "nonweight_qp", "qp_per_tensor")}
    found: dict[str, list[Cost]] = {}
    keys: dict[str, str] = {}
    for name, array in arrays.items():
        keys[name] = _key(array, qps[name], shared)
        known = _read(keys[name])
        if known is not None:
            found[name] = known

    def task(name: str) -> tuple[Any, ...]:
        return name, _part(arrays[name]), list(qps[name]), shared

    costs = {name: min(array.size, LARGEST) * len(qps[name]) for name, array in arrays.items() if name not in found}
    for name, rows in each("rate tables", measure, costs, task, WORTH):
        scale = arrays[name].size / max(_part(arrays[name]).size, 1)
        between = _interpolated(qps[name], [(size * scale, error * scale) for size, error in rows])
        found[name] = [Cost(step_size(qp, options["qp_density"]), *cost) for qp, cost in between.items()]
        _write(keys[name], found[name])
    return found


def measure(name: str, array: np.ndarray, qps: Sequence[int], shared: Mapping[str, Any]) -> list[tuple[float, float]]:
    """One tensor's bytes and sum of squared errors at each qp."""
    import numpy as np

    rows = []
    for qp in qps:
        options = {**shared, "qp": qp, "nonweight_qp": qp or 1, "qp_per_tensor": {name: qp}}
        coded, _ = nnc_units.compress({name: array}, {name: 0}, None, options)
        values, _ = nnc_units.compress({name: array}, {name: 0}, None, {**options, "quantize_only": True})
        size = sum(len(unit) for kind, unit in nnc_units.split(bytes(coded)) if kind == nnc_units.NDU)
        rows.append((float(size), float(np.square(values[name].astype(np.float64) - array).sum())))
    return rows


def _interpolated(qps: Sequence[int], rows: Sequence[tuple[float, float]]) -> dict[int, tuple[float, float]]:
    """Bytes and errors at every qp, from those at some: a qp is the logarithm of a step size, or nearly so."""
    import numpy as np

    every = np.arange(qps[0], qps[-1] + 1)
    logs = [np.log(np.maximum([row[column] for row in rows], 1e-30)) for column in (0, 1)]
    sizes, errors = (np.exp(np.interp(every, qps, column)) for column in logs)
    return {int(qp): (float(size), float(error)) for qp, size, error in zip(every, sizes, errors, strict=True)}


def _part(array: np.ndarray) -> np.ndarray:
    """Rows of a large tensor, evenly spread."""
    if array.size <= LARGEST or array.ndim < 2:
        return array[:LARGEST] if array.ndim == 1 else array
    stride = -(-array.size // LARGEST)
    return array[::stride] if len(array) >= 2 * stride else array


def _key(array: np.ndarray, qps: Sequence[int], shared: Mapping[str, Any]) -> str:
    """By what is measured, and by the shape that this is scaled to."""
    import numpy as np

    facts = [version("nncodec"), list(qps), shared, array.shape]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    digest.update(np.ascontiguousarray(_part(array)).data)
    return digest.hexdigest()


def _path(key: str) -> Path:
    return cache_folder() / "rates" / f"{key}.json"


def _read(key: str) -> list[Cost] | None:
    try:
        return [Cost(*map(float, row)) for row in json.loads(_path(key).read_text())]
    except (OSError, ValueError, TypeError):
        return None


def _write(key: str, rows: list[Cost]) -> None:
    path = _path(key)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(exist_ok=True)
        partial.write_text(json.dumps([(row.step, row.bytes, row.error) for row in rows]))
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise TrackerError(
            f"the cache {path.parent} cannot be written ({error.strerror}); make room there, or set TRACKER_CACHE"
        ) from error
