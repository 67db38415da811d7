"""Optuna's samplers by name, each with its options.

A sampler is seeded anew for every trial, by a seed and the trial's place in the study: what it proposes depends on the
finished trials alone, so that a sweep that was interrupted goes on as if it had not been, and workers that join a study
do not all propose the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from tracker.component import Component
from tracker.errors import TrackerError
from tracker.sweep.distributions import continuous, values_of
from tracker.sweep.space import Parameter, active, in_order

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

Space = Mapping[str, Parameter]
MOST_COMBINATIONS = 100_000


class Sampler(Component):
    """What proposes a trial's values."""

    models_feasibility: ClassVar[bool] = False  # whether it wants every trial's constraints, and so full evaluations
    several_objectives: ClassVar[bool] = True
    can_be_moved: ClassVar[bool] = False  # whether its proposals may be replaced by better ones
    knows_constraints: ClassVar[bool] = True  # else a trial that breaks one is kept from it
    attempts: ClassVar[int] = 10  # at a proposal that was not tried yet
    remembers: ClassVar[int | None] = None  # of many trials the latest ones, and the best, that it looks at; None: all

    seed: int | None = Field(default=None, ge=0, description="null: hydra.sweeper.seed")

    def build(self, seed: int, place: int, space: Space, attempt: int = 0) -> BaseSampler:
        """Optuna's sampler for one trial.

        Args:
            seed: of the sweep; `seed` of this sampler goes before it.
            place: how many trials of the study came before.
            space: what is searched.
            attempt: at a proposal for this trial.
        """
        raise NotImplementedError

    def plan(self, seed: int, space: Space) -> list[dict[str, Any]] | None:
        """All trials in their order, for a sampler that knows them beforehand; else None.

        Raises:
            TrackerError: there are too many, or no end.
        """
        return None

    def at(self, seed: int, place: int, attempt: int = 0) -> int:
        """A seed of its own for each trial, and for each attempt at it."""
        import numpy as np

        own = seed if self.seed is None else self.seed
        return int(np.random.SeedSequence([own, place, attempt]).generate_state(1)[0])


