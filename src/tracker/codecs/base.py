"""What a codec's stages are: transforms, which change the model, and coders, which make bytes of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PrivateAttr

from tracker.codecs.records import Cost, Entry, Judged, Target, TensorRecord, Transformed
from tracker.component import Component
from tracker.errors import TrackerError

if TYPE_CHECKING:
    from torch import Tensor


def _nothing() -> Iterable[Any]:
    return ()


def _all(model: Any, context: Context) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True)
class Context:
    """What a stage may use besides the model: all of it on the sender's side.

    Attributes:
        predict: the anchor's `predict`, for stages that run the model.
        calibration: makes an iterable of calibration inputs (batches, without labels).
        seed: for whatever is random.
        device: the torch device to compute on.
        training: makes an iterable of the training split's inputs (batches, without labels).
        agreement: from a model's outputs and the anchor's for the same inputs, how well they agree: higher is better.
        anchor: the anchor's model, to run and not to change.
        folder: for files about the stage's work (a tool's log, encodings); they become artifacts of the run.
        key: a digest of what scores on the calibration split depend on, besides the model that is scored; part of the
            key under which they may be kept in the cache.
        framework: of the model: ``pytorch`` or ``keras``.
        classes: the dimension of the outputs over which a softmax gives probabilities; None where there is none.
        by_choice: whether only the likeliest class counts.
        judge: what the split for decisions says of a model; the figures are not reported on it.
        judged: a digest of what that depends on, besides the model and the target.
        state: a model's tensors by name, as the coder gets them and more.
        target: of stages that find the working point themselves.
        coder: the last stage of the chain.
        size: bytes of the bitstream that the coder makes of what a transform gives.
        steps, exact, dependent: those of the `Transformed` before.
        remaining: the `Transform.remaining` of the stages of the chain that are going to work.
        unrounded: the model before a stage made its weights multiples of step sizes; None where none has.
        kept: what stages made once for a run and need again, by a name of theirs.
    """

    predict: Callable[[Any, Any], Tensor]
    calibration: Callable[[], Iterable[Any]]
    seed: int
    device: str
    training: Callable[[], Iterable[Any]] = _nothing
    agreement: Callable[[Tensor, Tensor], float] | None = None
    anchor: Any = None
    folder: Path | None = None
    key: Callable[[], str] = str
    framework: str = "pytorch"
    classes: int | None = None
    by_choice: bool = True
    judge: Callable[[Any], Judged] | None = None
    judged: Callable[[], str] = str
    state: Callable[[Any], Mapping[str, Tensor]] = dict
    target: Target = field(default_factory=Target)
    coder: Coder | None = None
    size: Callable[[Transformed], int] | None = None
    steps: Mapping[str, float] = field(default_factory=dict)
    exact: Collection[str] = frozenset()
    dependent: Collection[str] = frozenset()
    remaining: Callable[[Any, Context], Mapping[str, float]] = _all
    unrounded: Any = None
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def likeliest(self) -> bool:
        """Whether there are classes of which only the likeliest counts: they stay the same though much else is lost."""
        return self.by_choice and self.classes is not None


class Stage(Component):
    """One link of a chain."""

    frameworks: ClassVar[frozenset[str]] = frozenset({"pytorch", "keras"})

    aims: ClassVar[bool] = False  # whether it always looks for the `Target`: by its `places`, or by itself in `apply`
    takes_steps: ClassVar[bool] = False  # whether it goes on with the step sizes that a stage before has given
    takes_unrounded: ClassVar[bool] = False  # whether it begins from what the model was before it was rounded

    _configured: str = PrivateAttr(default="")  # its name in the config, for messages

    def check(self) -> None:
        """Refuse what cannot work on this machine, before any work starts.

        Raises:
            TrackerError: a package or a command that the stage needs is not installed.
        """

    def check_model(self, model: Any, framework: str) -> None:
        """Refuse a model that the stage cannot work on, before any work starts.

        Args:
            model: the anchor's, filled; stages before this one will have changed it.
            framework: ``pytorch`` or ``keras``.

        Raises:
            TrackerError: it is of another framework, or has not what the configuration names.
        """
        if framework not in self.frameworks:
            names = " and ".join(sorted(self.frameworks))
            raise TrackerError(
                f"codec.{self._configured or type(self).__name__} works on models of {names} only, and the anchor is a "
                f"model of {framework}; leave the stage out"
            )

    def idle(self, model: Any, tensors: Mapping[str, Tensor], framework: str) -> Mapping[str, str]:
        """Options that change nothing about this model, with the reason: a sweep leaves them as they are.

        Args:
            model: the anchor's, filled.
            tensors: its state, by name.
            framework: ``pytorch`` or ``keras``.
        """
        return {}

    def entries(self, option: str, model: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Entry]:
        """The layers or tensors of this model for which an option may have a value of their own: a sweep searches each.

        Args:
            option: a field that is a mapping by name.
            model, tensors: as for `idle`.
        """
        return {}

    def places(self, model: Any, context: Context) -> Sequence[Stage]:
        """This stage configured for ever smaller bitstreams and worse models: a target is looked for among these.

        Args:
            model: as the stage will get it.
            context: what it may use.

        Returns:
            Empty where it has no such scale.
        """
        return ()

    def found(self) -> Mapping[str, float]:
        """What is logged of a stage that was chosen among `places`, by metric name."""
        return {}

    def prepare(self) -> None:
        """Import what takes seconds to import, so that it does not count as time of encoding or decoding."""


class Transform(Stage):
    """A stage on the sender's side that changes the model."""

    frameworks: ClassVar[frozenset[str]] = frozenset({"pytorch"})
    makes_integers: ClassVar[bool] = False  # whether it gives weights as integers, which a coder need not quantise
    makes_steps: ClassVar[bool] = False  # whether it gives step sizes, which all stages after it must take
    for_rounding: ClassVar[bool] = False  # whether it makes up for rounding and does nothing else
    final: ClassVar[bool] = False  # whether no other transform may follow, as it would undo this one's work
    answer: ClassVar[str] = ""  # the option in which its `places` differ

    def check_coder(self, coder: Coder) -> None:
        """Refuse a coder, as it is configured, that cannot code what this stage gives, before any work starts.

        Raises:
            TrackerError: it is such a one.
        """

    @abstractmethod
    def apply(self, model: Any, context: Context) -> Any:
        """The changed model; the given one may be changed in place.

        Returns:
            The model, where names and shapes of its tensors stay as they are; else a `Transformed`.
        """

    def remaining(self, model: Any, context: Context) -> Mapping[str, float]:
        """What is left of each tensor's squared error at the outputs, as a share, where this makes up for the rest.

        Args:
            model: in PyTorch, before it is rounded.
            context: what it may use.

        Returns:
            By name; tensors of which all is left need not be named.
        """
        return {}

    def divergence(self, model: Any, context: Context) -> float:
        """How far a model is from the anchor, where this begins at one that loses far more than the target allows.

        Args:
            model: may be changed.
            context: what it may use.
        """
        raise NotImplementedError

    def logged(self) -> Collection[str]:
        """Names that its `Transformed.metrics` may have: what a sweep may bound.

        One that gives a `Transformed.simulate` adds ``performance/simulated`` and ``performance/simulated_drop``.
        """
        return ()


