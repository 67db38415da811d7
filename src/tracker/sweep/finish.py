"""What a sweep leaves when its trials are done: the best working point, measured once more, tables and plots."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf

from tracker.sweep.describe import describe, differing
from tracker.sweep.history import OUTCOME, RUN_ID, Past, read_outcome
from tracker.sweep.settings import DROP, RATE, SIZE
from tracker.sweep.worker import shown, tags_of
from tracker.tracking.discard import mark
from tracker.tracking.summary import ui_command

if TYPE_CHECKING:
    from tracker.sweep.parent import SweepRun
    from tracker.sweep.sweep import Sweep

log = logging.getLogger("tracker")
RESULT = "tracker:result"
POINT = "working_point"


def finish(sweep: Sweep, run: SweepRun, reason: str, folder: Path) -> dict[str, Any]:
    """Log what the sweep found: once, by whichever of the commands that share the study comes first.

    Args:
        sweep: its trials are done.
        run: the sweep's own.
        reason: why it ended before that, if it did.
        folder: for files on their way.

    Returns:
        The best working point's figures.
    """
    from tracker.sweep import plots

    shared, history = sweep.shared, sweep.history
    with shared.storage.locked(f"{shared.name} end"):
        history.read(shared.trials())
        best, ended = history.best(), history.ended
        done = shared.study.user_attrs.get(RESULT, {})
        known = done.get("found", {}) if done.get("trials") == ended and done.get("run_id") == run.id else None
        if known is None or run.discarded:
            mend_runs(sweep, run.id)
            run.log_table(rows(sweep), "trials.json")
            found = measured(sweep, run, best, folder, known or {}) if best is not None else {}
            run.log_metrics({"sweep/trials": ended, "sweep/failed": float(len(history.failed)), **figures(best, found)})
            plots.log_plots(sweep, run, folder)
            describe(sweep, run, best, found)
            if reason:
                run.set_tags({"tracker.ended": reason})
            done = {"trials": ended, "run_id": run.id, "found": found}
            shared.study.set_user_attr(RESULT, done)
    show(sweep, run, best, done["found"], reason)
    return {"run_id": run.id, "study": shared.name, "trials": ended, **done["found"]}


def measured(sweep: Sweep, run: SweepRun, best: Past, folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """The best working point on the split that figures are reported on, its bitstream and its configuration.

    Args:
        sweep: its trials are done.
        run: the sweep's own.
        best: the trial.
        folder: for files on their way.
        found: where it was measured before, what that gave.
    """
    config, overrides = sweep.config(best.params), sweep.overrides(best.params)
    point = folder / POINT
    shutil.rmtree(point, ignore_errors=True)
    point.mkdir()
    write_point(anywhere(sweep, config), overrides, sweep.command(best.params), point)
    run.log_folder(point, POINT)
    tags = {"mlflow.parentRunId": run.id, "tracker.study": sweep.shared.name, "tracker.trial": str(best.number)}
    if not found and sweep.settings.report:
        found = sweep.trials.report(config, overrides, tags)
    if found.get("run_id"):
        bitstream = Path(run.client.download_artifacts(found["run_id"], "bitstream", str(folder)))
        run.log_folder(bitstream, "bitstream")
        run.set_tags({"tracker.bitstream.sha256": found["sha256"], "tracker.best.run_id": found["run_id"]})
    if "transparent" in found:
        run.set_tags({"tracker.transparent": str(found["transparent"]).lower()})
    codec = ">".join(config.get("codec") or {})
    run.set_tags({"tracker.best.trial": str(best.number), **({"tracker.codec": codec} if codec else {})})
    return {key: value for key, value in found.items() if isinstance(value, str | int | float | bool)}


def anywhere(sweep: Sweep, config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that means the same from another folder."""
    found = {section: dict(node) if isinstance(node, Mapping) else node for section, node in config.items()}
    for section, key in sweep.paths:
        found[section][key] = str(Path(found[section][key]).expanduser().absolute())
    return found


def write_point(config: Mapping[str, Any], overrides: list[str], command: str, folder: Path) -> None:
    """A configuration that ``python -m tracker --config-dir FOLDER --config-name working_point`` runs again."""
    head = f"# python -m tracker --config-dir . --config-name {POINT}\n# as composed by: {command}"
    text = yaml.safe_dump({"defaults": ["base", "_self_"]}) + OmegaConf.to_yaml(OmegaConf.create(dict(config)))
    (folder / f"{POINT}.yaml").write_text(f"{head}\n{text}")
    (folder / "overrides.txt").write_text("\n".join(overrides) + "\n")


def figures(best: Past | None, found: Mapping[str, Any]) -> dict[str, float]:
    """The best working point, as the search saw it and as the report does."""
    metrics: dict[str, float] = {}
    if best is not None:
        metrics = {f"search/{name}": value for name, value in best.outcome.metrics.items() if "/" in name}
    names = {"size": SIZE, "rate_percent": RATE, "drop": DROP}
    metrics |= {name: float(found[key]) for key, name in names.items() if key in found}
    if "transparent" in found:
        metrics["performance/transparent"] = float(found["transparent"])
    return metrics


