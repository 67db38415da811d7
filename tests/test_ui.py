"""MLflow's pages: saved views, descriptions, the curve after a multirun, and the command that opens them."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from conftest import Completed, Here, runs

from tracker.ui import views
from tracker.ui.__main__ import main as ui

STUDY = "hydra.sweeper.seed=0"
STATIC = Path(__import__("mlflow").__file__).parent / "server" / "js" / "build" / "static" / "js"


def client_of(folder: Path):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")


def artifacts(folder: Path, run) -> Path:
    return folder / "mlruns" / "artifacts" / run.info.run_id / "artifacts"


def state_of(tag: str) -> dict:
    """What MLflow's page makes of the tag: the envelope of a saved view, then pako's inflate of base64."""
    outer = json.loads(tag)
    assert isinstance(outer["name"], str) and isinstance(outer["createdAt"], int)  # or it is in no menu
    head, _, packed = outer["state"].partition(";")
    assert head == "deflate"
    return json.loads(zlib.decompress(base64.b64decode(packed)))


@pytest.fixture(scope="module")
def scripts() -> str:
    """All of the page's scripts."""
    found = "".join(path.read_text(errors="replace") for path in sorted(STATIC.glob("*.js")))
    assert found
    return found


def test_the_view_has_names_that_the_page_reads(scripts: str) -> None:
    assert f'"{views.TAG}"' in scripts and '"viewStateShareKey"' in scripts and f'"{views.HEADER}"' in scripts
    (tag,) = views.tags().values()
    state = state_of(tag)
    facets = re.search(r'\["searchFilter","orderByKey",[^\]]*\]', scripts)
    page = re.search(r'\["selectedColumns","columnOrder",[^\]]*\]', scripts)
    assert facets and page
    assert state.keys() <= {*json.loads(facets[0]), *json.loads(page[0])}
    charts = set(re.search(r"function\(e\)\{return (e\.BAR=[^}]*?),e\}", scripts)[1].replace('"', "").split(","))
    for chart in state["compareRunCharts"]:
        assert f"e.{chart['type']}={chart['type']}" in charts
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= sections
    assert f'"{state["runsHiddenMode"]}"' in scripts


def test_the_view_is_short_enough_for_a_tag() -> None:
    params = [f"codec.svd.ratios.layer{index}.conv" for index in range(8)]
    packed = views.packed(views.trials_view("0" * 32, views.SIZE, True, params, [views.SIZE, views.DROP]))
    assert max(len(packed), *map(len, views.tags().values())) < 5000  # MLflow's limit before version 3
    assert views.unpacked(packed)["columnOrder"][-1] == f"params.`{params[-1]}`"


def test_an_address_is_one_of_the_page() -> None:
    address = views.address("http://example.org:1/", "7", mode="CHART")
    page, _, query = address.partition("?")
    assert page == "http://example.org:1/#/experiments/7/runs"
    assert parse_qs(query)["viewStateShareKey"] == [views.KEY] and parse_qs(query)["compareRunsMode"] == ["CHART"]
    assert views.address("", "7").startswith("#/experiments/7/")


