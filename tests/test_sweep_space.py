"""The search space: Hydra's sweep syntax, conditions, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra

from tracker.__main__ import config_folder
from tracker.errors import TrackerError
from tracker.sweep.conditions import excess, read_bound, read_comparison
from tracker.sweep.distributions import shown, values_of
from tracker.sweep.finish import anywhere
from tracker.sweep.history import History
from tracker.sweep.planner import next_index
from tracker.sweep.proposing import Proposing
from tracker.sweep.samplers import NAMES
from tracker.sweep.space import read_space, settled, suggest


@pytest.fixture
def loader() -> Iterator[ConfigLoader]:
    with initialize_config_dir(config_folder(), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("a=range(-28,-24)", [-28, -27, -26, -25, -24]),
        ("a=range(1,6,2)", [1, 3, 5]),
        ("a=range(0.1,0.5,0.1)", [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("a=choice(x,2,0.5,true)", ["x", 2, 0.5, True]),
        ("a=x,y", ["x", "y"]),
        ("a=int(interval(1,3))", [1, 2, 3]),
        ("a=interval(0,1)", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("a=tag(log,interval(1,16))", [1.0, 2.0, 4.0, 8.0, 16.0]),
        ("a=tag(log,int(interval(1,16)))", [1, 2, 4, 8, 16]),
        ("+codec=glob(int*)", ["int4", "int8"]),
        ("+codec=[svd,nnc],nnc", ["[svd,nnc]", "nnc"]),
    ],
)
def test_sweep_syntax_gives_these_values_both_ends_included(word: str, values: list[Any], loader: ConfigLoader) -> None:
    space, fixed = read_space({}, [word], loader)
    (parameter,) = space.values()
    assert fixed == []
    found = values_of(parameter.distribution, 5)
    assert found == (pytest.approx(values) if isinstance(values[0], float) else values)
    assert [type(one) for one in found] == [type(one) for one in values]
    assert parameter.group == word.startswith("+codec")
    again, _ = read_space({}, [f"{word.partition('=')[0]}={shown(parameter.distribution)}"], loader)
    assert [one.distribution for one in again.values()] == [parameter.distribution]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("a=range(5,1)", "it is empty"),
        ("a=interval(2,1)", "it is empty"),
        ("a=range(1,5,0)", "step"),
        ("a=tag(log,interval(0,1))", "above 0"),
        ("+codec=glob(nothing*)", "no choice"),
        ("a=choice(", "cannot be read"),
    ],
)
def test_an_impossible_space_is_refused_in_one_line(word: str, told: str, loader: ConfigLoader) -> None:
    with pytest.raises(TrackerError, match=told) as caught:
        read_space({}, [word], loader)
    assert "\n" not in str(caught.value)
    assert word.split("=")[0] in str(caught.value)


def test_the_command_line_goes_before_the_sweep_file(loader: ConfigLoader) -> None:
    params = {"codec.nnc.qp": "range(-40,-8)", "codec.nnc.sparsity": "interval(0,0.5)", "codec.nnc.bnf": "true,false"}
    space, fixed = read_space(params, ["+codec=nnc", "codec.nnc.qp=range(-28,-26)", "codec.nnc.bnf=true"], loader)
    assert values_of(space["codec.nnc.qp"].distribution, 2) == [-28, -27, -26]
    assert sorted(space) == ["codec.nnc.qp", "codec.nnc.sparsity"]
    assert fixed == ["+codec=nnc", "codec.nnc.bnf=true"]


def test_a_parameter_is_there_only_where_its_condition_holds(loader: ConfigLoader) -> None:
    params = {
        "b": {"space": "range(1,2)", "when": "a==on"},  # before the parameter that decides about it
        "a": "choice(on,off)",
        "c": {"space": "range(1,2)", "when": "b>1"},
        "d": {"space": "range(1,2)", "when": "fixed>3"},
        "e": {"space": "range(1,2)", "when": "fixed<3"},
        "f": {"space": "range(1,2)", "when": "d==1"},
    }
    space, _ = read_space(params, [], loader)
    space = settled(space, {"fixed": 1}.get)
    assert sorted(space) == ["a", "b", "c", "e"]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(60):
        trial = study.ask()
        chosen = suggest(trial, space)
        seen.add(tuple(sorted(chosen.items())))
        study.tell(trial, 0.0)
    wanted = {(("a", "off"), ("e", e)) for e in (1, 2)}
    wanted |= {(("a", "on"), ("b", 1), ("e", e)) for e in (1, 2)}
    wanted |= {(("a", "on"), ("b", 2), ("c", c), ("e", e)) for c in (1, 2) for e in (1, 2)}
    assert seen == wanted
    # A grid has exactly these, each once.
    plan = NAMES["brute_force"]().plan(0, space)
    assert plan is not None
    assert sorted(tuple(sorted(point.items())) for point in plan) == sorted(wanted)


def test_conditions_in_a_circle_are_refused(loader: ConfigLoader) -> None:
    params = {"a": {"space": "1,2", "when": "b==1"}, "b": {"space": "1,2", "when": "a==1"}}
    space, _ = read_space(params, [], loader)
    with pytest.raises(TrackerError, match="circle"):
        NAMES["grid"]().plan(0, space)


def test_whole_intervals_of_an_integer_option_are_integers(loader: ConfigLoader) -> None:
    space, _ = read_space({}, ["a=interval(-3,2)", "b=interval(-3,2)", "c=interval(0.5,2)"], loader)
    space = settled(space, {"a": 1, "b": 1.0, "c": 1}.get)
    kinds = {key: type(one.distribution).__name__ for key, one in space.items()}
    assert kinds == {"a": "IntDistribution", "b": "FloatDistribution", "c": "FloatDistribution"}


def test_a_grid_too_large_is_refused(loader: ConfigLoader) -> None:
    space, _ = read_space({}, [f"{name}=range(1,40)" for name in "abcd"], loader)
    with pytest.raises(TrackerError, match="100,000"):
        NAMES["grid"]().plan(0, space)


@pytest.mark.parametrize("name", ["tpe", "gp", "nsgaii", "cmaes", "qmc", "random"])
def test_every_sampler_proposes_the_same_again_for_the_same_history(name: str, loader: ConfigLoader) -> None:
    space, _ = read_space({}, ["a=range(1,40)", "b=interval(0,1)"], loader)

    def values(seed: int, count: int) -> list[tuple[float, ...]]:
        study = optuna.create_study()
        found = []
        for place in range(count):
            study.sampler = NAMES[name]().build(seed, place, space)
            trial = study.ask()
            chosen = suggest(trial, space)
            trial.set_constraint("c", chosen["a"] - 30)
            study.tell(trial, chosen["a"] + chosen["b"])
            found.append((chosen["a"], chosen["b"]))
        return found

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    first = values(1, 14)
    assert values(1, 14) == first
    assert values(2, 14) != first
    assert len(set(first)) > 10  # not the same draw for every trial


@pytest.mark.parametrize("name", ["tpe", "gp", "nsgaii", "cmaes", "qmc", "random"])
def test_no_sampler_proposes_a_point_again_while_there_are_others(name: str, loader: ConfigLoader) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space, _ = read_space({"c": {"space": "range(0,2)", "when": "b==x"}}, ["a=range(0,3)", "b=x,y"], loader)
    study, history, sampler = optuna.create_study(), History("size", "minimize"), NAMES[name](seed=3)
    found = []
    for place in range(18):
        history.read(study.trials)
        study.sampler = Proposing(
            lambda attempt, place=place: sampler.build(0, place, space, attempt),
            space,
            None,
            history,
            0.1,
            sampler.attempts,
        )
        trial = study.ask()
        values = suggest(trial, space)
        trial.set_constraint("c", values["a"] - 2)
        study.tell(trial, values["a"] + values.get("c", 0))
        found.append(str(sorted(values.items())))
    assert len(set(found[:16])) == 4 * (3 + 1)  # all there are
    assert set(found[16:]) <= set(found[:16])


def test_a_sampler_that_looks_at_all_trials_sees_the_latest_and_the_best(loader: ConfigLoader) -> None:
    seen: list[list[int]] = []

    class Looks(optuna.samplers.RandomSampler):
        def sample_relative(self, study, trial, search_space):
            seen.append([one.number for one in study.get_trials(deepcopy=False)])
            seen.append([one.number for one in study._get_trials(deepcopy=False)])
            return {}

    space, _ = read_space({}, ["a=interval(0,1)"], loader)
    study, history = optuna.create_study(), History("size", "minimize")
    for number in range(60):
        outcome = {"metrics": {"size": float(100 + (number - 30) ** 2)}}
        study.add_trial(optuna.create_trial(value=1.0, user_attrs={"outcome": outcome}))
    history.read(study.trials)
    study.sampler = Proposing(lambda attempt: Looks(), space, None, history, 0.1, 1, remembers=10)
    suggest(study.ask(), space)  # which is when a sampler is asked
    assert seen[1] == [*range(18, 43), *range(50, 60)]  # the 25 smallest, and ten


def test_a_transparent_trial_is_the_best_of_several_objectives() -> None:
    def history(prefers: bool) -> History:
        found = History("size", "minimize", prefers_transparent=prefers)
        study = optuna.create_study(directions=["minimize", "minimize"])
        for size, violation in [(50.0, 0.4), (70.0, 0.0), (60.0, -0.1), (40.0, None)]:
            outcome = {"metrics": {"size": size}, "violation": violation}
            study.add_trial(optuna.create_trial(values=[size, violation or 0.0], user_attrs={"outcome": outcome}))
        found.read(study.trials)
        return found

    assert [history(prefers).best().number for prefers in (True, False)] == [2, 3]


def test_a_working_point_means_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"data": {"path": "x.safetensors", "name": "x"}, "seed": 0}
    found = anywhere(SimpleNamespace(paths=[("data", "path")]), config)
    assert found == {"data": {"path": str(tmp_path / "x.safetensors"), "name": "x"}, "seed": 0}
    assert config["data"]["path"] == "x.safetensors"


def test_bounds_are_read_and_measured() -> None:
    bound = read_bound("cost/mac_ratio<=0.6", "constraints")
    assert (bound.name, excess(bound, 0.7), excess(bound, 0.6)) == ("cost/mac_ratio", pytest.approx(0.1), 0)
    assert excess(read_bound("top1/decoded >= 0.9", "constraints"), 0.8) == pytest.approx(0.1)
    for wrong in ("cost/mac_ratio", "cost/mac_ratio<0.6", "a<=b", "a<=true"):
        with pytest.raises(TrackerError, match="constraints"):
            read_bound(wrong, "constraints")
    assert not read_comparison("a>1", "when").holds(None)


def walk(words: list[str], start: int, step: int, excess: list[float] | None = None) -> dict[int, str]:
    state: dict[int, str] = {}
    known: dict[int, float] = {}
    while (index := next_index(state, len(words), start, step, known)) is not None:
        assert index not in state
        state[index] = words[index]
        if excess is not None:
            known[index] = excess[index]
    return state


def test_the_search_along_a_parameter_finds_what_a_scan_finds() -> None:
    """Wherever good and bad alternate, as long as what is hopeless stays so."""
    random.seed(0)
    for _ in range(3000):
        count = random.randint(1, 33)
        edge = random.randint(0, count)
        words = [random.choice(["good", "bad"]) for _ in range(edge)] + ["hopeless"] * (count - edge)
        excess = [random.uniform(-1, 0) if word == "good" else random.uniform(0.1, 5) for word in words]
        state = walk(words, random.randrange(count), max(1, count // 8), random.choice([None, excess]))
        best = max((index for index, word in enumerate(words) if word == "good"), default=None)
        assert max((index for index, word in state.items() if word == "good"), default=None) == best, (words, state)


def test_the_search_along_qp_on_measured_drops() -> None:
    """ResNet-20's drops on the search split by qp, -36 to -20 (in points of top-1): -21 is good."""
    drops = [-0.04, -0.12, 0.12, -0.02, -0.3, 0.08, 0.08, -0.3, 0.06, 0.12, 0.06, 1.16, -0.06, 0.96, 1.2, 0.4, 3.78]
    words = ["good"] * 4 + ["good" if drop <= 0.5 else "hopeless" if drop > 2 else "bad" for drop in drops]
    excess = [-1.0] * 4 + [(drop - 0.5) / 0.5 for drop in drops]
    rest = 33 - len(words)
    state = walk([*words, *["hopeless"] * rest], 8, 4, [*excess, *[10.0] * rest])
    assert max(index for index, word in state.items() if word == "good") == 40 - 21
    assert len(state) <= 8


def test_the_search_along_qp_comes_back_from_a_near_miss() -> None:
    """A small Keras network, qp -40 to -8: -32 is good, -28 only just not, and so -29 is looked at before -22."""
    excess = [-1.0] * 8 + [-0.5, -0.4, -0.3, -0.2, 0.5, *(1.2 + 0.3 * k for k in range(20))]
    words = ["good" if one <= 0 else "hopeless" if one > 3 else "bad" for one in excess]
    state = list(walk(words, 8, 4, excess))
    assert state.index(11) <= 7


def test_seeds_of_trials_differ() -> None:
    sampler = NAMES["random"]()
    seeds = {sampler.at(seed, place) for seed in range(10) for place in range(100)}
    assert len(seeds) == 1000
    assert np.all([seed < 2**32 for seed in seeds])
