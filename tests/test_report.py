"""The report: every figure from a run that has it, in four formats; savings against formulas; curves."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from pprint import pformat

import numpy as np
import pytest
from conftest import Completed, Here, runs
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from tracker.report import __main__ as command
from tracker.report import collect, draw, formats, page, table
from tracker.report import runs as reading
from tracker.report.collect import Application, Point
from tracker.report.curves import front, rate_saving

NASTY = r"a|b <script>alert('x')</script> & 50% _$x$ #1 {y}\z ^~ `c` [d](e)"
ANCHOR_BYTES = 100_000


class Filler:
    """Runs as tracker's scenarios log them, with given figures and nothing behind them."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client

    def log(
        self, kind: str, experiment: str, tags: dict[str, str], params: dict[str, str], metrics: dict[str, float]
    ) -> str:
        found = self.client.get_experiment_by_name(experiment)
        owner = found.experiment_id if found else self.client.create_experiment(experiment)
        run = self.client.create_run(owner)
        self.client.log_batch(
            run.info.run_id,
            metrics=[Metric(key, value, 0, 0) for key, value in metrics.items()],
            params=[Param(key, value) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in {"tracker.kind": kind, **tags}.items()],
        )
        self.client.set_terminated(run.info.run_id, "FINISHED")
        return str(run.info.run_id)

    def anchor(self, name: str, metric: str = "top1", layers: str = "2 Conv2d, 1 Linear") -> str:
        tags = {"tracker.metrics": f'["{metric}"]', "tracker.anchor.model": "Net", "tracker.anchor.layers": layers}
        return self.log("anchor", name, tags, {}, {"performance/anchor": 0.9})

    def point(
        self,
        name: str,
        anchor: str,
        codec: str,
        size: int,
        drop: float,
        kind: str = "compression",
        split: str = "report",
        sign: int = 1,
        tolerance: float = 0.005,
    ) -> str:
        tags = {
            "tracker.anchor.sha256": f"{name}{anchor}".encode().hex()[:64],
            "tracker.anchor.run_id": anchor,
            "tracker.task.sha256": "7" * 64,
            "tracker.codec": codec,
            "tracker.bitstream.sha256": f"{size:064x}",
            "tracker.transparent": str(drop <= tolerance).lower(),
        }
        params = {
            "anchor.name": name,
            "anchor._target_": "nets.Net",
            "data.name": "images",
            "task.name": "classification",
            "task.split": split,
            "task.tolerance": str(tolerance),
            "transparency.confidence": "None",
        }
        metrics = {
            "size/bitstream_bytes": float(size),
            "size/rate_percent": 100 * size / ANCHOR_BYTES,
            "performance/anchor": 0.9,
            "performance/decoded": 0.9 - sign * drop,
            "performance/drop": drop,
        }
        return self.log(kind, name, tags, params, metrics)


@dataclass
class Store:
    """A store with runs, and those of its rows by anchor and codec."""

    uri: str
    client: MlflowClient
    wanted: dict[str, str]
    odd: str


