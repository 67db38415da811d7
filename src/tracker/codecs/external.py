"""Any pair of encode and decode commands on files, such as MPEG's own NCTM software or a general compressor."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from tracker.cache import cache_folder
from tracker.codecs.base import Coder, Context
from tracker.codecs.records import TensorRecord
from tracker.errors import TrackerError

if TYPE_CHECKING:
    from torch import Tensor

FILE = "model.ext"


class External(Coder):
    """Tensors go to a file, a command codes it, another one decodes it again.

    In the commands ``{input}`` and ``{output}`` stand for file names; no shell is involved. The encoder's input and the
    decoder's output are files of the format `exchange`: ``safetensors``, ``pt`` (a state dict), or ``npz`` (float32
    arrays). A bitstream never says which command to run: the receiver gives it himself.
    """

    encode_command: str = Field(default="", description="such as 'xz --keep --stdout {input}'")
    decode_command: str = Field(default="", description="such as 'xz --decompress --stdout {input}'")
    exchange: Literal["safetensors", "pt", "npz"] = "safetensors"
    timeout_s: float = Field(default=3600, gt=0)

    @field_validator("encode_command", "decode_command")
    @classmethod
    def _parses(cls, command: str) -> str:
        shlex.split(command)
        if command and "{input}" not in command:
            raise ValueError("the command must contain {input}; without {output} its standard output is taken")
        return command

    def check(self) -> None:
        """Both commands must be given and exist."""
        for key, command in (
            ("encode_command", self.encode_command),
            ("decode_command", self.decode_command),
        ):
            words = shlex.split(command)
            if not words:
                raise TrackerError(f"codec.external.{key} is not set; give a command with {{input}} and {{output}}")
            if shutil.which(words[0]) is None:
                raise TrackerError(f"codec.external.{key}: {words[0]} is not installed or not on PATH")

    def encode(self, tensors: Mapping[str, Tensor], folder: Path, model: Any, context: Context) -> list[TensorRecord]:
        """Write the exchange file and run the encode command on it."""
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            exchange = Path(scratch) / f"model.{self.exchange}"
            self._write(tensors, exchange)
            self._run(self.encode_command, exchange, folder / FILE)
        return [TensorRecord(name) for name in tensors]

    def decode(self, folder: Path) -> Mapping[str, Tensor]:
        """Run the decode command and read the exchange file."""
        if not self.decode_command:
            raise TrackerError("the bitstream was made by an external command; give --decode-command 'COMMAND {input}'")
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            exchange = Path(scratch) / f"model.{self.exchange}"
            self._run(self.decode_command, folder / FILE, exchange)
            return self._read(exchange)

    def receiver(self) -> Coder:
        """With the decode command only."""
        return External(decode_command=self.decode_command, exchange=self.exchange, timeout_s=self.timeout_s)

    def _run(self, command: str, source: Path, target: Path) -> None:
        # Not str.format: commands such as awk's have braces of their own.
        names = {"{input}": str(source), "{output}": str(target)}
        pattern = re.compile(r"\{input\}|\{output\}")
        words = [pattern.sub(lambda found: names[found.group()], word) for word in shlex.split(command)]
        try:
            if "{output}" in command:
                subprocess.run(words, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=self.timeout_s)
            else:
                with target.open("wb") as file:
                    subprocess.run(
                        words,
                        check=True,
                        stdout=file,
                        stderr=subprocess.PIPE,
                        stdin=subprocess.DEVNULL,
                        timeout=self.timeout_s,
                    )
        except subprocess.CalledProcessError as error:
            lines = error.stderr.decode(errors="replace").strip().splitlines()
            said = f": {lines[-1]}" if lines else ""
            raise TrackerError(f"`{command}` ended with status {error.returncode}{said}") from error
        except subprocess.TimeoutExpired as error:
            raise TrackerError(f"`{command}` took more than {self.timeout_s:g} s; raise timeout_s") from error
        except OSError as error:
            raise TrackerError(f"`{command}` cannot be run ({error.strerror})") from error
        if not target.is_file() or target.stat().st_size == 0:
            raise TrackerError(f"`{command}` wrote nothing; does it name {{output}}, or write to standard output?")

    def _write(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        import numpy as np
        import torch
        from safetensors.torch import save_file

        from tracker.bitstream.state import own_memory

        if self.exchange == "safetensors":
            save_file(own_memory(tensors), path)
        elif self.exchange == "pt":
            torch.save(own_memory(tensors), path)
        else:
            # What np.savez does, which cannot write an array that is named `file`.
            with zipfile.ZipFile(path, "w") as archive:
                for name, tensor in tensors.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, tensor.float().contiguous().numpy(), allow_pickle=False)

    def _read(self, path: Path) -> Mapping[str, Tensor]:
        import numpy as np
        import torch
        from safetensors.torch import load_file

        try:
            if self.exchange == "safetensors":
                return load_file(path)
            if self.exchange == "pt":
                loaded = torch.load(path, map_location="cpu", weights_only=True)
                return {str(name): torch.as_tensor(value) for name, value in dict(loaded).items()}
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except Exception as error:  # whatever a reader makes of what the command wrote
            raise TrackerError(
                f"what `{self.decode_command}` wrote cannot be read as exchange={self.exchange} ({error})"
            ) from error