def mend_runs(sweep: Sweep, parent: str) -> None:
    """Give every trial's MLflow run the state that the study has, where its process was killed before it could."""
    client = sweep.trials.client
    told = {
        trial.user_attrs[OUTCOME][RUN_ID]: trial
        for trial in sweep.shared.study.get_trials(deepcopy=False)
        if OUTCOME in trial.user_attrs and trial.state.is_finished() and trial.state.name != "FAIL"
    }
    for run in children(sweep, parent):
        run_id, status = run.info.run_id, run.info.status
        if run_id in told and status != "FINISHED":
            for tag, value in tags_of(read_outcome(told[run_id])).items():
                client.set_tag(run_id, tag, value)
            if "tracker.error" in run.data.tags:
                client.delete_tag(run_id, "tracker.error")
            client.set_terminated(run_id, "FINISHED")
        elif run_id not in told and status != "FAILED":
            client.set_tag(run_id, "tracker.error", "killed: its process ended without a word")
            client.set_terminated(run_id, "FAILED")
    # Who measures the best one holds the lock that is held here, so one that still runs has been abandoned.
    for run in children(sweep, parent, "compression"):
        if run.info.status == "RUNNING":
            mark(client, run.info.run_id, "killed: its process ended without a word, or without its server")


def children(sweep: Sweep, parent: str, kind: str = "trial") -> Iterator[Any]:
    """The trials' MLflow runs, or those of another kind, whatever process began them."""
    token = None
    while True:
        wanted = f"tags.`mlflow.parentRunId` = '{parent}' AND tags.`tracker.kind` = '{kind}'"
        page = sweep.trials.client.search_runs([sweep.trials.experiment], wanted, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def column(key: str) -> str:
    """A parameter's name in the table."""
    return key.removeprefix("codec.").replace(".", "/")


def front(sweep: Sweep) -> set[int]:
    """The numbers of the feasible trials that no other one beats in all objectives."""
    return {trial.number for trial in sweep.shared.study.best_trials}


def rows(sweep: Sweep) -> list[dict[str, Any]]:
    """The study as a table, a row for each trial, those that were interrupted included.

    Of the parameters it has those in which trials differ; the run's description tells the others.
    """
    table = []
    trials = sweep.shared.study.get_trials(deepcopy=False)
    varied = differing(sweep, trials)
    ahead = front(sweep) if len(sweep.settings.objectives) > 1 else None
    for trial in trials:
        outcome = trial.user_attrs.get(OUTCOME, {})
        metrics = outcome.get("metrics", {})
        past = sweep.history.past.get(trial.number)
        seconds = trial.duration.total_seconds() if trial.duration else None
        table.append(
            {
                "trial": trial.number,
                "state": trial.state.name,
                # MLflow's view of tables takes a dot for a level of nesting.
                **{column(key): trial.params.get(key) for key in varied},
                **{name: metrics.get(name) for name in (*sweep.settings.directions, DROP)},
                "feasible": None if past is None else past.feasible,
                **({} if ahead is None else {"on the front": trial.number in ahead}),
                "stopped": outcome.get("stopped") or trial.user_attrs.get("error"),
                "seconds": seconds,
                "bitstream sha256": outcome.get("sha256"),
                "run": outcome.get(RUN_ID),
            }
        )
    return table


def advice(config: Mapping[str, Any]) -> str:
    """What helps where the choice does not hold on the report split."""
    asked = config["transparency"]["confidence"]
    more = "transparency.confidence=0.95" if asked is None else f"more than transparency.confidence={asked:g}"
    return f"the smallest of many trials is partly luck: {more}, or a larger search split, leaves less to it"


def broken(sweep: Sweep) -> str:
    """How many trials broke each constraint, and what to do about the one that most of them broke."""
    counts: dict[str, int] = {}
    for trial in sweep.shared.finished():
        for name, excess in trial.constraints.items():
            counts[name] = counts.get(name, 0) + (excess > 0)
    most = sorted((-count, name) for name, count in counts.items() if count)
    if not most:
        return ""
    told = ", ".join(f"{name if name != DROP else 'transparency'} in {-count}" for count, name in most)
    if most[0][1] == DROP:
        return f" (broken: {told} trials); widen the space towards finer steps, or raise task.tolerance"
    return f" (broken: {told} trials); search what changes that metric, or allow more"


def show(sweep: Sweep, run: SweepRun, best: Past | None, found: Mapping[str, Any], reason: str) -> None:
    """The lines at the end of a sweep."""
    history = sweep.history
    ended = history.ended
    failed = f", {len(history.failed)} failed" if history.failed else ""
    trials = "1 trial" if ended == 1 else f"{ended} trials"
    log.info("study %s: %s%s%s", sweep.shared.name, trials, failed, f" ({reason})" if reason else "")
    if best is None:
        log.warning("no trial kept the constraints%s", broken(sweep))
    else:
        value = f"{best.value:,.0f} bytes" if sweep.objective == SIZE else f"{sweep.objective} {best.value:.6g}"
        log.info("best: trial %d, %s: %s", best.number, value, sweep.command(best.params))
        if len(sweep.settings.objectives) > 1:
            log.info("it is one of %d working points on the front, which trials.json marks", len(front(sweep)))
        if "transparent" in found:
            verdict = "transparent" if found["transparent"] else "NOT transparent"
            log.info("on the report split: drop %s: %s", shown(found["drop"]), verdict)
            if not found["transparent"] and sweep.settings.transparent:
                log.info("%s", advice(sweep.config(best.params)))
    log.info("run %s · %s", run.id, ui_command(sweep.trials.uri))
    if sweep.shared.storage.for_dashboard:
        log.info("optuna-dashboard %s", shlex.quote(sweep.shared.storage.for_dashboard))