def test_a_multirun_leaves_the_curve_with_the_anchor(here: Here, ready: Path) -> None:
    done = here("-m", "+codec=int8,fp16")
    assert done.returncode == 0, done.stderr
    (anchor,) = runs(ready, "anchor")
    plots = artifacts(ready, anchor) / "plots"
    assert (plots / "curve.png").read_bytes().startswith(b"\x89PNG")
    page = (plots / "curve.html").read_text()
    for run in runs(ready, "compression"):
        assert run.info.run_id in page and run.data.tags["tracker.codec"] in page
        note = run.data.tags["mlflow.note.content"]
        assert f"{run.data.metrics['size/bitstream_bytes']:,.0f} bytes" in note and anchor.info.run_id in note
    assert "http" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)  # it opens without a network
    assert "plots/curve.html" in anchor.data.tags["mlflow.note.content"]
    assert str(plots / "curve.png") in done.stdout + done.stderr
    (experiment,) = [one for one in client_of(ready).search_experiments() if one.name == "digits"]
    state = state_of(experiment.tags[f"{views.TAG}{views.KEY}"])
    assert state["orderByKey"] == "metrics.`size/bitstream_bytes`" and state["orderByAsc"] is True
    wanted = client_of(ready).search_runs([experiment.experiment_id], state["searchFilter"])
    assert len(wanted) == 3
    metrics = {f"metrics.`{name}`" for run in wanted for name in run.data.metrics}
    tags = {f"tags.`{name}`" for run in wanted for name in run.data.tags}
    assert set(state["selectedColumns"]) <= metrics | tags  # no column stays empty

    # What one's own words say of the anchor stays, and a job that failed costs the others no curve.
    client_of(ready).set_tag(anchor.info.run_id, "mlflow.note.content", "mine")
    (plots / "curve.png").unlink()
    done = here("-m", "+codec=nnc", "codec.nnc.qp=-32,-2000000")
    assert done.returncode == 1 and "error: " in done.stderr
    assert (plots / "curve.png").exists()
    note = runs(ready, "anchor")[0].data.tags["mlflow.note.content"]
    assert note.startswith("mine [") and "plots/curve.html" in note


def test_a_single_run_draws_no_curve(here: Here, ready: Path) -> None:
    assert here("+codec=int8").returncode == 0
    (anchor,) = runs(ready, "anchor")
    assert not (artifacts(ready, anchor) / "plots").exists()


