"""What 10,000 runs in the store cost: the time of a report, and of the start of a run, on SQLite.

Two real runs (and their anchor) are logged first; the others are copies of them in the database, parameters, metrics,
tags and data sets included, with sizes and drops of their own, so that each is a working point of the report. That is
the worst case: most runs of a real store are a sweep's trials, which the report does not read. The start of a run is
timed in turns on a copy of the store as it was before and on the full one; medians are compared, because other work on
the machine disturbs single ones. It finds its anchor, creates the run and logs the parameters.

    python benchmarks/report.py [--runs 10000] [--starts 15] [--folder FOLDER]

must hold: the report of 10,000 runs in less than 30 s; the start of a run at most 1.5 times as long as with few.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIZE, RATE, DROP = "size/bitstream_bytes", "size/rate_percent", "performance/drop"


def fill(database: Path, count: int) -> None:
    """Copy the runs of kind ``compression`` in a SQLite store until it has ``count`` of them."""
    dice = random.Random(0)
    with sqlite3.connect(database) as connection:
        found = connection.execute("SELECT run_uuid FROM tags WHERE key = 'tracker.kind' AND value = 'compression'")
        originals = [run for (run,) in found]
        more = count - len(originals)
        copies: list[tuple[str, str]] = [(uuid.uuid4().hex, originals[at % len(originals)]) for at in range(more)]
        for table in ("runs", "params", "tags", "metrics", "latest_metrics"):
            copy(connection, table, "run_uuid", originals, copies)
        copy(connection, "inputs", "destination_id", originals, copies, "input_uuid")
        for run, _ in copies:
            size, drop = dice.randint(8_000, 220_000), dice.gauss(0.004, 0.004)
            values = {SIZE: size, RATE: 100 * size / 227_496, DROP: drop, "performance/transparent": drop <= 0.005}
            for table in ("metrics", "latest_metrics"):
                connection.executemany(
                    f"UPDATE {table} SET value = ? WHERE run_uuid = ? AND key = ?",
                    [(float(value), run, key) for key, value in values.items()],
                )
            connection.execute(
                "UPDATE tags SET value = ? WHERE run_uuid = ? AND key = 'tracker.transparent'",
                (str(drop <= 0.005).lower(), run),
            )
    connection.close()


def copy(
    connection: sqlite3.Connection,
    table: str,
    column: str,
    originals: list[str],
    copies: list[tuple[str, str]],
    own: str = "",
) -> None:
    """Copy a table's rows of some runs.

    Args:
        connection: to the database.
        table: its name.
        column: that names the run.
        originals: runs.
        copies: new runs, each with the one that it is copied from.
        own: a column that is given a new value in each row.
    """
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    at, fresh = names.index(column), names.index(own) if own else None
    kept = {
        run: [list(row) for row in connection.execute(f"SELECT * FROM {table} WHERE {column} = ?", (run,))]
        for run in originals
    }

    def rows() -> Iterator[list[Any]]:
        for run, original in copies:
            for row in kept[original]:
                row[at] = run
                if fresh is not None:
                    row[fresh] = uuid.uuid4().hex
                yield row

    connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(names))})", rows())


def start(database: Path) -> float:
    """Seconds until a run has found its anchor and has been created, with its parameters."""
    from tracker.tracking import anchors, store
    from tracker.tracking.run import Run

    uri = f"sqlite:///{database}"
    client = store.connect(uri)
    (experiment,) = [found.experiment_id for found in client.search_experiments() if found.name == "digits"]
    wanted = "tags.`tracker.kind` = 'compression'"
    known = client.search_runs([experiment], wanted, max_results=1)[0].data
    sha256, task = known.tags["tracker.anchor.sha256"], known.tags["tracker.task.sha256"]
    began = time.perf_counter()
    anchor = anchors.find_anchor(client, experiment, sha256, task)
    assert anchor is not None
    with Run(client, uri, experiment, "start", "start", {"tracker.anchor.run_id": anchor.run_id}, known.params):
        return time.perf_counter() - began


def report(database: Path, output: Path) -> float:
    """Seconds of the command, from the start of its process to its end."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "tracker.report", "-o", str(output)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    subprocess.run(command, check=True, env=environment)
    return time.perf_counter() - began


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--starts", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="where the stores stay; else they are temporary")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        few, full = folder / "mlruns" / "mlflow.db", folder / "full" / "mlflow.db"
        if not full.exists():
            command = [sys.executable, "-m", "tracker", "-m", "+codec=nnc,int8"]
            environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
            subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
            full.parent.mkdir()
            shutil.copy(few, full)
            began = time.perf_counter()
            fill(full, chosen.runs)
            print(f"filled in {time.perf_counter() - began:.1f} s, {full.stat().st_size / 2**20:,.0f} MiB", flush=True)
        for suffix in ("md", "html", "csv", "tex"):
            print(f"report of {chosen.runs:,} runs as {suffix}: {report(full, folder / f'report.{suffix}'):.1f} s")
        for database in (few, full):
            start(database)  # the first one opens the database and starts the watchdog
        seconds: dict[Path, list[float]] = {few: [], full: []}
        for _ in range(chosen.starts):
            for database, measured in seconds.items():
                measured.append(start(database))
        medians = {database: statistics.median(measured) for database, measured in seconds.items()}
        print(
            f"start of a run: {1000 * medians[few]:.0f} ms with few runs in the store, {1000 * medians[full]:.0f} ms "
            f"with {chosen.runs:,}, {medians[full] / medians[few]:.2f} times as long"
        )


if __name__ == "__main__":
    main()
