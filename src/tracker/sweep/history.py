"""What the finished trials of a study tell the next ones."""

from __future__ import annotations

import dataclasses
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracker.sweep.outcome import Outcome

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

OUTCOME, RUN_ID, ERROR = "outcome", "run_id", "error"
FIXED = "fixed_params"  # Optuna's attribute of an enqueued trial
RECENT = 20  # trials whose times tell what the next one will take


@dataclass(frozen=True)
class Past:
    """A finished trial that did not fail.

    Attributes:
        number: of the trial.
        params: its values.
        outcome: what it found.
        value: of the first objective; None where it was not measured.
        feasible: whether all constraints are kept; None where that was not measured.
    """

    number: int
    params: Mapping[str, Any]
    outcome: Outcome
    value: float | None
    feasible: bool | None


class History:
    """The finished trials, read once each.

    Attributes:
        past: by number.
        failed: why, by number.
        by_params: the first of each combination of values, by `key_of` them.
        by_content: by the digest of the decoded tensors.
        begun: keys of the trials that run, wait or have failed.
    """

    def __init__(self, objective: str, direction: str, prefers_transparent: bool = False) -> None:
        """Begin.

        Args:
            objective: the metric that decides which trial is the best.
            direction: ``minimize`` or ``maximize``.
            prefers_transparent: whether a trial that is transparent is better than any that is not, where both are
                feasible.
        """
        self.objective, self.sign = objective, 1 if direction == "minimize" else -1
        self.prefers_transparent = prefers_transparent
        self.past: dict[int, Past] = {}
        self.failed: dict[int, str] = {}
        self.by_params: dict[str, Past] = {}
        self.by_content: dict[str, Outcome] = {}
        self.times = {part: deque[float](maxlen=RECENT) for part in ("encode", "evaluate")}
        self.begun: set[str] = set()
        self._best: Past | None = None

    def read(self, trials: Iterable[FrozenTrial]) -> None:
        """Take in what has ended since; and what is running, waits or has failed, which is not tried again either."""
        from optuna.trial import TrialState

        self.begun = set()
        for trial in trials:
            if trial.number not in self.past and (not trial.state.is_finished() or trial.state == TrialState.FAIL):
                self.begun.add(key_of(trial.params or trial.system_attrs.get(FIXED, {})))
            if trial.number in self.past or trial.number in self.failed or not trial.state.is_finished():
                continue
            if trial.state == TrialState.FAIL:
                self.failed[trial.number] = str(trial.user_attrs.get(ERROR, "unknown"))
                continue
            outcome = read_outcome(trial)
            constraints = trial.constraints.values()
            feasible: bool | None = None
            if any(value > 0 for value in constraints):
                feasible = False
            elif trial.state == TrialState.COMPLETE:
                feasible = True
            past = Past(trial.number, trial.params, outcome, outcome.metrics.get(self.objective), feasible)
            self.past[trial.number] = past
            if self._is_best(past):
                self._best = past
            for part, times in self.times.items():
                if (seconds := outcome.metrics.get(f"time/{part}_s")) is not None:
                    times.append(seconds)
            self.by_params.setdefault(key_of(trial.params), past)
            if outcome.content is not None and outcome.violation is not None:
                self.by_content.setdefault(outcome.content, outcome)

    @property
    def ended(self) -> int:
        """How many trials have ended, failed ones included."""
        return len(self.past) + len(self.failed)

    def tried(self, key: str) -> bool:
        """Whether a combination of values has been tried, or is being tried."""
        return key in self.by_params or key in self.begun

    def best(self) -> Past | None:
        """The feasible trial with the best first objective; the first of equal ones."""
        return self._best

    def _is_best(self, past: Past) -> bool:
        if not past.feasible or past.value is None:
            return False
        return self._best is None or self._rank(past) < self._rank(self._best)

    def _rank(self, past: Past) -> tuple[bool, float, int]:
        """Less is better."""
        violation = past.outcome.violation
        opaque = self.prefers_transparent and not (violation is not None and violation <= 0)
        return opaque, self.sign * (past.value or 0.0), past.number

    def seconds(self) -> dict[str, float]:
        """Medians of the times that encoding and evaluating took in recent trials."""
        return {part: statistics.median(times) for part, times in self.times.items() if times}

    def since_best(self) -> int:
        """How many trials ended after the best one; all of them where there is none."""
        best = self.best()
        numbers = [*self.past, *self.failed]
        return len(numbers) if best is None else sum(number > best.number for number in numbers)


def key_of(params: Mapping[str, Any]) -> str:
    """A text that is the same for equal values; numbers that differ by rounding only are equal."""
    return repr(sorted((key, _text(value)) for key, value in params.items()))


def _text(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.12g}" if number else repr(value)


def read_outcome(trial: FrozenTrial) -> Outcome:
    """What a finished trial found."""
    kept = dict(trial.user_attrs.get(OUTCOME, {}))
    kept.pop(RUN_ID, None)
    return Outcome(**kept)


def stored(outcome: Outcome) -> dict[str, Any]:
    """An outcome as it is kept with its trial: plain JSON."""
    return dataclasses.asdict(outcome)
