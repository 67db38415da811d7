"""Running text, cut into passages, for language modelling."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import Field

from tracker.data.base import Data, Decoded, Samples, Split, data_root
from tracker.errors import TrackerError


class Text(Data):
    """The ``*.txt`` files of a folder, joined in the order of their names and cut into passages of `characters`.

    Of the passages, every fifth is for calibration; of the others, even ones are for search and odd ones for report.
    """

    name: str = "text"
    root: Path | None = None
    characters: int = Field(default=2000, ge=16, description="length of a passage, in characters")
    passages: int | None = Field(default=None, ge=10, description="use only so many")

    def _passages(self, split: Split) -> list[str]:
        root = data_root(self.root, "the text as *.txt files (UTF-8)")
        paths = sorted(root.glob("*.txt"))
        if not paths:
            raise TrackerError(f"data.root={root} holds no *.txt files")
        try:
            text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
        except UnicodeDecodeError as error:
            raise TrackerError(f"data.root={root}: a file is not UTF-8 text ({error.reason})") from error
        cut = [text[i : i + self.characters] for i in range(0, len(text), self.characters)][: self.passages]
        if len(cut) < 10:
            raise TrackerError(
                f"data.root={root} has only {len(cut)} passages of {self.characters} characters; at least 10 are needed"
            )
        others = [passage for i, passage in enumerate(cut) if i % 5]
        return {
            "calibration": cut[::5],
            "search": others[::2],
            "report": others[1::2],
            "all": others,
        }[split]

    def samples(self, split: Split) -> Samples:
        """(passage, passage): the target of a language model is its own input."""
        return Decoded(self._passages(split), lambda passage: (passage, passage))

    def digest(self, split: Split) -> str:
        """Over the passages."""
        return hashlib.sha256("\0".join(self._passages(split)).encode()).hexdigest()
