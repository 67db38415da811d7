"""What a sweep wants of a scenario: trials, each measured only as far as it can still matter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tracker.sweep.conditions import Comparison, excess

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tracker.codecs.records import Entry
    from tracker.tracking.run import Run


@dataclass
class Outcome:
    """What a trial found.

    Attributes:
        metrics: by the name under which the run logs them; not those that were left out.
        violation: how far the drop lies beyond the tolerance, 0 or less where it is within; None where unknown.
        stopped: why the rest was left out; empty where all was measured.
        sha256: of the bitstream, where one was made.
        content: digest of the decoded tensors, where they were made: equal ones perform equally.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    violation: float | None = None
    stopped: str = ""
    sha256: str | None = None
    content: str | None = None


@dataclass(frozen=True)
class Limits:
    """What the study knows already, and what therefore need not be measured.

    Attributes:
        size: of the smallest transparent bitstream so far; a trial that is no smaller may stop. None: none may.
        confidence: an evaluation may stop once the drop is beyond the tolerance at this confidence; None: never.
        bounds: the user's on metrics; a trial may stop when it breaks one. Empty where every metric is wanted.
        evaluated: an earlier outcome with these decoded tensors, or None.
        seconds: medians of time/encode_s and time/evaluate_s of earlier trials.
    """

    size: float | None = None
    confidence: float | None = None
    bounds: tuple[Comparison, ...] = ()
    evaluated: Callable[[str], Outcome | None] = lambda content: None
    seconds: Mapping[str, float] = field(default_factory=dict)

    def broken(self, metrics: Mapping[str, float]) -> str:
        """Why measuring may stop, given what was measured; empty where it may not."""
        size = metrics.get("size/bitstream_bytes")
        if self.size is not None and size is not None and size >= self.size:
            return f"no smaller than the best transparent bitstream, {self.size:.0f} bytes"
        for bound in self.bounds:
            if bound.name in metrics and excess(bound, metrics[bound.name]) > 0:
                return f"{bound.name} is {metrics[bound.name]:.4g}: not {bound}"
        return ""


class Trials(ABC):
    """A scenario's side of a sweep: everything that is prepared once, and how a trial is measured.

    A scenario's config names its class by ``trials``; it is called with a `tracker.scenarios.Job`.

    Attributes:
        client: of the tracking store.
        uri: of the tracking store.
        experiment: the id of the experiment that the runs go to.
        title: what the sweep is about, for people.
        signature: what may not change within a study, by its word for messages.
        covered: sections of the configuration that the signature stands for.
    """

    client: MlflowClient
    uri: str
    experiment: str
    title: str
    signature: Mapping[str, Any]
    covered: Collection[str] = ()

    def varies(self, key: str) -> bool:
        """Whether trials may differ in a key of the configuration."""
        return True

    def metrics(self, config: Mapping[str, Any]) -> Collection[str] | None:
        """Names of the metrics that trials log; None where only a trial can tell."""
        return None

    def idle(self, config: Mapping[str, Any]) -> Mapping[str, str]:
        """Keys that change nothing in a trial, each with the reason."""
        return {}

    def entries(self, config: Mapping[str, Any], key: str) -> Mapping[str, Entry]:
        """The names for which an option may have a value of their own: what ``KEY.*`` stands for in a search space."""
        return {}

    def rate_falls_with(self, config: Mapping[str, Any]) -> str | None:
        """The key, if there is one, that makes bitstreams smaller as its value gets larger."""
        return None

    @abstractmethod
    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse a configuration that cannot work, without measuring it.

        Raises:
            TrackerError: it cannot.
        """

    @abstractmethod
    def start(self, config: Mapping[str, Any], overrides: list[str], name: str, tags: Mapping[str, str]) -> Run:
        """The MLflow run of a trial, to be entered."""

    @abstractmethod
    def measure(self, config: Mapping[str, Any], limits: Limits) -> Outcome:
        """Measure a trial.

        Args:
            config: composed, as plain containers.
            limits: what need not be measured.

        Raises:
            TrackerError: it failed.
        """

    def report(self, config: Mapping[str, Any], overrides: list[str], tags: Mapping[str, str]) -> Mapping[str, Any]:
        """Measure the chosen working point once more, on the split that figures are reported on, and keep its result.

        Returns:
            What it found; ``run_id`` where it made a run.
        """
        return {}
