"""What a sweep's run says of itself on its own page, in Markdown, without its children being loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracker.sweep.history import OUTCOME, RUN_ID, Past
from tracker.sweep.settings import DROP, RATE, SIZE
from tracker.tracking.summary import NOTE, link
from tracker.ui import views

if TYPE_CHECKING:
    from tracker.sweep.parent import SweepRun
    from tracker.sweep.sweep import Sweep

LONGEST = 7500  # letters of a description; MLflow keeps 8,000
SMALLEST = 10  # trials that are listed
MOST_COLUMNS = 8  # of parameters
COST = "time/decode_s"


def differing(sweep: Sweep, trials: Sequence[Any]) -> list[str]:
    """The parameters in which trials differ, in the space's order; all of them where there is one trial to show.

    Args:
        sweep: its space.
        trials: of the study.
    """
    if len(trials) < 2:
        return list(sweep.space)
    return [key for key in sweep.space if len({repr(one.params.get(key)) for one in trials}) > 1]


def describe(sweep: Sweep, run: SweepRun, best: Past | None, found: Mapping[str, Any]) -> None:
    """Describe the sweep's run, and give its experiment a view of the trials with what differs.

    Args:
        sweep: its trials are done.
        run: the sweep's own.
        best: the best trial, if one kept the constraints.
        found: what it gave on the split that figures are reported on.
    """
    trials = sweep.shared.study.get_trials(deepcopy=False)
    varied = differing(sweep, trials)
    view = _view(sweep, run, varied)
    # MLflow folds a description after a few lines: what matters most comes first.
    head = "\n".join([_verdict(sweep, best, found), "", _links(sweep, run, found, view)])
    parts = [head, _summary(sweep, trials, varied), *_best(sweep, best, found)]
    for count in range(SMALLEST, -1, -1):
        text = "\n\n".join([*parts, *_table(sweep, trials, varied[:MOST_COLUMNS], count)])
        if len(text) <= LONGEST:
            break
    run.set_tags({NOTE: text[:LONGEST]})


def _view(sweep: Sweep, run: SweepRun, varied: Sequence[str]) -> str:
    """The key of the view of this sweep's trials."""
    searched = [sweep.space[key] for key in varied]
    # A codec that is chosen is no parameter of its own in MLflow, but a tag.
    params = [".".join(filter(None, (one.key, one.entry))) for one in searched if not one.group][:MOST_COLUMNS]
    metrics = list(dict.fromkeys([*sweep.settings.directions, RATE, DROP]))
    order, direction = next(iter(sweep.settings.directions.items()))
    state = views.trials_view(run.id, order, direction == "minimize", params, metrics)
    key = f"sweep-{run.id[:8]}"
    run.client.set_experiment_tag(sweep.trials.experiment, f"{views.TAG}{key}", views.packed(state))
    return key


def _verdict(sweep: Sweep, best: Past | None, found: Mapping[str, Any]) -> str:
    """The best working point in a line."""
    if best is None:
        return "**No trial kept the constraints.**"
    if "transparent" in found:
        told = f"{found['size']:,} bytes, {found['rate_percent']:.2f} % of the anchor, drop {found['drop']:.4g} on the "
        return f"**Best: trial {best.number}, {told}report split: {_verdict_word(found['transparent'])}.**"
    return f"**Best: trial {best.number}, {_head(sweep.objective)} {_number(sweep.objective, best.value)}.**"


def _summary(sweep: Sweep, trials: Sequence[Any], varied: Sequence[str]) -> str:
    """What was searched."""
    objectives = " and ".join(f"{word} {name}" for name, word in sweep.settings.directions.items())
    kept = ", ".join([*(["transparent"] if sweep.settings.transparent else []), *sweep.settings.constraints])
    failed = len(sweep.history.failed)
    searched = ", ".join(f"`{_short(key)}` ({_values(trials, key)})" for key in varied[: 2 * MOST_COLUMNS])
    more = len(varied) - 2 * MOST_COLUMNS
    lines = [
        f"**{sweep.trials.title}**: {len(trials)} trials{f', {failed} failed' if failed else ''}; {objectives}"
        f"{f', {kept}' if kept else ''}.",
        f"Searched: {searched}{f' and {more} more' if more > 0 else ''}." if varied else "No parameter differed.",
    ]
    constant = [f"`{_short(key)}` {_values(trials, key)}" for key in sweep.space if key not in varied]
    if constant:
        lines.append(f"The same in all trials: {', '.join(constant[: 2 * MOST_COLUMNS])}.")
    return "\n".join(lines)


def _values(trials: Sequence[Any], key: str) -> str:
    """The values that a parameter took: a range of numbers, a few choices."""
    values = list(dict.fromkeys(one.params[key] for one in trials if key in one.params))
    if not values:
        return "never there"
    if len(values) > 3 and all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
        return f"{_text(min(values))} to {_text(max(values))}"
    return ", ".join(_text(one) for one in values[:6]) + (", …" if len(values) > 6 else "")


