"""An Optuna study that several processes share: who takes which trial, and what becomes of abandoned ones."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracker.errors import TrackerError
from tracker.sweep.alive import OWNER, Watch, this_process
from tracker.sweep.history import FIXED
from tracker.sweep.storage import Storage

if TYPE_CHECKING:
    import optuna
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)
SIGNATURE = "tracker:sweep"
INTERRUPTED, RETRIES, RETRY_OF = "tracker:interrupted", "tracker:retries", "tracker:retry_of"
ERROR = "error"
MOST_RETRIES = 3  # of a trial whose process was killed each time: it may be what kills it
SECONDS_BETWEEN_LOOKS = 0.5


class SharedStudy:
    """A study, as one of the processes that work on it sees it."""

    def __init__(self, storage: Storage, name: str, directions: Sequence[str], signature: Mapping[str, Any]) -> None:
        """Open or create a study.

        Args:
            storage: where it is kept.
            name: of the study.
            directions: ``minimize`` or ``maximize``, one for each objective.
            signature: what may not change within a study, by its word for the error message.

        Raises:
            TrackerError: there is a study of this name with another signature.
        """
        import optuna
        from optuna.study import StudyDirection

        self.storage, self.name, self.watch = storage, name, Watch()
        wanted = json.loads(json.dumps(dict(signature), default=str))
        with storage.locked(name):
            try:
                self.study = optuna.create_study(
                    study_name=name,
                    storage=storage.backend,
                    directions=[StudyDirection[word.upper()] for word in directions],
                    load_if_exists=True,
                )
            except Exception as error:  # an objective more or less than before
                raise TrackerError(f"the study {name} cannot be opened ({error}); give another study_name") from error
            found = self.study.user_attrs.get(SIGNATURE)
            if found is None:
                if self.study.get_trials(deepcopy=False):
                    raise TrackerError(f"the study {name} is not tracker's; give another hydra.sweeper.study_name")
                self.study.set_user_attr(SIGNATURE, wanted)
            elif found != wanted:
                changed = [word for word in wanted if found.get(word) != wanted[word]] or list(found)
                raise TrackerError(
                    f"the study {name} exists with {_difference(changed[0], found, wanted)}; give another "
                    "hydra.sweeper.study_name, or leave it out for one of its own"
                )

    def trials(self) -> list[FrozenTrial]:
        """All trials but those that were interrupted, which others have taken the place of."""
        everything = self.study.get_trials(deepcopy=False)
        return [trial for trial in everything if INTERRUPTED not in trial.system_attrs]

    def finished(self) -> list[FrozenTrial]:
        """The trials that have ended, failed ones included."""
        return [trial for trial in self.trials() if trial.state.is_finished()]

    def claim(
        self,
        most: int,
        decide: Callable[[list[FrozenTrial]], Mapping[str, Any] | None],
        sampler: Callable[[int], BaseSampler],
    ) -> optuna.Trial | None:
        """A trial for this process to run.

        Args:
            most: there are never more trials than this.
            decide: given all trials, values that are to be tried next whatever the sampler thinks, or None; it raises
                to begin no further trial.
            sampler: for the trial with this many before it.

        Returns:
            The trial; None while others run what is left, and when nothing is.
        """
        from optuna.trial import TrialState

        with self.storage.locked(self.name):
            trials = self._retried(self.study.get_trials(deepcopy=False))
            values = decide(trials)
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            if not waiting and len(trials) >= most:
                return None
            if not waiting and values is not None:
                self.study.enqueue_trial(dict(values))
            self.study.sampler = sampler(len(trials) - waiting)
            trial = self.study.ask()
            self.study._storage.set_trial_system_attr(trial._trial_id, OWNER, this_process())
        return trial

    def all_done(self, most: int) -> bool:
        """Whether no trial is running or left to run."""
        trials = self.trials()
        return len(trials) >= most and all(trial.state.is_finished() for trial in trials)

    def await_change(self) -> None:
        """Wait a moment for the other processes."""
        time.sleep(SECONDS_BETWEEN_LOOKS)

    def give_back(self, reason: str) -> None:
        """What this process was running ends as failed, and another takes its place with the same values.

        Also a trial that was made and not yet signed: whoever takes one signs it before giving the lock back.
        """
        from optuna.trial import TrialState

        with self.storage.locked(self.name):
            for trial in self.study.get_trials(deepcopy=False):
                if trial.state == TrialState.RUNNING and trial.system_attrs.get(OWNER) in (None, this_process()):
                    self._replace(trial, reason)

    def _retried(self, everything: list[FrozenTrial]) -> list[FrozenTrial]:
        """All trials but the interrupted ones, once others have taken the place of those that were abandoned."""
        from optuna.trial import TrialState

        changed = False
        for trial in everything:
            if trial.state.is_finished():
                continue
            if INTERRUPTED in trial.system_attrs:  # its process was killed on the way there
                self.study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            elif trial.state == TrialState.RUNNING and self._abandoned(trial):
                self._replace(trial, "killed: its process ended without a word")
                changed = True
        return self.trials() if changed else [trial for trial in everything if INTERRUPTED not in trial.system_attrs]

    def _abandoned(self, trial: FrozenTrial) -> bool:
        # Who takes a trial signs it before giving the lock back.
        return OWNER not in trial.system_attrs or self.watch.abandoned(trial)

    def _replace(self, trial: FrozenTrial, reason: str) -> None:
        """As Optuna's RetryHeartbeatStaleTrialCallback does, for every storage."""
        from optuna.trial import TrialState, create_trial

        retries = trial.system_attrs.get(RETRIES, 0)
        backend, identity = self.study._storage, trial._trial_id
        backend.set_trial_user_attr(identity, ERROR, reason)
        if retries < MOST_RETRIES:
            # The mark comes first: were this process killed here, one trial would be missing, and a new one fill in.
            backend.set_trial_system_attr(identity, INTERRUPTED, True)
            attributes = {RETRIES: retries + 1, RETRY_OF: trial.number}
            if FIXED in trial.system_attrs:
                attributes[FIXED] = trial.system_attrs[FIXED]
            self.study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    params=trial.params,
                    distributions=trial.distributions,
                    system_attrs=attributes,
                )
            )
        backend.set_trial_state_values(identity, TrialState.FAIL)


def _difference(word: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Such as ``another anchor (vdsr_set5, not digits)``."""
    before, now = found.get(word), wanted.get(word)
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        shown = ", ".join(keys[:3])
        return f"other {word} ({shown})"
    return f"another {word} ({str(before)[:60]}, not {str(now)[:60]})"
