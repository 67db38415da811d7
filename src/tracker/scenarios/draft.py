"""A model on its way through a chain, and what can be done with it there."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.bitstream import bitstream_bytes, decode_bitstream, encode_bitstream
from tracker.bitstream.state import coded_part, with_coded
from tracker.codecs.base import Context, Transform
from tracker.codecs.records import Integers, Judged, Transformed
from tracker.errors import TrackerError
from tracker.frameworks import Framework
from tracker.models import float_elements
from tracker.structure import Edit

if TYPE_CHECKING:
    from torch import Tensor

    from tracker.codecs.chain import Codec


@dataclasses.dataclass
class Draft:
    """The model on its way through a chain.

    Attributes:
        model: as the last transform left it.
        tensors: the model's.
        edits: all changes of the architecture, in order.
        integers: tensors that are integers and scales, by name.
        steps, exact, dependent: see `Transformed`.
        unrounded: see `Context`.
        mac_ratio: multiply-accumulate operations over those of the anchor.
        memory_ratio: memory of the weights over that of the anchor.
        simulate: see `Transformed`.
        rows: what each stage gave: the table stages.json.
    """

    model: Any
    tensors: Mapping[str, Tensor]
    edits: list[Edit] = dataclasses.field(default_factory=list)
    integers: dict[str, Integers] = dataclasses.field(default_factory=dict)
    steps: Mapping[str, float] = dataclasses.field(default_factory=dict)
    exact: Collection[str] = frozenset()
    dependent: Collection[str] = frozenset()
    unrounded: Any = None
    mac_ratio: float = 1.0
    memory_ratio: float = 1.0
    simulate: Callable[[Any], Any] | None = None
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def take(self, given: Transformed) -> None:
        """The draft after one more transform."""
        self.model = given.model
        self.edits += given.edits
        self.integers = dict(given.integers)  # a transform that leaves weights alone passes no integers on: it is final
        self.steps, self.exact, self.dependent = given.steps, given.exact, given.dependent
        self.mac_ratio *= given.mac_ratio
        self.memory_ratio *= given.memory_ratio
        self.simulate = given.simulate

    def context(self, context: Context) -> Context:
        """What the next stage may use."""
        return dataclasses.replace(
            context, steps=self.steps, exact=self.exact, dependent=self.dependent, unrounded=self.unrounded
        )

    def bytes(self) -> int:
        """Size without entropy coding: integers at their width with their scales, all else as float32."""
        rest = {name: tensor for name, tensor in self.tensors.items() if name not in self.integers}
        return 4 * float_elements(rest) + sum(quantised.bytes() for quantised in self.integers.values())


@dataclasses.dataclass(frozen=True)
class Workshop:
    """What a draft is worked on with.

    Attributes:
        framework: of the model.
        context: for the stages.
        scratch: a folder for files of the stages.
    """

    framework: Framework
    context: Context
    scratch: Path

    def begin(self, draft: Draft) -> Draft:
        """A draft with a model of its own, which stages may change in place."""
        return dataclasses.replace(
            draft, model=self.framework.copy(draft.model), edits=list(draft.edits), rows=list(draft.rows)
        )

    def careful(self) -> Workshop:
        """For the same work once more, without relying on classes that stay the same though much else is lost."""
        scratch = self.scratch / "careful"
        scratch.mkdir()
        return dataclasses.replace(self, context=dataclasses.replace(self.context, by_choice=False), scratch=scratch)

    def given(self, codec: Codec, draft: Draft, folder: Path | None = None) -> Context:
        """What the next stage of a chain may use."""
        size = functools.partial(self._size_after, codec, dataclasses.replace(draft))
        own = draft.context(self.context)
        return dataclasses.replace(own, folder=folder, coder=codec.coder, size=size, remaining=codec.remaining)

    def apply(self, codec: Codec, stage: Transform, draft: Draft, folder: Path) -> Any:
        """One transform of a chain; what it gave."""
        folder.mkdir()
        wanted = stage.makes_steps and any(other.takes_unrounded for other in codec.transforms.values())
        before = self.framework.copy(draft.model) if wanted and not draft.exact else None
        given = stage.apply(draft.model, self.given(codec, draft, folder))
        draft.take(given if isinstance(given, Transformed) else Transformed(given))
        if stage.takes_unrounded:
            draft.unrounded = None  # that was for it
        elif before is not None and draft.exact:
            draft.unrounded = before
        draft.tensors = self.context.state(draft.model)
        return given

    def through(self, codec: Codec, first: str, last: str, draft: Draft) -> Draft:
        """A draft after some transforms; the given one stays as it is.

        Args:
            codec: the chain.
            first: name of the stage that is the first of them.
            last: name of the stage before which they end, a transform or the coder.
            draft: as it comes to the first.
        """
        draft = self.begin(draft)
        names = codec.stages
        with tempfile.TemporaryDirectory(prefix="through-", dir=self.scratch) as folder:
            for name in names[names.index(first) : names.index(last)]:
                self.apply(codec, codec.transforms[name], draft, Path(folder) / name)
        return draft

    def size(self, codec: Codec, draft: Draft) -> int:
        """Bytes of a draft's bitstream."""
        with tempfile.TemporaryDirectory(prefix="size-", dir=self.scratch) as folder:
            self._encode(codec, draft, Path(folder))
            return bitstream_bytes(Path(folder))

    def judge(self, codec: Codec, draft: Draft) -> Judged:
        """What the split for decisions says of the model that will be decoded.

        Raises:
            TrackerError: there is no such split, or the model cannot be coded.
        """
        if self.context.judge is None:
            raise TrackerError("a drop is looked for on the search split, and the data have none")
        return self.context.judge(self._quantised(codec, draft))

    def divergence(self, codec: Codec, last: str, draft: Draft) -> float:
        """How far the classes of the model that will be decoded are from the anchor's; see `Transform.divergence`.

        Args:
            codec: the chain.
            last: its stage that begins there.
            draft: that the coder quantises.
        """
        return codec.transforms[last].divergence(self._quantised(codec, draft), self.context)

    def _quantised(self, codec: Codec, draft: Draft) -> Any:
        model = self.framework.copy(draft.model)
        self.framework.fill(model, self._decoded(codec, draft), "the quantised tensors")
        return model

    def _decoded(self, codec: Codec, draft: Draft) -> Mapping[str, Tensor]:
        """All tensors, as the decoder will give them or nearly so."""
        tensors = self.context.state(draft.model)
        if not draft.integers:
            own = draft.context(self.context)
            coded = codec.coder.approximate(coded_part(tensors), draft.model, own)
            if coded is not None:
                return with_coded(tensors, coded)
        with tempfile.TemporaryDirectory(prefix="judged-", dir=self.scratch) as folder:
            self._encode(codec, draft, Path(folder))
            return decode_bitstream(Path(folder), codec.coder.receiver())

    def _encode(self, codec: Codec, draft: Draft, folder: Path) -> None:
        model = self.framework.ready(self.framework.copy(draft.model), "cpu")
        own = draft.context(self.context)
        encode_bitstream(codec, self.context.state(model), model, folder, own, draft.edits, draft.integers)

    def _size_after(self, codec: Codec, draft: Draft, given: Transformed) -> int:
        """Bytes of the bitstream, if the next transform is the last one and gives that."""
        after = dataclasses.replace(draft, edits=list(draft.edits))
        after.take(given)
        return self.size(codec, after)