def _best(sweep: Sweep, best: Past | None, found: Mapping[str, Any]) -> list[str]:
    """The best working point, on the split that was searched and on that for figures, and its command line."""
    if best is None:
        return []
    seen = best.outcome.metrics
    reported = {SIZE: found.get("size"), RATE: found.get("rate_percent"), DROP: found.get("drop")}
    rows = [
        [_head(name), _number(name, seen.get(name)), _number(name, reported.get(name))]
        for name in dict.fromkeys([*sweep.settings.directions, SIZE, RATE, DROP])
        if name in seen
    ]
    transparent = best.outcome.violation is not None and best.outcome.violation <= 0
    rows.append(["transparent", _yes(transparent), _yes(found["transparent"]) if "transparent" in found else ""])
    heads = [f"trial {best.number}", "search split", "report split"]
    command = sweep.command(best.params).replace("`", "")
    if len(command) > LONGEST // 4:  # with a value for each layer
        command = "python -m tracker --config-dir working_point --config-name working_point"
    return [f"`{command}`", "\n".join(_markdown(heads, rows))]


def _links(sweep: Sweep, run: SweepRun, found: Mapping[str, Any], view: str) -> str:
    """Links to where the figures come from."""
    experiment = sweep.trials.experiment
    anchor = getattr(getattr(sweep.trials, "anchor", None), "run_id", None)
    links = [
        _link("best run", experiment, found.get("run_id")),
        _link("anchor", experiment, anchor),
        _model(run, found.get("run_id")),
        f"[all trials]({views.address('', experiment, view)})",
        f"[their parallel coordinates]({views.address('', experiment, view, 'CHART')})",
        link("plots", experiment, run.id, "plots/sweep.html"),
    ]
    return " · ".join(one for one in links if one)


def _model(run: SweepRun, run_id: str | None) -> str:
    """A link to the version of the registered model that the best run became."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return ""
    try:
        versions = run.client.search_model_versions(f"run_id = '{run_id}'")
    except MlflowException:  # a store without a registry
        return ""
    return " · ".join(
        f"[{one.name} version {one.version}](#/models/{one.name}/versions/{one.version})" for one in versions
    )


def _table(sweep: Sweep, trials: Sequence[Any], varied: Sequence[str], count: int) -> list[str]:
    """The best of the trials that kept all constraints, with what differs between trials."""
    kept = sorted(
        (past for past in sweep.history.past.values() if past.feasible and past.value is not None),
        key=lambda past: (sweep.history.sign * float(past.value or 0), past.number),
    )[:count]
    if not kept:
        return []
    ids = {one.number: one.user_attrs.get(OUTCOME, {}).get(RUN_ID) for one in trials}
    metrics = [
        name
        for name in dict.fromkeys([*sweep.settings.directions, RATE, DROP, COST])
        if any(name in past.outcome.metrics for past in kept)
    ]
    rows = [
        [
            _link(str(past.number), sweep.trials.experiment, ids.get(past.number)) or str(past.number),
            *(_number(name, past.outcome.metrics.get(name)) for name in metrics),
            *(_text(past.params[key]) if key in past.params else "" for key in varied),
        ]
        for past in kept
    ]
    lines = _markdown(["trial", *map(_head, metrics), *map(_short, varied)], rows)
    word = "smallest" if sweep.objective in (SIZE, RATE) else "best"
    return [f"The {len(kept)} {word} trials that kept all constraints, on the search split:", "\n".join(lines)]


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table's lines; MLflow sets its columns side by side without a space."""
    marks = ["---"] * len(heads)
    spaced = [[f"{cell}&emsp;" for cell in one] for one in ([*map(_cell, heads)], *rows)]
    return [f"| {' | '.join(one)} |" for one in (spaced[0], marks, *spaced[1:])]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _link(word: str, experiment: str, run_id: str | None) -> str:
    return link(word, experiment, run_id) if run_id else ""


def _number(name: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if name == SIZE else f"{value:.4g}"


def _text(value: Any) -> str:
    """A parameter's value in a cell."""
    return _cell(f"{value:.6g}" if isinstance(value, float) else str(value))


def _head(name: str) -> str:
    """A metric's name in a table."""
    return {SIZE: "bytes", RATE: "rate in %", DROP: "drop", COST: "decoding in s"}.get(name, name)


def _verdict_word(transparent: bool) -> str:
    return "transparent" if transparent else "not transparent"


def _yes(value: Any) -> str:
    return "yes" if value else "**no**"


def _short(key: str) -> str:
    return key.removeprefix("codec.").lstrip("+")
