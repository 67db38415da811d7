"""torch.export programs (.pt2): read without unpickling, and run on batches of any size."""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import zstandard
from torch import Tensor, nn
from torch.fx import GraphModule

from tracker.anchors.base import output_tensor
from tracker.anchors.zoo import one_line, tensors_only
from tracker.errors import TrackerError
from tracker.memory import physical_bytes

# What torch.export.load would unpickle or load as machine code, whatever it is told.
OBJECTS = ("custom_obj_", "opaque_obj_")
OPERATORS = re.compile(r"torch\.(ops\.[\w.]+|_?sym_\w+)|_operator\.\w+|math\.\w+")
WEIGHT = re.compile(r"/data/weights/weight_\d+$")
ARITHMETIC = (
    ast.Expression,
    ast.Name,
    ast.expr_context,
    ast.keyword,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
)


def read_program(path: Path, key: str) -> GraphModule:
    """The module of a program that ``torch.export.save`` wrote.

    ``torch.export.load`` unpickles parts of the file and evaluates others: those that could run code are refused
    before. torch itself advises to load no program of a source that is not trusted, and that holds here too.

    Args:
        path: the .pt2 file.
        key: the config key that names it, for error messages.

    Raises:
        TrackerError: no such file, a damaged one, one that could run code, or a program exported for training.
    """
    if not path.is_file():
        raise TrackerError(f"{key}: {path} does not exist; give a file that torch.export.save wrote")
    try:
        file = _opened(path, key)
        check_archive(file, path, key)
        if isinstance(file, io.BytesIO):
            file.seek(0)
        with tensors_only():
            program = torch.export.load(file)
        try:
            # Its guards are Python code in the file; `run` checks the shapes itself.
            module = program.module(check_guards=False)
        except TypeError:  # torch before 2.9 has no guards
            module = program.module()
    except TrackerError:
        raise
    except pickle.UnpicklingError as error:
        raise could_run_code(path, key, "an object") from error
    except Exception as error:  # whatever torch makes of a damaged archive
        raise TrackerError(
            f"{key}: {path} cannot be read as a torch.export program ({one_line(error, 160)}); get the file again"
        ) from error
    return ready(module, path, key)


def write_architecture(path: Path, to: Path) -> None:
    """Write a program with zeros for weights, compressed: what `read_program` reads where ``.zst`` ends the name.

    Args:
        path: of the program.
        to: the file to write.
    """
    program = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(program, "w") as copy:  # torch reads none that is deflated
        for item in archive.infolist():
            weight = WEIGHT.search(item.filename) is not None
            copy.writestr(item, bytes(item.file_size) if weight else archive.read(item))
    to.write_bytes(zstandard.compress(program.getvalue()))


def _opened(path: Path, key: str) -> Path | io.BytesIO:
    """The file itself, or in memory what it was compressed from.

    Raises:
        TrackerError: it is larger than this machine's memory.
    """
    if path.suffix != ".zst":
        return path
    compressed = path.read_bytes()
    if zstandard.frame_content_size(compressed) > physical_bytes():
        raise TrackerError(f"{key}: {path} claims to unpack to more than this machine's memory: refused")
    return io.BytesIO(zstandard.decompress(compressed))


def check_archive(file: Path | io.BytesIO, path: Path, key: str) -> None:
    """Refuse what would run code when the program is loaded or called.

    Args:
        file: a zip archive.
        path: its name, for error messages.
        key: the config key that names it.

    Raises:
        TrackerError: there is such a thing.
    """
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise could_run_code(path, key, "the same record twice")
        for name in names:
            if "data/aotinductor/" in name or name.rsplit("/", 1)[-1].startswith(OBJECTS):
                raise could_run_code(path, key, name)
            if name.endswith(".json"):
                for field, text in strings(json.loads(archive.read(name))):
                    if suspicious(field, text):
                        raise could_run_code(path, key, f"{field} {text[:60]!r}")


def could_run_code(path: Path, key: str, what: str) -> TrackerError:
    """The one line for a file that holds more than a program of tensor operations."""
    return TrackerError(
        f"{key}: {path} holds more than tensors and their operations ({what}), and loading it could run code; "
        "use anchor=checkpoint with anchor.factory and the weights as safetensors"
    )


