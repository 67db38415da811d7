"""What MLflow's data sets hold, as a model and a task take it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracker.errors import TrackerError


def arrays(given: Any, schema: Any) -> Any:
    """Inputs as a model's signature has them: MLflow's data sets are tables, or arrays of two dimensions.

    Args:
        given: a table with a column of lists for each input, or with a column of numbers for each value of a sample;
            or an array of shape (N, values).
        schema: of the inputs; None, or one of columns: they stay as they are.

    Raises:
        TrackerError: a sample has another number of values than the signature says, or a column is missing.
    """
    if schema is None or not schema.is_tensor_spec():
        return given
    if schema.has_input_names():
        missing = [name for name in schema.input_names() if name not in given]
        if missing:
            raise TrackerError(f"the data has no column {missing[0]}, which is an input of the model")
        return {spec.name: _shaped(given[[spec.name]], spec) for spec in schema.inputs}
    return _shaped(given, schema.inputs[0])


def targets(given: Any) -> np.ndarray:
    """The targets of a data set.

    Raises:
        TrackerError: there are none, or they are no numbers.
    """
    if given is None:
        raise TrackerError("the data has no targets; give targets=")
    found = np.asarray(given)
    if not len(found):
        raise TrackerError("the data has no samples")
    if found.dtype == object:
        found = _numbers(list(found), None, "the targets")
    if found.dtype.kind not in "biuf":
        raise TrackerError(f"the targets are no numbers, but such as {str(found.flat[0])[:40]!r}: give a class's index")
    return found


def _shaped(given: Any, spec: Any) -> np.ndarray:
    array = given.to_numpy() if hasattr(given, "to_numpy") else np.asarray(given)
    lists = array.dtype == object and array.ndim == 2 and array.shape[1] == 1
    array = _numbers(
        [row[0] for row in array] if lists else array, spec.type, f"the samples of {spec.name or 'the data'}"
    )
    wanted = (len(array), *spec.shape[1:])
    try:
        return array.reshape(array.shape if -1 in wanted else wanted)
    except ValueError as error:
        raise TrackerError(
            f"the samples have shape {array.shape[1:]}, and the model takes {tuple(spec.shape[1:])}"
        ) from error


def _numbers(given: Any, dtype: Any, what: str) -> np.ndarray:
    """An array of samples.

    Raises:
        TrackerError: they differ in shape, or are no numbers.
    """
    try:
        return np.asarray(given, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise TrackerError(f"{what} are no numbers of one shape: {str(error)[:160]}") from error
