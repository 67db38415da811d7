"""A process that codes tensors for another one: it calls functions that come through a pipe, and answers.

It imports NNCodec without what that brings for models and data sets of its own (torch, torchvision), and nothing else
that is large: it starts within half a second and takes 20 MB. It ends when the pipe does.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import IO, Any

# What it says: it is done with a task, has failed at it, asks for room for elements, has left that room.
DONE, FAILED, ROOM, LEFT = range(4)


def serve() -> None:
    """Answer until the other process closes the pipe or ends."""
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed must not come between answers
    spare_frameworks()
    _ask_for_room(asked, answers)
    while _served(asked, answers):
        pass


def say(pipe: IO[bytes], something: Any) -> None:
    """Send it; an array's values are written from where they are."""
    pickle.dump(something, pipe, pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def hear(pipe: IO[bytes]) -> Any:
    """What the other process says next.

    Raises:
        EOFError: it has ended.
    """
    return pickle.load(pipe)  # noqa: S301 (a pipe between two processes of this program)


def spare_frameworks() -> None:
    """Let NNCodec be imported without its parts for models of PyTorch and TensorFlow, which coding arrays needs not."""
    name = "nncodec.framework"
    if name not in sys.modules and "torch" not in sys.modules:
        stand_in = ModuleType(name)
        vars(stand_in).update(dict.fromkeys(("tensorflow_model", "pytorch_model", "use_case_init")))
        sys.modules[name] = stand_in


def _served(asked: IO[bytes], answers: IO[bytes]) -> bool:
    """Answer once; nothing of it stays in memory. False where there is nothing more to do."""
    try:
        function, arguments = hear(asked)
    except (EOFError, pickle.UnpicklingError):  # it may have been killed in the middle of a word
        return False
    try:
        answer = DONE, function(*arguments)
    except BaseException as error:  # nncodec raises SystemExit
        error.add_note(traceback.format_exc())
        answer = FAILED, error
    try:
        say(answers, answer)
    except BrokenPipeError:
        return False
    return True


def _ask_for_room(asked: IO[bytes], answers: IO[bytes]) -> None:
    """Make NNCodec wait for its turn before it lays out a trellis, which takes 64 bytes an element."""
    from nncodec.nnc_core import approximator

    original: Callable[..., Any] = approximator.baseline.approx

    def approx(info: Mapping[str, Any], model_info: Any, given: Mapping[str, Any], **rest: Any) -> Any:
        if not any(info["dq_flag"].values()):
            return original(info, model_info, given, **rest)
        say(answers, (ROOM, max(array.size for array in given["parameters"].values())))
        hear(asked)
        try:
            return original(info, model_info, given, **rest)
        finally:
            say(answers, (LEFT, None))

    approximator.baseline.approx = approx
