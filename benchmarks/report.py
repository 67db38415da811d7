"""What 10,000 runs in the store cost: the time of a report, and of the start of a run, on SQLite.

Two real runs (and their anchor) are logged first; the others are copies of them in the database, parameters, metrics,
tags and data sets included, with sizes and drops of their own and shared out among ten anchors, so that each is a
working point of the report. That is the worst case: most runs of a real store are a sweep's trials, which the report
does not read. The start of a run finds its anchor, creates the run and logs the parameters; it is timed in turns on the
store as it was before and on the full one, and medians are compared, because other work on the machine disturbs single
ones.

    python benchmarks/report.py [--runs 10000] [--starts 15] [--folder FOLDER]

must hold: the report of 10,000 runs in less than 30 s; the start of a run at most 1.5 times as long as with few.
"""

from __future__ import annotations

import argparse
import hashlib
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

SIZE, RATE = "size/bitstream_bytes", "size/rate_percent"
DROP, DECODED = "performance/drop", "performance/decoded"
ANCHOR = 0.985  # performance of the built-in anchor
ANCHORS = 10  # among which the copies are shared out


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
        for index, (run, _) in enumerate(copies):
            size = dice.randint(8_000, 220_000)
            drop = 300 / size + dice.gauss(0.0, 0.002)
            values = {SIZE: size, RATE: 100 * size / 227_496, DROP: drop, DECODED: ANCHOR - drop}
            for table in ("metrics", "latest_metrics"):
                connection.executemany(
                    f"UPDATE {table} SET value = ? WHERE run_uuid = ? AND key = ?",
                    [(float(value), run, key) for key, value in values.items()],
                )
            tags = {
                "tracker.transparent": str(drop <= 0.005).lower(),
                "tracker.anchor.sha256": hashlib.sha256(str(index // 2 % ANCHORS).encode()).hexdigest(),
                "tracker.bitstream.sha256": run * 2,
            }
            connection.executemany(
                "UPDATE tags SET value = ? WHERE run_uuid = ? AND key = ?",
                [(value, run, key) for key, value in tags.items()],
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


def start(database: Path) -> tuple[float, float]:
    """Seconds until a run has found its anchor, and from there until it has been created, with its parameters."""
    from tracker.tracking import anchors, store
    from tracker.tracking.run import Run

    uri = f"sqlite:///{database}"
    client = store.connect(uri)
    (experiment,) = [one.experiment_id for one in client.search_experiments() if one.name == "digits"]
    known = {
        kind: client.search_runs([experiment], f"tags.`tracker.kind` = '{kind}'", max_results=1)[0].data
        for kind in ("anchor", "compression")
    }
    sha256, task = (known["anchor"].tags[f"tracker.{name}.sha256"] for name in ("anchor", "task"))
    began = time.perf_counter()
    anchor = anchors.find_anchor(client, experiment, sha256, task)
    found = time.perf_counter()
    assert anchor is not None
    with Run(
        client, uri, experiment, "start", "start", {"tracker.anchor.run_id": anchor.run_id}, known["compression"].params
    ):
        return found - began, time.perf_counter() - found


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
        seconds: dict[Path, list[tuple[float, float]]] = {few: [], full: []}
        for _ in range(chosen.starts):
            for database, measured in seconds.items():
                measured.append(start(database))
        parts = {
            "find the anchor": lambda both: both[0],
            "create the run, log its parameters": lambda both: both[1],
            "both, the start of a run": sum,
        }
        for part, chosen_part in parts.items():
            before, after = (statistics.median(map(chosen_part, measured)) for measured in seconds.values())
            print(
                f"{part}: {1000 * before:.0f} ms with few runs in the store, {1000 * after:.0f} ms with "
                f"{chosen.runs:,}: {after / before:.2f} times as long"
            )


if __name__ == "__main__":
    main()