@pytest.fixture(scope="module")
def filled_once(made_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    file = tmp_path_factory.mktemp("filled") / "mlflow.db"
    shutil.copy(made_store, file)
    filler = Filler(MlflowClient(f"sqlite:///{file}"))
    wanted = filled(filler)
    odd = filler.point("odd", filler.anchor("odd"), "nnc", 100, math.nan)
    return Store(f"sqlite:///{file}", filler.client, wanted, odd)


@pytest.fixture
def full(filled_once: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", filled_once.uri)
    return filled_once


SIZES = (6_000, 8_000, 11_000, 15_000, 20_000)
DROPS = (0.04, 0.012, 0.004, 0.001, 0.0)


def filled(filler: Filler) -> dict[str, str]:
    """Two anchors, three codecs, and runs that must not count; the rows' runs by anchor and codec."""
    wanted = {}
    for name, metric, sign in ((NASTY, "top1", 1), ("regressor", "rmse", -1)):
        anchor = filler.anchor(name, metric)
        for size, drop in zip(SIZES, DROPS, strict=True):
            run = filler.point(name, anchor, "nnc", size, drop, sign=sign)
            wanted |= {f"{name} nnc": run} if size == 11_000 else {}
            run = filler.point(name, anchor, "svd>nnc", size * 8 // 10, drop, sign=sign)
            wanted |= {f"{name} svd>nnc": run} if size == 11_000 else {}
        wanted[f"{name} svd>nnc"] = filler.point(name, anchor, "svd>nnc", 8_800, 0.004, sign=sign)  # again, and newer
        for drop in (0.3, 0.02, 0.1):
            run = filler.point(name, anchor, "int4", 5_000, drop, sign=sign)
            wanted |= {f"{name} int4": run} if drop == 0.02 else {}
        filler.point(name, anchor, "nnc", 10, 0.0, kind="trial", sign=sign)
        filler.point(name, anchor, "nnc", 11, 0.0, split="search", sign=sign)
        failed = filler.point(name, anchor, "nnc", 12, 0.0, sign=sign)
        filler.client.set_terminated(failed, "FAILED")
        filler.client.delete_run(filler.point(name, anchor, "nnc", 13, 0.0, sign=sign))
    return wanted


def told(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    capfd.readouterr()
    status = command.main(list(words))
    out, err = capfd.readouterr()
    assert status == 0, err
    return out


class Cells(HTMLParser):
    """The tables of a page, and all tags in it."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for key, value in attrs if key == "href"]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tables[-1][-1][-1] += data


def parsed_markdown(text: str) -> list[list[list[str]]]:
    """Tables of cells, with escapes taken back."""
    tables: list[list[list[str]]] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                tables.append([])
            cells = re.split(r"(?<!\\)\|", line.strip("| "))
            tables[-1].append([re.sub(r"\\(.)", r"\1", cell.strip()).strip("*`") for cell in cells])
        before = line
    return [[rows[0], *rows[2:]] for rows in tables]


def test_all_formats_tell_the_same_and_every_figure_is_in_a_run(
    full: Store, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    these = ("--experiment", NASTY, "--experiment", "regressor")
    rows = list(csv.DictReader(io.StringIO(told(capfd, *these, "--format", "csv"))))
    assert {f"{row['anchor']} {row['codec']}": row["run"] for row in rows} == full.wanted
    for row in rows:
        run = full.client.get_run(row["run"])
        for column, name in {
            "bytes": "size/bitstream_bytes",
            "rate_percent": "size/rate_percent",
            "performance_anchor": "performance/anchor",
            "performance_decoded": "performance/decoded",
            "drop": "performance/drop",
        }.items():
            assert float(row[column]) == run.data.metrics[name]
        assert row["bitstream_sha256"] == run.data.tags["tracker.bitstream.sha256"]
        assert row["transparent"] == run.data.tags["tracker.transparent"]
        assert row["transparent"] == ("false" if row["codec"] == "int4" else "true")
        assert row["anchor_run"] == run.data.tags["tracker.anchor.run_id"]
        assert (row["model"], row["layers"]) == ("Net", "2 Conv2d, 1 Linear")
        assert row["metric"] == ("rmse" if row["anchor"] == "regressor" else "top1")
        for one in row["rate_saving_runs"].split() + row["baseline_runs"].split():
            assert full.client.get_run(one).data.tags["tracker.codec"] in (row["codec"], row["baseline"])
        if row["codec"] == "svd>nnc":
            assert row["baseline"] == "nnc" and float(row["rate_saving_percent"]) == pytest.approx(20)
        if row["codec"] == "int4":
            assert not row["rate_saving_percent"] and "1 point" in row["rate_saving_why_not"]

    page_text = told(capfd, *these, "--format", "html")
    cells = Cells()
    cells.feed(page_text)
    assert "script" not in cells.tags and not cells.links
    text = told(capfd, *these)
    for tables in (cells.tables, parsed_markdown(text)):
        main, savings, points = tables
        assert main[0] == list(formats.HEADS) and savings[0] == list(formats.SAVING_HEADS)
        assert points[0] == list(formats.POINT_HEADS)
        assert [row[-1] for row in main[1:]] == [row["run"] for row in rows]
        assert [row[0] for row in main[1:]] == [row["anchor"] for row in rows]
        assert [row[9] for row in main[1:]] == [f"{int(row['bytes']):,}" for row in rows]
        assert [row[11] for row in main[1:]] == [
            "yes" if row["transparent"] == "true" else "NO: the nearest" for row in rows
        ]
        assert len(points) == 1 + 2 * (5 + 5 + 1)
        for row in points[1:]:
            assert f"{full.client.get_run(row[-1]).data.metrics['size/bitstream_bytes']:,.0f}" == row[3]
        assert [row[3] for row in savings[1:] if row[2] == "svd>nnc"] == ["20.00 %"] * 2

    latex = told(capfd, *these, "--format", "latex")
    body = [line for line in latex.splitlines() if r"\\ % run " in line]
    assert [re.search(r"% run (\w+)", line).group(1) for line in body] == [row["run"] for row in rows]  # type: ignore[union-attr]
    for line in body:
        code = line.partition(r"\\ % run ")[0]
        assert len(re.findall(r"(?<!\\)&", code)) == len(formats.HEADS) - 1
        bare = re.sub(r"\\text\w+\{\}|\\(texttt|textbf)\{|\\[{}$&#_%]", "", code)
        assert not set("#$%^_~\\{<>|") & set(bare)
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2

    for suffix, content in (("md", text), ("html", page_text), ("tex", latex)):
        output = tmp_path / f"r.{suffix}"
        assert not told(capfd, *these, "-o", str(output))
        assert output.read_text() == content
    assert not list(tmp_path.glob("*.partial"))


def test_tables_of_the_database_and_the_search_tell_the_same(full: Store) -> None:
    owners = reading.experiments(full.client, [])
    key = lambda one: one.run_id  # noqa: E731
    quick = sorted(reading.from_database(full.client, owners, "report"), key=key)
    asked = sorted(reading.from_client(full.client, owners, "report"), key=key)
    assert len(quick) == 2 * 14 + 1 and pformat(quick) == pformat(asked)
    (row,) = table.make(collect.applications(full.client, full.uri, ["odd"], "report"), full.uri, "report", None).rows
    assert row.point.run_id == full.odd and not row.point.transparent and formats.cells(row)[6] == "nan"
    searched = collect.applications(full.client, full.uri, [NASTY], "search")
    assert [point.size for one in searched for points in one.points.values() for point in points] == [11]


def points(sizes: list[float], drops: list[float], codec: str = "nnc") -> list[Point]:
    return [
        Point(f"{codec}{index}", "1", index, codec, int(size), size / 1000, 0.9 - drop, drop, drop <= 0.005, "")
        for index, (size, drop) in enumerate(zip(sizes, drops, strict=True))
    ]


def test_the_front_is_what_no_other_point_beats() -> None:
    dice = np.random.default_rng(0)
    many = points(list(dice.integers(1, 60, 200) * 100), list(dice.integers(0, 40, 200) / 1000))
    found = front(many)
    beaten = [
        one
        for one in many
        if any(
            other.size <= one.size and other.drop <= one.drop and (other.size, other.drop) != (one.size, one.drop)
            for other in many
        )
    ]
    left = {(one.size, one.drop) for one in many} - {(one.size, one.drop) for one in beaten}
    assert {(one.size, one.drop) for one in found} == left and len(found) == len(left)
    for one in found:  # the newest of equal ones
        assert one.started == max(o.started for o in many if (o.size, o.drop) == (one.size, one.drop))


def cubic(sizes: list[list[float]], performances: list[list[float]]) -> float:
    """VCEG-M33: one cubic polynomial through the logarithms of each curve's rates."""
    low, high = max(map(min, performances)), min(map(max, performances))
    areas = []
    for size, performance in zip(sizes, performances, strict=True):
        integral = np.polyint(np.polyfit(performance, np.log10(size), 3))
        areas.append(np.polyval(integral, high) - np.polyval(integral, low))
    return float(100 * (10 ** ((areas[1] - areas[0]) / (high - low)) - 1))


def test_rate_saving_against_formulas() -> None:
    sizes, drops = [8_000.0, 12_000.0, 18_000.0, 27_000.0, 40_000.0], [3.0, 1.4, 0.6, 0.2, 0.1]
    same = rate_saving(points(sizes, drops), points([0.8 * size for size in sizes], drops))
    assert same.percent == pytest.approx(-20, abs=1e-9) and same.overlap == (0.1, 3.0)
    worse = rate_saving(points([0.8 * size for size in sizes], drops), points(sizes, drops))
    assert worse.percent == pytest.approx(25, abs=1e-9)
    # Two smooth curves of video coding's shape, decibels over the logarithm of the rate.
    rates = [[100_000.0, 200_000.0, 400_000.0, 800_000.0], [80_000.0, 170_000.0, 330_000.0, 700_000.0]]
    decibels = [[30 + 4 * math.log2(rate / 1e5) - 0.2 * math.log2(rate / 1e5) ** 2 for rate in one] for one in rates]
    decibels[1] = [value + 0.7 for value in decibels[1]]
    curves = [points(rate, [40 - value for value in one]) for rate, one in zip(rates, decibels, strict=True)]
    assert rate_saving(*curves).percent == pytest.approx(cubic(rates, decibels), abs=0.3)

    few = rate_saving(points(sizes, drops), points(sizes[:3], drops[:3]))
    assert few.percent is None and few.reason == "the codec has 3 points on its front, 4 are needed"
    apart = rate_saving(points(sizes, drops), points(sizes, [drop + 10 for drop in drops]))
    assert apart.percent is None and "share no range" in apart.reason
    assert rate_saving([], points(sizes, drops)).percent is None


def application(sign: int = 1, tolerance: float = 0.005) -> Application:
    codecs = {name: points([float(size) for size in SIZES], list(DROPS), name) for name in ("nnc", "svd>nnc")}
    return Application(
        NASTY,
        "a" * 64,
        "b" * 64,
        "c",
        "1",
        "Net",
        "",
        "images/report",
        "d",
        "top1",
        0.9,
        sign > 0,
        tolerance,
        None,
        codecs,
    )


def test_a_server_is_linked_without_its_secrets() -> None:
    uri = "https://user:secret@host:5000/sub?token=secret"
    report = table.make([application()], uri, "report", None)
    address = f"https://host:5000/sub/#/experiments/1/runs/{report.rows[0].point.run_id}"
    cells = Cells()
    cells.feed(page.html(report))
    assert cells.links.count(address) >= 2  # in the table and among the points
    texts = [page.html(report), formats.markdown(report), formats.comma_separated(report), formats.latex(report)]
    assert f"]({address})" in texts[1] and address in texts[2]
    assert rf"\href{{{address.replace('#', chr(92) + '#')}}}" in texts[3]
    assert not [text for text in texts if "secret" in text]
    (picture,) = draw.pictures(report)
    assert address in picture  # a point of the curve leads to its run


def test_links_and_pipes_stay_what_they_are(full: Store, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("--experiment", "regressor", "--format", "csv", "-o")
    (tmp_path / "link").symlink_to("file")
    told(capfd, *words, str(tmp_path / "link"))
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        read = pool.submit((tmp_path / "pipe").read_bytes)
        told(capfd, *words, str(tmp_path / "pipe"))
        assert read.result(timeout=60) == (tmp_path / "file").read_bytes()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "pipe").is_fifo()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_curve_has_the_anchor_the_band_and_a_series_for_each_codec(sign: int) -> None:
    from matplotlib.figure import Figure

    one = application(sign)
    axes = Figure().subplots()
    draw.draw(axes, "net", one, table.make([one], "sqlite:///x.db", "report", None))
    (band,) = axes.patches
    assert sorted((band.get_y(), band.get_y() + band.get_height())) == pytest.approx(sorted((0.9, 0.9 - sign * 0.005)))
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["tolerance 0.005", "anchor 0.9000", "nnc", "svd>nnc"]
    bottom, top = axes.get_ylim()
    assert (top - bottom) * sign > 0  # worse is below, whichever way the metric counts
    drawn = axes.collections[0].get_offsets()
    expected = [(size / 1000, 0.9 - drop) for size, drop in zip(SIZES, DROPS, strict=True)]
    assert np.allclose(np.asarray(drawn), expected)


def test_curves_as_files(full: Store, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert not told(capfd, "--curve", str(tmp_path / "c.png"))
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert not told(capfd, "--curve", str(tmp_path / "c.svg"), "--experiment", "regressor")
    assert ElementTree.parse(tmp_path / "c.svg").getroot().tag.endswith("svg")
    assert not told(capfd, "--curve", str(tmp_path / "c.html"))
    text = (tmp_path / "c.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert text.count("<svg") == 3 and len(ids) == len(set(ids))
    used = re.findall(r'(?:url\(|href=")#([^")]+)', text)
    assert used and set(used) <= set(ids)
    cells = Cells()
    cells.feed(text)
    assert "script" not in cells.tags and "prefers-color-scheme" in text


def test_what_cannot_be_told_is_refused_in_a_line(
    full: Store, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*words: str) -> str:
        capfd.readouterr()
        assert command.main(list(words)) == 1
        out, err = capfd.readouterr()
        assert not out and err.startswith("error: ") and err.count("\n") == 1
        return err

    assert "no finished compression run" in refused("--experiment", "odd", "--split", "all")
    assert "there is no experiment 'x'" in refused("--experiment", "x")
    assert "'x' of --baseline" in refused("--baseline", "x")
    assert "cannot be written" in refused("-o", str(tmp_path / "missing" / "r.md"))
    (tmp_path / "kept.md").mkdir()
    assert "cannot be written" in refused("-o", str(tmp_path / "kept.md"))
    assert not list(tmp_path.glob("*.partial"))
    for words in (["-o", "r.doc"], ["--format", "pdf"], ["--curve", "c.doc"], ["--split", "train"], ["more"]):
        with pytest.raises(SystemExit) as ended:
            command.main(words)
        assert ended.value.code == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "there is no tracking store" in refused()
    assert not list(empty.iterdir())


def test_a_real_run(
    here: Here,
    tracker: Callable[..., Completed],
    ready: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{ready}/mlruns/mlflow.db")
    assert here("+codec=int8").returncode == 0
    (run,) = runs(ready, "compression")
    (anchor,) = runs(ready, "anchor")
    (row,) = csv.DictReader(io.StringIO(told(capfd, "--format", "csv")))
    assert row["run"] == run.info.run_id and row["anchor_run"] == anchor.info.run_id
    assert row["layers"] == "3 Conv2d, 3 BatchNorm2d, 1 Linear" and row["model"] == "Sequential"
    assert row["data"] == "digits/report" and row["data_digest"] == run.inputs.dataset_inputs[0].dataset.digest
    assert int(row["bytes"]) == run.data.metrics["size/bitstream_bytes"]
    done = tracker(module="tracker.report")  # as a user runs it, in the same folder
    assert done.returncode == 0 and row["run"] in done.stdout, done.stderr
