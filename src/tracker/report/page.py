"""The report as one HTML page that needs nothing else: tables, and the curves as SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tracker.report import formats
from tracker.report.table import Report

STYLE = """
:root { color-scheme: light dark; --text: #1d1d1f; --page: #ffffff; --line: #d5d5da; --head: #f3f3f6; --bad: #b3261e;
  --link: #1f5fbf; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6ea; --page: #17181b; --line: #3b3d44; --head: #24262b; --bad: #ff8a80; --link: #8ab4f8; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 2em auto;
  max-width: 110em; padding: 0 1.5em; }
a { color: var(--link); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; }
th, td { border-bottom: 1px solid var(--line); padding: .35em .7em; text-align: left; vertical-align: top; }
th { background: var(--head); white-space: nowrap; }
.right { text-align: right; white-space: nowrap; }
tr.bad td { color: var(--bad); }
code { font-size: 12px; }
.card { background: #ffffff; border: 1px solid var(--line); border-radius: 8px; padding: .5em; margin: 1em 0;
  display: inline-block; max-width: 100%; }
.card svg { max-width: 100%; height: auto; display: block; }
"""


def html(report: Report) -> str:
    """The page with the tables and all curves."""
    main, bad = [], []
    for row in report.rows:
        *texts, sha256, run_id = formats.cells(row)
        digest = f'<code title="{escape(sha256)}">{escape(sha256[: formats.SHORT])}</code>'
        main.append([*map(escape, texts), digest, _run(report, row.point.experiment, run_id)])
        bad.append(not row.point.transparent)
    parts = [_paragraph(formats.caption(report)), _table(formats.HEADS, main, bad), *_cards(report)]
    savings = [[escape(text) for text in formats.saving_cells(row, row.saving)] for row in report.rows if row.saving]
    if savings:
        parts += [
            "<h2>Average rate saving</h2>",
            _paragraph(formats.saving_caption(report)),
            _table(formats.SAVING_HEADS, savings),
        ]
    points = [
        [*map(escape, formats.point_cells(*one)[:-1]), _run(report, one[2].experiment, one[2].run_id)]
        for one in report.fronts()
    ]
    parts += ["<h2>Working points</h2>", _paragraph(formats.POINTS_CAPTION), _table(formats.POINT_HEADS, points)]
    return _page(parts)


def curves(report: Report) -> str:
    """The page with the curves alone."""
    return _page(_cards(report))


def _page(parts: Iterable[str]) -> str:
    title = "Compression at transparent performance"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _cards(report: Report) -> list[str]:
    """The curves, each on a white ground: their lines are drawn for paper."""
    from tracker.report.draw import pictures

    return [f'<div class="card">{picture}</div>' for picture in pictures(report)]


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _run(report: Report, experiment: str, run_id: str) -> str:
    """A run's id, as a link where the store has pages."""
    shown = f"<code>{escape(run_id)}</code>"
    address = report.address(experiment, run_id)
    return f'<a href="{escape(address)}">{shown}</a>' if address else shown


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], bad: Sequence[bool] = ()) -> str:
    """A table.

    Args:
        heads: of the columns.
        rows: cells that are HTML already.
        bad: which rows stand out.
    """
    classes = [' class="right"' if head in formats.RIGHT else "" for head in heads]

    def line(tag: str, cells: Sequence[str], own: str = "") -> str:
        inner = "".join(f"<{tag}{kind}>{cell}</{tag}>" for cell, kind in zip(cells, classes, strict=True))
        return f"<tr{own}>{inner}</tr>"

    marks = [*bad, *[False] * (len(rows) - len(bad))]
    body = "\n".join(line("td", row, ' class="bad"' if mark else "") for row, mark in zip(rows, marks, strict=True))
    head = line("th", [escape(head) for head in heads])
    return f'<div class="scroll"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
