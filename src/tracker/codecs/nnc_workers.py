"""NNCodec on all cores: tensors are coded by several processes, because its coder holds Python's global lock.

The processes import NNCodec without what it brings for models and data sets of its own (torch, torchvision): they
start within a second and take 50 MiB each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar

from tqdm import tqdm

K = TypeVar("K")
HELD = 2  # tasks at a time for each process: the one it works on, and the next


def each(
    label: str,
    function: Callable[..., Any],
    costs: Mapping[K, int],
    task: Callable[[K], tuple[Any, ...]],
    worth: int,
) -> Iterator[tuple[K, Any]]:
    """What a function gives for each of several tasks, in any order, with a progress bar on a terminal.

    Args:
        label: of the bar.
        function: of this package, found by its name in another process.
        costs: by the task's key; the dearest task is begun first.
        task: from the key to the function's arguments; called when there is a process for it.
        worth: total cost from which other processes are used.

    Yields:
        The key, and what the function gave.
    """
    order = sorted(costs, key=lambda key: -costs[key])
    count = _processes(len(order)) if sum(costs.values()) >= worth else 1
    if count == 1:
        found: Iterator[tuple[K, Any]] = ((key, function(*task(key))) for key in order)
    else:
        from joblib import Parallel, delayed

        # Arguments go through pipes: joblib would write large ones to files.
        pool = Parallel(
            count, "loky", return_as="generator_unordered", pre_dispatch=HELD * count, batch_size=1, max_nbytes=None
        )
        found = pool(delayed(_call)(key, function, task(key)) for key in order)
    yield from tqdm(found, total=len(order), desc=label, unit="tensor", disable=None, leave=False)


def _processes(tasks: int) -> int:
    """How many are of use: no more than cores that this process may use."""
    from joblib import cpu_count

    return max(1, min(cpu_count(), tasks))


def _call(key: K, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[K, Any]:
    """In a process of its own."""
    spare_frameworks()
    return key, function(*arguments)


def spare_frameworks() -> None:
    """Let NNCodec be imported without its parts for models of PyTorch and TensorFlow, which coding arrays needs not."""
    name = "nncodec.framework"
    if name not in sys.modules and "torch" not in sys.modules:
        stand_in = ModuleType(name)
        vars(stand_in).update(dict.fromkeys(("tensorflow_model", "pytorch_model", "use_case_init")))
        sys.modules[name] = stand_in
