"""``python -m tracker.report``: the field's table of a tracking store, and its curves."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tracker.errors import TrackerError

if TYPE_CHECKING:
    from tracker.report.table import Report

SUFFIXES = {".md": "md", ".markdown": "md", ".html": "html", ".htm": "html", ".csv": "csv", ".tex": "latex"}
FORMATS = ("md", "html", "csv", "latex")
PICTURES = (".png", ".svg", ".pdf", ".html")


def main(arguments: list[str] | None = None) -> int:
    """Write the report.

    Args:
        arguments: the command line's words.

    Returns:
        The exit status.
    """
    chosen = parsed(arguments)
    try:
        report = made(chosen)
        if chosen.curve is not None:
            write(chosen.curve, lambda path: curve(report, path, chosen.curve.suffix.lower()))
        if chosen.output is not None:
            written = text(report, chosen.format)
            write(chosen.output, lambda path: path.write_text(written, encoding="utf-8", newline=""))
        elif chosen.curve is None:
            sys.stdout.write(text(report, chosen.format))
            sys.stdout.flush()
    except TrackerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever reads wants no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options; wrong ones end the process with status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m tracker.report",
        description="Report what a tracking store has: for each anchor and codec the smallest bitstream at transparent "
        "performance, and the average rate saving between codecs. The store is that of MLFLOW_TRACKING_URI, or "
        "mlruns/mlflow.db.",
    )
    parser.add_argument("--experiment", action="append", default=[], metavar="NAME", help="repeatable; all by default")
    parser.add_argument("--format", choices=FORMATS, help="by default that of FILE's suffix (.tex: latex), else md")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="by default standard output")
    parser.add_argument("--curve", type=Path, metavar="FILE", help=f"write the curves: {', '.join(PICTURES)}")
    parser.add_argument("--baseline", metavar="CODEC", help="of the average rate saving; by default the one most tried")
    parser.add_argument(
        "--split", choices=["report", "search", "all"], default="report", help="that runs were measured on"
    )
    chosen = parser.parse_args(arguments)
    if chosen.curve is not None and chosen.curve.suffix.lower() not in PICTURES:
        parser.error(f"--curve must end in {', '.join(PICTURES)}")
    if chosen.format is None:
        suffix = chosen.output.suffix.lower() if chosen.output else ".md"
        if suffix not in SUFFIXES:
            parser.error(f"-o ends in none of {', '.join(SUFFIXES)}; give --format")
        chosen.format = SUFFIXES[suffix]
    return chosen


def made(chosen: argparse.Namespace) -> Report:
    """The report of the store that the environment names.

    Raises:
        TrackerError: there is no store, or nothing in it that was asked for.
    """
    from tracker.report import collect, table
    from tracker.tracking import store

    uri = store.tracking_uri()
    file = store.database_file(uri)
    if file is not None and not file.exists():  # a report is no reason to make one
        raise TrackerError(f"there is no tracking store {file}; set MLFLOW_TRACKING_URI, or go where mlruns/ is")
    client = store.connect(uri)
    found = collect.applications(client, uri, chosen.experiment, chosen.split)
    return table.make(found, uri, chosen.split, chosen.baseline)


def text(report: Report, form: str) -> str:
    """The report in one of the formats."""
    from tracker.report import formats, page

    writers: dict[str, Callable[[Report], str]] = {
        "md": formats.markdown,
        "html": page.html,
        "csv": formats.comma_separated,
        "latex": formats.latex,
    }
    return writers[form](report)


def curve(report: Report, path: Path, suffix: str) -> None:
    """Write the curves, as a page or as a picture."""
    from tracker.report import draw, page

    if suffix == ".html":
        path.write_text(page.curves(report), encoding="utf-8")
    else:
        draw.write_picture(report, path, suffix[1:])


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Write a file whole or not at all.

    Args:
        path: of the file.
        fill: writes it under another name in the same folder.

    Raises:
        TrackerError: it cannot be written.
    """
    path = path.resolve()  # what a link leads to, not the link, is replaced
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        if path.exists() and not path.is_file():  # a pipe or a device, in whose place no file must come
            fill(path)
            return
        fill(partial)
        partial.replace(path)
    except OSError as error:
        raise TrackerError(f"{path} cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
