"""The report as Markdown, CSV and LaTeX; HTML has a module of its own."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Sequence

from tracker.report.collect import Application, Point
from tracker.report.curves import LEAST_POINTS, Saving
from tracker.report.table import Report, Row

SHORT = 8  # digits of a digest or a run's id where it need not be whole
HEADS = (
    "Anchor",
    "Model",
    "Data set",
    "Metric",
    "Anchor's",
    "Decoded",
    "Drop",
    "Tolerance",
    "Codec",
    "Bytes",
    "Rate",
    "Transparent",
    "SHA-256",
    "Run",
)
SAVING_HEADS = ("Anchor", "Data set", "Codec", "Average rate saving", "Drops", "Points")
POINT_HEADS = ("Anchor", "Data set", "Codec", "Bytes", "Rate", "Decoded", "Drop", "Run")
RIGHT = frozenset({"Anchor's", "Decoded", "Drop", "Tolerance", "Bytes", "Rate", "Average rate saving", "Points"})
CSV_HEADS = (
    "anchor", "anchor_sha256", "anchor_run", "task_sha256", "model", "layers", "data", "data_digest", "metric",
    "performance_anchor", "performance_decoded", "drop", "tolerance", "confidence", "codec", "bytes", "rate_percent",
    "transparent", "bitstream_sha256", "run", "run_address", "baseline", "rate_saving_percent", "rate_saving_why_not",
    "rate_saving_runs", "baseline_runs",
)  # fmt: skip


def figure(value: float) -> str:
    """A metric's value or a drop, to four digits behind the point where it has as many."""
    if not math.isfinite(value):
        return str(value)
    value += 0.0  # no minus before a zero
    return f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2g}"


def tolerance(application: Application) -> str:
    """Such as ``0.005`` or ``0.005 at 95 %``."""
    sure = f" at {100 * application.confidence:g} %" if application.confidence is not None else ""
    return f"{application.tolerance:g}{sure}"


def cells(row: Row) -> list[str]:
    """A row of the table as text, up to the digest and the run."""
    one, point = row.application, row.point
    return [
        row.label,
        f"{one.model} ({one.layers})" if one.layers else one.model,
        f"{one.data} {one.data_sha256[:SHORT]}",
        one.metric,
        figure(one.performance),
        figure(point.decoded),
        figure(point.drop),
        tolerance(one),
        point.codec,
        f"{point.size:,}",
        f"{point.rate:.2f} %",
        verdict(point),
        point.sha256,
        point.run_id,
    ]


def verdict(point: Point) -> str:
    """Whether a row's working point is what the table promises."""
    return "yes" if point.transparent else "NO: the nearest"


def saving_cells(row: Row, saving: Saving) -> list[str]:
    """A row of the table of savings."""
    told = f"{round(-saving.percent, 2) + 0.0:.2f} %" if saving.percent is not None else f"none: {saving.reason}"
    overlap = " to ".join(map(figure, saving.overlap)) if saving.overlap else ""
    points = f"{len(saving.points[1])} against {len(saving.points[0])}"
    return [row.label, row.application.data, row.point.codec, told, overlap, points]


def point_cells(label: str, application: Application, point: Point) -> list[str]:
    """A working point that curves and savings are made of."""
    values = [f"{point.size:,}", f"{point.rate:.2f} %", figure(point.decoded), figure(point.drop), point.run_id]
    return [label, application.data, point.codec, *values]


def caption(report: Report) -> str:
    """What the table shows, in a sentence."""
    return (
        f"The smallest transparent bitstream of each codec, of {report.runs:,} runs measured on the split "
        f"{report.split}; where there is none, the run with the smallest drop."
    )


def saving_caption(report: Report) -> str:
    """What the table of savings shows, and where its formula is from."""
    return (
        f"Average rate saving over {report.baseline}: the Bjøntegaard delta rate (VCEG-M33, 2001) with its sign "
        f"changed, of bytes over the drop between the two fronts, by piecewise cubic interpolation as in "
        f"ITU-T HSTP-VID-WPOM, where both have {LEAST_POINTS} points or more and share a range of performance."
    )


POINTS_CAPTION = (
    "The working points that savings and curves are made of: no other run of the codec is smaller and better."
)