def strings(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """All strings in nested JSON, with the name of the field they are in."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from strings(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item, field)


def suspicious(field: str, text: str) -> bool:
    """Whether a string of a program's description would do more than name an operator, a symbol or a tensor."""
    if field == "path_name":
        return text.startswith(OBJECTS)
    if field == "target":
        return text.startswith(("torch", "_operator", "math")) and not OPERATORS.fullmatch(text)
    if field == "expr_str":  # torch gives it to sympy, which evaluates it as Python
        return not is_arithmetic(text)
    return False


def is_arithmetic(text: str) -> bool:
    """Whether an expression only combines symbols and numbers, by operators and sympy's or torch's own classes."""
    import sympy
    from torch.utils._sympy import functions

    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    for node in nodes:
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            called = getattr(functions, name, None) or getattr(sympy, name, None)
            if not (isinstance(called, type) and issubclass(called, sympy.Basic)):
                return False
        elif isinstance(node, ast.Constant):
            # The name of a symbol, or a number's digits; sympy would evaluate any longer text.
            if isinstance(node.value, str | bytes) and not re.fullmatch(r"[\w.+-]+", str(node.value)):
                return False
        elif not isinstance(node, ARITHMETIC):
            return False
    return True


def ready(module: GraphModule, path: Path, key: str) -> GraphModule:
    """Let the module be put into evaluation mode, which it has been in since its export.

    Raises:
        TrackerError: it was exported in training mode.
    """
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not re.search("norm|dropout", schema.name):
            continue
        for index, argument in enumerate(schema.arguments):
            given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            if argument.name in ("training", "train") and given is True:
                raise TrackerError(
                    f"{key}: {path} was exported in training mode ({node.name}); call model.eval() and export it again"
                )

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        if mode:
            raise TrackerError(f"{key}: {path} is a torch.export program, which cannot be trained")
        return self

    # A program's module refuses both, because its mode is part of its graph.
    object.__setattr__(module, "train", types.MethodType(train, module))
    object.__setattr__(module, "eval", types.MethodType(lambda self: self, module))
    return module


def run(module: GraphModule, inputs: Any) -> Tensor:
    """The output for a batch, in parts where the program was exported for a batch of fixed size.

    Raises:
        TrackerError: the inputs do not have the shapes that the program was exported for, or it fails.
    """
    named = isinstance(inputs, dict)
    tensors = list(inputs.values()) if named else list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    fixed = fixed_batch(module, tensors)

    def call(part: list[Tensor]) -> Tensor:
        try:
            output = module(**dict(zip(inputs, part, strict=True))) if named else module(*part)
        except (RuntimeError, AssertionError, TypeError, IndexError, ValueError) as error:
            where = "; device=cpu may help" if part[0].device.type != "cpu" else ""
            raise TrackerError(
                f"the torch.export program fails on a batch of {len(part[0])} ({one_line(error, 160)}){where}; set "
                "task.batch_size to that of the example it was exported with, or export it with a dynamic batch"
            ) from error
        return output_tensor(output)

    count = len(tensors[0])
    if fixed is None or fixed == count:
        return call(tensors)
    outputs = []
    for start in range(0, count, fixed):
        part = [tensor[start : start + fixed] for tensor in tensors]
        lacking = fixed - len(part[0])
        padded = [torch.cat([tensor, tensor[-1:].expand(lacking, *tensor.shape[1:])]) for tensor in part]
        output = call(padded)
        if not output.ndim or len(output) != fixed:
            raise TrackerError(
                f"the torch.export program was exported for batches of {fixed}, and its output has no such dimension; "
                f"set task.batch_size={fixed}, or export it with a dynamic batch"
            )
        outputs.append(output[: fixed - lacking])
    return torch.cat(outputs)


def fixed_batch(module: GraphModule, tensors: list[Tensor]) -> int | None:
    """The batch size that a program is bound to, by the example that it was exported with; None where it is free.

    Raises:
        TrackerError: the tensors differ from the example in other dimensions.
    """
    nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
    shapes = [tuple(getattr(node.meta.get("val"), "shape", ())) for node in nodes]
    if len(shapes) != len(tensors):
        raise TrackerError(
            f"the torch.export program takes {len(shapes)} inputs, but preprocessing gives {len(tensors)}; "
            "set anchor.transform to a callable that gives a tuple or dict of them"
        )
    for shape, tensor in zip(shapes, tensors, strict=True):
        given = tuple(tensor.shape)
        fits = len(shape) == len(given) and all(
            not isinstance(wanted, int) or wanted == size for wanted, size in zip(shape[1:], given[1:], strict=True)
        )
        if not fits:
            wanted = ", ".join(str(size) if isinstance(size, int) else "any" for size in shape[1:])
            raise TrackerError(
                f"the torch.export program takes samples of shape ({wanted}), but preprocessing gives {given[1:]}; "
                "set anchor.transform to what it was trained with"
            )
    sizes = {shape[0] if isinstance(shape[0], int) else None for shape in shapes if shape}
    return sizes.pop() if len(sizes) == 1 else None
