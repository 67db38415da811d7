"""What a person sees of a run: its name, its progress, and the few lines at its end."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tracker.tracking.store import DEFAULT_URI, without_secrets

if TYPE_CHECKING:
    from tracker.scenarios.job import Job
    from tracker.scenarios.results import Result
    from tracker.tracking.anchors import LoggedAnchor
    from tracker.tracking.run import Run

log = logging.getLogger("tracker")
NOTE = "mlflow.note.content"  # MLflow's tag for a description


def run_name(job: Job) -> str:
    """Such as ``nnc qp=-28``: the chain, and what the command line changed in it."""
    if job.settings.tracking.run_name:
        return job.settings.tracking.run_name
    changed = [word.removeprefix("codec.") for word in job.overrides if word.startswith("codec.")]
    if job.codec is not None and not job.codec.transforms:
        changed = [word.removeprefix(f"{job.codec.coder_name}.") for word in changed]
    changed += [word for word in job.overrides if word.startswith("target.")]
    return " ".join([job.codec.name if job.codec else "anchor", *changed])[:250]


def show_anchor(job: Job, anchor: LoggedAnchor, size: int, uri: str) -> None:
    """The lines at the end of a run without a codec."""
    found = "found again" if anchor.found else "evaluated"
    log.info(
        "%s: %s bytes, %s on %s/%s (%s)",
        job.anchor.name,
        f"{size:,}",
        metrics_text(anchor.evaluation.metrics),
        job.data.name,
        job.task.split,
        found,
    )
    log.info("run %s · %s", anchor.run_id, ui_command(uri))


def show_compression(result: Result, run: Run, uri: str, simulated: Mapping[str, float] | None = None) -> None:
    """The lines at the end of a compression run.

    Args:
        result: what it found.
        run: in the store.
        uri: of the store.
        simulated: performance and drop of the model as the receiver's device would run it, named as they are logged.
    """
    job, decision, primary = result.job, result.decision, result.job.task.primary
    log.info(
        "%s · %s: %s of %s bytes, rate %.2f %%, %.2f bits per parameter",
        job.anchor.name,
        run.name,
        f"{result.size:,}",
        f"{result.anchor_bytes:,}",
        100 * result.size / result.anchor_bytes,
        32 * result.size / result.anchor_bytes,
    )
    for row in result.draft.rows:
        performance = "" if row["performance"] is None else f", {primary} {row['performance']:.4f}"
        cost = f", MACs {row['mac ratio']:.1%}" if row["mac ratio"] != 1 else ""
        log.info("after %s: %s bytes%s%s", row["stage"], f"{row['bytes']:,}", performance, cost)
    interval = ""
    if decision.interval is not None:
        interval = f" [{decision.interval[0]:.4g}, {decision.interval[1]:.4g} at {decision.confidence:.0%}]"
    verdict = "transparent" if decision.transparent else "NOT transparent"
    log.info(
        "%s %.4f, anchor %.4f, drop %.4g%s: %s (tolerance %g)",
        primary,
        result.decoded.metrics[primary],
        result.anchor.metrics[primary],
        decision.drop,
        interval,
        verdict,
        job.task.tolerance,
    )
    if simulated:
        log.info(
            "with %s: %s %.4f, drop %.4g",
            simulation(result),
            primary,
            simulated["performance/simulated"],
            simulated["performance/simulated_drop"],
        )
    log.info("bitstream %s", where(run.artifact_uri, "bitstream"))
    log.info("run %s · %s", run.id, ui_command(uri))


def link(word: str, experiment: str, run_id: str, artifact: str = "") -> str:
    """A link within MLflow's pages to a run, in Markdown.

    Args:
        word: to click on.
        experiment: the id of the run's.
        run_id: of the run.
        artifact: to show of it.
    """
    return f"[{word}](#/experiments/{experiment}/runs/{run_id}{f'/artifacts/{artifact}' if artifact else ''})"


def note(result: Result, run: Run, anchor: LoggedAnchor) -> str:
    """A compression run's description on its page in MLflow."""
    job, primary = result.job, result.job.task.primary
    verdict = "transparent" if result.decision.transparent else "**not transparent**"
    return (
        f"**{result.codec.name}** on {job.data.name}/{job.task.split}: {result.size:,} bytes, "
        f"{100 * result.size / result.anchor_bytes:.2f} % of the anchor; {primary} "
        f"{result.decoded.metrics[primary]:.4f}, anchor {result.anchor.metrics[primary]:.4f}, drop "
        f"{result.decision.drop:.4g}: {verdict} (tolerance {job.task.tolerance:g}). "
        f"{link('anchor', run.experiment, anchor.run_id)} · {link('plots', run.experiment, run.id, 'plots')}"
    )


def anchor_note(job: Job, size: int, metrics: Mapping[str, float]) -> str:
    """An anchor's description on its page in MLflow."""
    measured = f"{metrics_text(metrics)} on {job.data.name}/{job.task.split}"
    return f"**{job.anchor.name}**, uncompressed: {size:,} bytes; {measured}."


def simulation(result: Result) -> str:
    """What was simulated on top of the decoded model, such as ``activations of 8 bits``."""
    *_, last = result.codec.transforms.values()  # a simulation is the last transform's
    bits = getattr(last, "activations", None)
    return f"activations of {bits} bits" if bits else "its device simulated"


def metrics_text(metrics: Mapping[str, float]) -> str:
    """Such as ``top1 0.9825, top5 1.0000``."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def where(artifact_uri: str, name: str) -> str:
    """A local path that can be pasted into a shell, or an address in an artifact store."""
    if artifact_uri.startswith("file://"):
        return shlex.quote(f"{url2pathname(urlsplit(artifact_uri).path)}/{name}")
    return f"{without_secrets(artifact_uri)}/{name}"


def ui_command(uri: str) -> str:
    """How to look at the store."""
    if uri.startswith(("http://", "https://")):
        return f"open {without_secrets(uri)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri if uri == DEFAULT_URI else without_secrets(uri))}"


@contextlib.contextmanager
def activity(what: str) -> Iterator[None]:
    """Elapsed seconds on a terminal, for work that does not tell how far it is; nothing in a log."""
    if not sys.stderr.isatty():
        yield
        return
    done, began = threading.Event(), time.monotonic()

    def tick() -> None:
        while not done.wait(0.5):
            print(f"\r{what}: {time.monotonic() - began:.0f} s", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        print("\r\033[K", end="", file=sys.stderr, flush=True)