def markdown(report: Report) -> str:
    """Tables of GitHub's Markdown."""

    def linked(experiment: str, run_id: str) -> str:
        address = report.address(experiment, run_id)
        return f"[{run_id[:SHORT]}]({address.translate(ADDRESS)})" if address else f"`{run_id}`"

    def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        line = ["---:" if head in RIGHT else "---" for head in heads]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, line, *rows))

    main = []
    for row in report.rows:
        *texts, sha256, run_id = cells(row)
        texts = [markdown_text(text) for text in texts]
        if not row.point.transparent:
            texts[-1] = f"**{texts[-1]}**"
        main.append([*texts, f"`{sha256[:SHORT]}`" if sha256 else "", linked(row.point.experiment, run_id)])
    parts = ["# Compression at transparent performance", markdown_text(caption(report)), table(HEADS, main)]
    savings = [[markdown_text(text) for text in saving_cells(row, row.saving)] for row in report.rows if row.saving]
    if savings:
        parts += [markdown_text(saving_caption(report)), table(SAVING_HEADS, savings)]
    points = [
        [*(markdown_text(text) for text in point_cells(*one)[:-1]), linked(one[2].experiment, one[2].run_id)]
        for one in report.fronts()
    ]
    parts += [markdown_text(POINTS_CAPTION), table(POINT_HEADS, points)]
    return "\n\n".join(parts) + "\n"


ADDRESS = {ord(char): f"%{ord(char):02X}" for char in " ()<>|\\`\"'\n\r"}


def markdown_text(text: str) -> str:
    """Text that Markdown takes for nothing else."""
    return re.sub(r"([\\`*_\[\]<>|~&$#])", r"\\\1", " ".join(text.split()))


def comma_separated(report: Report) -> str:
    """RFC 4180, a line for each row of the table; figures in full, names and digests as they are."""
    kept = io.StringIO()
    writer = csv.writer(kept)
    writer.writerow(CSV_HEADS)
    for row in report.rows:
        one, point, saving = row.application, row.point, row.saving
        curves = saving.points if saving else ((), ())
        writer.writerow(
            [
                one.anchor, one.sha256, one.run_id, one.task_sha256, one.model, one.layers, one.data, one.data_sha256,
                one.metric, one.performance, point.decoded, point.drop, one.tolerance, one.confidence, point.codec,
                point.size, point.rate, str(point.transparent).lower(), point.sha256, point.run_id,
                report.address(point.experiment, point.run_id), report.baseline,
                None if saving is None or saving.percent is None else -saving.percent,
                saving.reason if saving else "",
                *(" ".join(point.run_id for point in curve) for curve in (curves[1], curves[0])),
            ]
        )  # fmt: skip
    return kept.getvalue()


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Text that LaTeX takes for nothing else."""
    return "".join(LATEX.get(char, char) for char in " ".join(text.split())).replace("--", "-{}-")


def latex(report: Report) -> str:
    """Tables of booktabs; whole digests and the runs of savings stand in comments behind the rows."""

    def table(
        heads: Sequence[str], rows: Sequence[tuple[Sequence[str], str]], told: str, text: Callable[[str], str]
    ) -> list[str]:
        columns = "".join("r" if head in RIGHT else "l" for head in heads)
        lines = [
            r"\begin{table}",
            rf"\caption{{{text(told)}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
        ]
        lines += [" & ".join(map(text, heads)) + r" \\", r"\midrule"]
        lines += [" & ".join(cells) + rf" \\ % {' '.join(comment.split())}" for cells, comment in rows]
        return [*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}"]

    main = []
    for row in report.rows:
        *texts, sha256, run_id = cells(row)
        shown = [latex_text(text) for text in texts]
        if not row.point.transparent:
            shown[-1] = rf"\textbf{{{shown[-1]}}}"
        address = report.address(row.point.experiment, run_id)
        name = rf"\texttt{{{latex_text(run_id[:SHORT])}}}"
        shown += [
            rf"\texttt{{{latex_text(sha256[:SHORT])}}}",
            rf"\href{{{_latex_address(address)}}}{{{name}}}" if address else name,
        ]
        main.append((shown, f"run {run_id} sha256 {sha256}"))
    lines = [
        "% \\usepackage[T1]{fontenc} \\usepackage{textcomp,booktabs,graphicx,hyperref}",
        *table(HEADS, main, caption(report), latex_text),
    ]
    savings = [
        (
            [latex_text(text) for text in saving_cells(row, row.saving)],
            "runs " + " ".join(point.run_id for curve in reversed(row.saving.points) for point in curve),
        )
        for row in report.rows
        if row.saving
    ]
    if savings:
        lines += table(SAVING_HEADS, savings, saving_caption(report), latex_text)
    return "\n".join(lines) + "\n"


def _latex_address(address: str) -> str:
    """An address within \\href, where a few characters still count."""
    return "".join(f"\\{char}" if char in "#%&_" else char for char in address.translate(LATEX_ADDRESS))


LATEX_ADDRESS = {ord(char): f"%{ord(char):02X}" for char in '\\{}^~ $<>"`|\n\r'}