def test_a_curve_that_cannot_be_drawn_is_told_in_a_line(
    here: Here, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tracker.report import multirun

    def broken(*words: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(multirun, "write_picture", broken)
    done = here("-m", "+codec=int8")
    assert done.returncode == 0, done.stderr
    assert "no ink" in done.stdout + done.stderr and "Traceback" not in done.stdout + done.stderr


def test_a_sweep_describes_itself(here: Here, ready: Path) -> None:
    words = ["codec.nnc.qp=choice(-34,-32,-30)", "codec.nnc.nonweight_qp=choice(-75)", "hydra.sweeper.n_trials=3"]
    done = here("-m", "+codec=nnc", "hydra/sweeper=tracker", STUDY, *words)
    assert done.returncode == 0, done.stderr
    (parent,) = runs(ready, "sweep")
    trials, (best,) = runs(ready, "trial"), runs(ready, "compression")
    note = parent.data.tags["mlflow.note.content"]
    assert len(note) < 8000
    first = note.splitlines()[0]
    assert f"{best.data.metrics['size/bitstream_bytes']:,.0f} bytes" in first and "report split" in first
    for run in (best, *runs(ready, "anchor")[:1]):
        assert f"/runs/{run.info.run_id})" in note
    assert "(#/models/digits/versions/1)" in note
    assert "`python -m tracker +codec=nnc codec.nnc.qp=" in note
    assert "The same in all trials: `nnc.nonweight_qp` -75." in note

    # The table of trials there has the feasible ones, the smallest first, and what differs alone.
    lines = [line for line in note.splitlines() if line.startswith("| ") and "/runs/" in line]
    feasible = sorted(
        (run.data.metrics["size/bitstream_bytes"], run.info.run_id)
        for run in trials
        if run.data.metrics.get("performance/transparent") == 1
    )
    assert [re.search(r"/runs/(\w+)\)", line)[1] for line in lines] == [run_id for _, run_id in feasible]
    (head,) = [line for line in note.splitlines() if line.startswith("| trial&")]
    assert "nnc.qp" in head and "nonweight" not in head
    table = json.loads((artifacts(ready, parent) / "trials.json").read_text())
    assert "nnc/qp" in table["columns"] and "nnc/nonweight_qp" not in table["columns"]
    assert parent.data.tags["tracker.codec"] == "nnc"

    # Its trials have a view of their own, and the codec's curve is there.
    key = re.search(r"viewStateShareKey=([\w-]+)", note)[1]
    (experiment,) = [one for one in client_of(ready).search_experiments() if one.name == "digits"]
    state = views.unpacked(experiment.tags[f"{views.TAG}{key}"])
    found = client_of(ready).search_runs([experiment.experiment_id], state["searchFilter"])
    assert {run.info.run_id for run in found} == {run.info.run_id for run in trials}
    assert state["compareRunCharts"][0]["selectedParams"] == ["codec.nnc.qp"]
    assert (artifacts(ready, parent) / "plots" / "curve.png").is_file()


def test_each_codec_of_a_sweep_is_a_series(here: Here, ready: Path) -> None:
    # With two objectives no trial is stopped before its performance is known.
    objectives = "hydra.sweeper.objectives=[size/bitstream_bytes,performance/drop]"
    words = ["+codec=choice(int8,fp16)", objectives, "hydra.sweeper.n_trials=2", "hydra.sweeper.report=false"]
    done = here("-m", "hydra/sweeper=tracker", STUDY, *words)
    assert done.returncode == 0, done.stderr
    (parent,) = runs(ready, "sweep")
    page = (artifacts(ready, parent) / "plots" / "sweep.html").read_text()
    names = re.findall(r'"name":"(\w+)"', page)
    assert {"int8", "fp16"} <= set(names)


def test_a_description_without_a_transparent_trial(here: Here, ready: Path) -> None:
    words = ["codec.int4.group_size=choice(32,64)", "task.tolerance=0", "transparency.confidence=0.95"]
    done = here("-m", "+codec=int4", "hydra/sweeper=tracker", STUDY, *words, "hydra.sweeper.n_trials=2")
    assert done.returncode == 0, done.stderr
    note = runs(ready, "sweep")[0].data.tags["mlflow.note.content"]
    assert note.startswith("**No trial kept the constraints.**") and "2 trials" in note


def test_a_description_of_many_parameters_fits() -> None:
    """MLflow would refuse a longer one, and the sweep would fail at its end."""
    from types import SimpleNamespace

    from optuna.distributions import FloatDistribution

    from tracker.sweep import describe
    from tracker.sweep.history import Past
    from tracker.sweep.outcome import Outcome
    from tracker.sweep.space import Parameter

    space = {
        f"codec.svd.ratios.{name}": Parameter("codec.svd.ratios", FloatDistribution(0, 1), entry=name)
        for name in (f"encoder.blocks.{index}.attention.projection{'|' * (index % 2)}" for index in range(80))
    }
    trials, past, told = [], {}, {}
    for number in range(30):
        params = {key: (number + index) / 110 for index, key in enumerate(space)}
        metrics = {"size/bitstream_bytes": 10**6 + number, "size/rate_percent": 5.0, "performance/drop": 0.001}
        trials.append(SimpleNamespace(number=number, params=params, user_attrs={"outcome": {"run_id": "0" * 32}}))
        past[number] = Past(number, params, Outcome(metrics, -0.004), metrics["size/bitstream_bytes"], True)
    client = SimpleNamespace(
        set_experiment_tag=lambda *words: told.update({words[1]: words[2]}), search_model_versions=lambda query: []
    )
    sweep = SimpleNamespace(
        space=space,
        objective="size/bitstream_bytes",
        shared=SimpleNamespace(study=SimpleNamespace(get_trials=lambda deepcopy: trials)),
        history=SimpleNamespace(past=past, failed={}, sign=1),
        settings=SimpleNamespace(
            directions={"size/bitstream_bytes": "minimize"}, transparent=True, constraints=["time/decode_s<=1"]
        ),
        trials=SimpleNamespace(title="large", experiment="1"),
        command=lambda params: " ".join(f"{key}={value}" for key, value in params.items()),
    )
    run = SimpleNamespace(id="1" * 32, client=client, set_tags=told.update)
    describe.describe(sweep, run, past[0], {})
    note = told["mlflow.note.content"]
    assert len(note) < 8000 and note.startswith("**Best: trial 0, bytes 1,000,000.**")
    table = [line for line in note.splitlines() if line.startswith("| ") and "/runs/" in line]
    assert table and all(
        len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", table[0])) for line in table
    )
    assert all(len(value) < 5000 for key, value in told.items() if key.startswith(views.TAG))


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    assert ui([*words, "--no-open"]) == 1
    told = capfd.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    return told


@pytest.fixture
def signals_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *words: None)


@pytest.mark.usefixtures("signals_kept")
def test_what_cannot_be_opened_is_told(
    tmp_path: Path, made_store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "no tracking store" in refused(capfd)
    assert not (tmp_path / "mlruns").exists()  # looking makes none
    store = f"sqlite:///{shutil.copy(made_store, tmp_path / 'mlflow.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert "has no run of tracker's" in refused(capfd)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert "no experiment 'mine'" in refused(capfd, "--experiment", "mine")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///somewhere")
    assert "neither a database nor a server" in refused(capfd)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{closed.getsockname()[1]}")
        told = refused(capfd)
    assert "does not answer" in told and "secret" not in told


@pytest.mark.usefixtures("signals_kept")
def test_a_port_in_use_is_told(here: Here, ready: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert here("+codec=int8").returncode == 0
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{ready}/mlruns/mlflow.db"
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        assert f"127.0.0.1:{port}" in refused(capfd, "--port", port)


def test_an_old_view_is_renewed(here: Here, ready: Path) -> None:
    from tracker.ui.experiments import viewed

    assert here("+codec=int8").returncode == 0
    client = client_of(ready)
    ((experiment, name),) = viewed(client)
    assert name == "digits"
    tag = f"{views.TAG}{views.KEY}"
    made = client.get_experiment(experiment).tags[tag]
    viewed(client)
    assert client.get_experiment(experiment).tags[tag] == made  # nothing is written where nothing changes
    for old in ("{}", "deflate;AAAA", "nothing"):
        client.set_experiment_tag(experiment, tag, old)
        assert viewed(client) == [(experiment, name)]
        assert state_of(client.get_experiment(experiment).tags[tag]) == views.runs_view()


@pytest.mark.slow
def test_the_command_serves_the_store_until_it_is_interrupted(
    tracker: Callable[..., Completed], tmp_path: Path
) -> None:
    """And Chromium, where there is one, shows the view."""
    import requests

    assert tracker("-m", "+codec=int8,fp16").returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "tracker.ui", "--port", "0", "--no-open"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # pytest may run where Ctrl-C is ignored, which a process inherits.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        address = process.stdout.readline().partition(": ")[2].strip()
        assert "Ctrl-C" in process.stdout.readline()
        server = address.partition("/#")[0]
        (anchor,) = runs(tmp_path, "anchor")
        query = {"run_uuid": anchor.info.run_id, "path": "plots/curve.png"}
        assert requests.get(f"{server}/get-artifact", query, timeout=30).content.startswith(b"\x89PNG")
        text = shown(address, tmp_path)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert process.stderr.read().split() == ["ended"]
    with pytest.raises(requests.ConnectionError):
        requests.get(server, timeout=5)
    if text is None:
        pytest.skip("no chromium here to look at the page with")
    assert "size/rate_percent" in text and views.NAME in text
    assert text.index("int8") < text.index("fp16")  # the smaller one comes first


def shown(address: str, folder: Path) -> str | None:
    """The page as Chromium has it after its scripts have run; None where there is no Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        return None
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}"]
    wide = ["--window-size=2400,1200", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run([browser, *flags, *wide, address], capture_output=True, text=True, timeout=120, check=False)
    return re.sub(r"<[^>]*>", " ", done.stdout)
