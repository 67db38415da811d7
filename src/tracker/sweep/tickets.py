"""A lock for a storage that has none, made of what every storage has: trials, which are numbered in order."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tracker.sweep.alive import OWNER, Heart, Watch, this_process

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

SECONDS_BETWEEN_LOOKS = 0.05


class TicketLock:
    """The holder is whose trial, of a study that serves for nothing else, has the lowest number of those that run.

    Lamport's bakery algorithm (1974), with the storage as the machine that gives out numbers. The ticket of a process
    that was killed is put aside by those who wait, as an abandoned trial is.
    """

    def __init__(self, backend: BaseStorage, name: str) -> None:
        import optuna

        study = optuna.create_study(study_name=f"{name} (lock)", storage=backend, load_if_exists=True)
        self.backend, self.study_id, self.watch = backend, study._study_id, Watch()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold it, once all who asked before have given it back."""
        from optuna.trial import TrialState, create_trial

        mine = create_trial(state=TrialState.RUNNING, system_attrs={OWNER: this_process()})
        ticket = self.backend.create_new_trial(self.study_id, mine)
        try:
            with Heart(self.backend, ticket):
                while not self._first(ticket):
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                yield
        finally:
            self._end(ticket)

    def _first(self, ticket: int) -> bool:
        """Whether no ticket before this one is left."""
        from optuna.trial import TrialState

        number = self.backend.get_trial_number_from_id(ticket)
        running = self.backend.get_all_trials(self.study_id, deepcopy=False, states=(TrialState.RUNNING,))
        before = [trial for trial in running if trial.number < number]
        for trial in before:
            if self.watch.abandoned(trial):
                self._end(trial._trial_id)
        return not before

    def _end(self, ticket: int) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        with contextlib.suppress(UpdateFinishedTrialError):  # another found the same one abandoned
            self.backend.set_trial_state_values(ticket, TrialState.PRUNED)