class Coder(Stage):
    """The last stage: floating-point tensors to files, and back.

    A coder gets the tensors that it is for: floating point, at least one dimension, not empty, each storage once, all
    values finite. `tracker.bitstream` keeps everything else (integers, scalars, tied names, dtypes) beside it, so that
    every coder restores every state dict.
    """

    shows_progress: ClassVar[bool] = False  # whether `encode` has a progress bar of its own
    temporal: ClassVar[bool] = False  # whether `encode_difference` may use what was coded in the update before
    codes_integers: ClassVar[bool] = False  # whether `encode` also takes int32 tensors, and codes them without loss
    of_floats: ClassVar[frozenset[str]] = frozenset()  # options that do nothing about weights that are integers already
    rate_falls_with: ClassVar[str] = ""  # the option, if there is one, that makes bitstreams smaller as it gets larger

    @property
    def dependent(self) -> bool:
        """Whether it codes multiples of step sizes by dependent quantisation too, in the order of a tensor's values."""
        return False

    @property
    def own_steps(self) -> str:
        """An option, as it is set, with which it takes no step sizes of stages before; empty where it takes them."""
        return ""

    @property
    def uniform(self) -> float:
        """The step size of uniform integers with as large an error, over the step sizes that it takes and tells of."""
        return 1.0

    @abstractmethod
    def encode(self, tensors: Mapping[str, Tensor], folder: Path, model: Any, context: Context) -> list[TensorRecord]:
        """Write the files that the decoder reads.

        Args:
            tensors: by name; float16, bfloat16, float32 or float64, on the CPU; int32 where `codes_integers`.
            folder: empty; the coder's files go directly into it.
            model: the model that the tensors belong to, for coders that use its structure.
            context: what else the sender has.

        Raises:
            TrackerError: the tensors cannot be coded with this configuration.
        """

    def preview(self, tensors: Mapping[str, Tensor], model: Any, context: Context) -> Mapping[str, Tensor] | None:
        """What `decode` will give, without making the bytes; None where that is not cheaper.

        A sweep evaluates it before it has a bitstream made, where evaluating takes less time than coding.

        Args:
            tensors, model, context: as for `encode`.

        Raises:
            TrackerError: as `encode`.
        """
        return None

    def restated(self, tensors: Mapping[str, Tensor], model: Any, context: Context) -> Mapping[str, Tensor]:
        """What `decode` would give of a model's tensors, were nothing lost: what errors are against.

        Args:
            tensors: all of the model's, by name.
            model, context: as for `encode`.

        Returns:
            Without tensors that a decoder makes up.
        """
        return tensors

    def costs(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Sequence[Cost]]:
        """What each tensor costs by step size, ascending; for coders that take step sizes.

        Args:
            tensors: floating point, by name.
        """
        raise NotImplementedError

    def step_sizes(self, tensors: Mapping[str, Tensor]) -> Mapping[str, float]:
        """The step size that each tensor would get, by its configuration; for coders that take step sizes.

        Args:
            tensors: floating point, by name.
        """
        raise NotImplementedError

    def approximate(self, tensors: Mapping[str, Tensor], model: Any, context: Context) -> Mapping[str, Tensor] | None:
        """About what `decode` will give, by the same names; None where that is not cheaper than the bytes.

        Args:
            tensors, model, context: as for `encode`.

        Raises:
            TrackerError: as `encode`.
        """
        return self.preview(tensors, model, context)

    @abstractmethod
    def decode(self, folder: Path) -> Mapping[str, Tensor]:
        """The decoded tensors, of any floating-point dtype (integers as they were), with the shapes given to `encode`.

        Args:
            folder: holds the files that `encode` wrote, their digest verified.

        Raises:
            TrackerError: the files cannot be decoded.
        """

    def encode_difference(
        self,
        tensors: Mapping[str, Tensor],
        folder: Path,
        context: Context,
        carried: Mapping[str, Tensor],
        temporal: bool = False,
    ) -> list[TensorRecord]:
        """As `encode`, of differences that a receiver adds to what it has.

        Args:
            tensors, folder, context: as there.
            carried: what `decode_difference` gave with the update before.
            temporal: whether integers of that one at the same place may tell about those here.
        """
        if temporal:
            raise TrackerError(f"{type(self).__name__} has no temporal contexts: take nnc, or scenario.mode=difference")
        return self.encode(tensors, folder, None, context)

    def decode_difference(
        self, folder: Path, carried: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """What `encode_difference` was given, or nearly so; and what the next difference may refer to.

        Args:
            folder: as for `decode`.
            carried: as for `encode_difference`.
        """
        return self.decode(folder), {}

    def receiver(self) -> Coder:
        """The coder as the receiver has it: without the sender's configuration."""
        return type(self)()