class Tpe(Sampler):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), multivariate (Falkner et al. 2018)."""

    can_be_moved: ClassVar[bool] = True
    remembers: ClassVar[int | None] = 400
    n_startup_trials: int = Field(default=10, ge=0, description="trials drawn at random before it begins")
    n_ei_candidates: int = Field(default=24, ge=1)
    multivariate: bool = True

    _kept: Any = PrivateAttr(default=None)

    def build(self, seed: int, place: int, space: Space, attempt: int = 0) -> BaseSampler:
        """See `Sampler.build`; one object for all trials, as a new one would look through all of them anew."""
        from optuna.samplers import TPESampler

        if self._kept is None:
            self._kept = TPESampler(
                n_startup_trials=self.n_startup_trials,
                n_ei_candidates=self.n_ei_candidates,
                multivariate=self.multivariate,
                group=self.multivariate and any(parameter.when for parameter in space.values()),
            )
        for random in (self._kept._rng, self._kept._random_sampler._rng):
            random.rng.seed(self.at(seed, place, attempt))
        return self._kept


class Gp(Sampler):
    """Gaussian process with constrained expected improvement."""

    can_be_moved: ClassVar[bool] = True
    models_feasibility: ClassVar[bool] = True
    attempts: ClassVar[int] = 2  # each fits the process anew, and seldom proposes anything else

    n_startup_trials: int = Field(default=10, ge=0)
    deterministic_objective: bool = True

    def build(self, seed: int, place: int, space: Space, attempt: int = 0) -> BaseSampler:
        """See `Sampler.build`."""
        from optuna.samplers import GPSampler

        return GPSampler(
            n_startup_trials=self.n_startup_trials,
            deterministic_objective=self.deterministic_objective,
            seed=self.at(seed, place, attempt),
        )


class NsgaII(Sampler):
    """Genetic algorithm for several objectives (Deb et al. 2002)."""

    models_feasibility: ClassVar[bool] = True

    population_size: int = Field(default=20, ge=2)
    mutation_prob: float | None = Field(default=None, ge=0, le=1)
    crossover_prob: float = Field(default=0.9, ge=0, le=1)
    swapping_prob: float = Field(default=0.5, ge=0, le=1)

    def build(self, seed: int, place: int, space: Space, attempt: int = 0) -> BaseSampler:
        """See `Sampler.build`."""
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(
            population_size=self.population_size,
            mutation_prob=self.mutation_prob,
            crossover_prob=self.crossover_prob,
            swapping_prob=self.swapping_prob,
            seed=self.at(seed, place, attempt),
        )


class CmaEs(Sampler):
    """Covariance matrix adaptation (Hansen and Ostermeier 2001), for numbers; other parameters are drawn at random."""

    models_feasibility: ClassVar[bool] = True
    several_objectives: ClassVar[bool] = False
    knows_constraints: ClassVar[bool] = False

    n_startup_trials: int = Field(default=1, ge=0)
    sigma0: float | None = Field(default=None, gt=0)
    popsize: int | None = Field(default=None, ge=2)
    with_margin: bool = Field(default=True, description="keep integers from settling too early (Hamano et al. 2022)")

    def build(self, seed: int, place: int, space: Space, attempt: int = 0) -> BaseSampler:
        """See `Sampler.build`."""
        from optuna.samplers import CmaEsSampler

        return CmaEsSampler(
            n_startup_trials=self.n_startup_trials,
            sigma0=self.sigma0,
            popsize=self.popsize,
            with_margin=self.with_margin,
            warn_independent_sampling=False,
            seed=self.at(seed, place, attempt),
        )


class Qmc(Sampler):
    """A quasi-random sequence, the same for all workers (Bergstra and Bengio 2012)."""

    qmc_type: Literal["sobol", "halton"] = "sobol"
    scramble: bool = True

    def build(self, seed: int, place: int, space: Space, attempt: int = 0) -> BaseSampler:
        """See `Sampler.build`; one sequence for the study, so one seed."""
        from optuna.samplers import QMCSampler, RandomSampler

        return QMCSampler(
            qmc_type=self.qmc_type,
            scramble=self.scramble,
            seed=self.at(seed, 0),
            independent_sampler=RandomSampler(seed=self.at(seed, place, attempt)),
            warn_independent_sampling=False,
            warn_asynchronous_seeding=False,
        )


class Random(Sampler):
    """Independent uniform draws."""

    def build(self, seed: int, place: int, space: Space, attempt: int = 0) -> BaseSampler:
        """See `Sampler.build`."""
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=self.at(seed, place, attempt))


class Grid(Random):
    """All combinations, both ends of every range included, in an order drawn once."""

    points: int = Field(default=11, ge=2, description="values of a continuous parameter")

    def plan(self, seed: int, space: Space) -> list[dict[str, Any]]:
        """See `Sampler.plan`."""
        import numpy as np

        found = list(itertools.islice(self._combinations(list(in_order(space)), {}), MOST_COMBINATIONS + 1))
        if len(found) > MOST_COMBINATIONS:
            raise TrackerError(
                f"hydra.sweeper.sampler: the grid has more than {MOST_COMBINATIONS:,} points; narrow the space, or "
                "take another sampler, such as tpe"
            )
        order = np.random.default_rng(self.at(seed, 0)).permutation(len(found))
        return [found[index] for index in order]

    def _combinations(
        self, parameters: Sequence[tuple[str, Parameter]], chosen: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        if not parameters:
            yield chosen
            return
        (key, parameter), *rest = parameters
        if not active(parameter, chosen):
            yield from self._combinations(rest, chosen)
            return
        for value in values_of(parameter.distribution, self.points):
            yield from self._combinations(rest, {**chosen, key: value})


class BruteForce(Grid):
    """All combinations of discrete parameters."""

    def plan(self, seed: int, space: Space) -> list[dict[str, Any]]:
        """See `Sampler.plan`.

        Raises:
            TrackerError: a parameter is continuous.
        """
        for key, parameter in space.items():
            if continuous(parameter.distribution):
                raise TrackerError(
                    f"{key} is continuous, and brute force needs an end: write range(first,last,step), or use "
                    "hydra.sweeper.sampler=grid"
                )
        return super().plan(seed, space)


NAMES: dict[str, type[Sampler]] = {
    "tpe": Tpe,
    "gp": Gp,
    "nsgaii": NsgaII,
    "cmaes": CmaEs,
    "qmc": Qmc,
    "random": Random,
    "grid": Grid,
    "brute_force": BruteForce,
}
