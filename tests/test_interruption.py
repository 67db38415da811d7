"""Runs that end early (Ctrl-C, SIGTERM, SIGKILL, a full disk), and runs that start together."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import runs

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

CODER = """
import shutil, sys, time
from pathlib import Path
Path(sys.argv[3]).write_text("here")
if not Path(sys.argv[3] + ".go").exists():
    time.sleep(60)
shutil.copy(sys.argv[1], sys.argv[2])
"""


class Started:
    """`python -m tracker +codec=external`, with commands that wait until they are told to go on."""

    def __init__(self, folder: Path, waits_in: str = "encode") -> None:
        self.folder, self.sign = folder, folder / "sign"
        script = folder / "coder.py"
        script.write_text(CODER)
        commands = {"encode": "other", "decode": "other", waits_in: "sign"}
        Path(f"{folder}/other.go").touch()
        self.words = ["+codec=external"] + [
            f"codec.external.{part}_command='{sys.executable} {script} {{input}} {{output}} {folder / sign}'"
            for part, sign in commands.items()
        ]
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tracker", *self.words],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def until_running(self) -> None:
        """Until the command runs, and with it the compression's run."""
        until(self.sign.exists, self.process)
        (run,) = runs(self.folder, "compression")
        assert run.info.status == "RUNNING"

    def ended(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def again(self) -> None:
        """The same command, left alone this time, works."""
        Path(f"{self.sign}.go").touch()
        self.process = self.start()
        status, _, err = self.ended()
        assert (status, err) == (0, "")
        states = [run.info.status for run in runs(self.folder, "compression")]
        assert sorted(states) == ["FAILED", "FINISHED"]
        assert len(runs(self.folder, "anchor")) == 1


@pytest.fixture
def started(ready: Path) -> Iterator[Callable[..., Started]]:
    made: list[Started] = []

    def start(waits_in: str = "encode") -> Started:
        made.append(Started(ready, waits_in))
        return made[-1]

    yield start
    for each in made:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()


def until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended too early: {process.communicate()}")
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def assert_failed(folder: Path, reason: str) -> None:
    """The run is FAILED, says why, and holds nothing that looks like a result."""
    (run,) = runs(folder, "compression")
    assert run.info.status == "FAILED"
    assert reason in run.data.tags["tracker.error"]
    assert "tracker.bitstream.sha256" not in run.data.tags
    assert "tracker.transparent" not in run.data.tags
    assert not list(folder.glob("mlruns/artifacts/*/artifacts/bitstream"))


def assert_one_line(err: str) -> None:
    assert err.startswith("error: ") and err.count("\n") == 1, err


@pytest.mark.parametrize(
    ("number", "status", "word", "reason", "waits_in"),
    [
        (signal.SIGINT, 130, "interrupted", "KeyboardInterrupt", "encode"),
        (signal.SIGTERM, 143, "terminated", "Terminated", "encode"),
        # By then the bitstream is stored, and is taken back.
        (signal.SIGTERM, 143, "terminated", "Terminated", "decode"),
    ],
)
def test_ctrl_c_and_sigterm_mark_the_run(
    started: Callable[..., Started], number: int, status: int, word: str, reason: str, waits_in: str
) -> None:
    run = started(waits_in)
    run.until_running()
    if waits_in == "decode":
        assert list(run.folder.glob("mlruns/artifacts/*/artifacts/bitstream/manifest.json"))
    os.kill(run.process.pid, number)
    ended, out, err = run.ended()
    assert ended == status
    assert_one_line(err)
    assert word in err and "Traceback" not in out + err
    assert_failed(run.folder, reason)
    assert not list(run.folder.glob("outputs/*/*/bitstream-*"))
    if waits_in == "encode" and number == signal.SIGINT:
        run.again()


@pytest.mark.parametrize("pause", [0.001, 0.03])
def test_impatient_ctrl_c_still_marks_the_run(started: Callable[..., Started], pause: float) -> None:
    """All that follow the first arrive while the run is being marked, or the end is told; the watchdog finishes what
    they interrupt."""
    run = started()
    run.until_running()
    while run.process.poll() is None:
        os.kill(run.process.pid, signal.SIGINT)
        time.sleep(pause)
    ended, out, err = run.ended()
    assert ended == 130
    assert "error: interrupted" in err
    assert "Traceback" not in out + err
    until(lambda: runs(run.folder, "compression")[0].info.status == "FAILED", seconds=30)


@pytest.mark.parametrize("waits_in", ["encode", "decode"])
def test_a_killed_run_is_marked_by_its_watchdog(started: Callable[..., Started], waits_in: str) -> None:
    run = started(waits_in)
    run.until_running()
    os.killpg(run.process.pid, signal.SIGKILL)  # the command as well: nothing else would end it
    assert run.ended()[0] == -signal.SIGKILL
    until(lambda: runs(run.folder, "compression")[0].info.status == "FAILED", seconds=30)
    assert_failed(run.folder, "killed")
    if waits_in == "decode":
        run.again()


@pytest.mark.slow
@pytest.mark.parametrize("delay", [1.5, 3.0, 6.0])
def test_ctrl_c_at_any_moment_of_a_first_start(tmp_path: Path, delay: float) -> None:
    """While modules are imported, or MLflow makes its tables: it is obeyed, and the next start works."""
    command = [sys.executable, "-m", "tracker"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)  # the whole group, as a terminal does
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in out
    # Before Python has come to this package's code a traceback is Python's own.
    assert process.returncode in ((0, 130) if delay > 1 else (0, 130, 1, -signal.SIGINT))
    if process.returncode == 130 and delay > 1:
        assert_one_line(err)
    after = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (after.returncode, after.stderr) == (0, "")


SWALLOWING = "import time\nprint('here', flush=True)\ntry:\n    time.sleep(60)\nexcept BaseException:\n    pass\n"


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(("number", "status", "word"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_an_import_is_ended_without_an_exception_unless_a_run_has_begun(
    tmp_path: Path, begun: bool, number: int, status: int, word: str
) -> None:
    """An exception there may be swallowed, and aborts the process in an extension module that calls Python."""
    (tmp_path / "swallowing.py").write_text(SWALLOWING)
    code = "from tracker import signals\nsignals.install()\n"
    code += "signals.begin()\n" if begun else ""
    code += "import swallowing\nsignals.check()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    process.send_signal(number)
    err = process.communicate(timeout=30)[1]
    if begun:
        assert err.splitlines()[-1].endswith("KeyboardInterrupt" if number == signal.SIGINT else "Terminated")
    else:
        assert (process.returncode, err) == (status, f"error: {word} before a run began\n")


# Interpreter and shell write no file before the limit is theirs to meet.
LIMITED = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import tracker.codecs.packed as packed, tracker.tracking.run as run
log_folder, before = run.Run.log_folder, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
def limited(self, folder, name):
    if name == "bitstream":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before))
    try:
        log_folder(self, folder, name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, before))
run.Run.log_folder = limited
sys.argv[:1] = ["tracker"]
from tracker import __main__ as command
command.leave(command.main())
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    """Put a file system of a few MB at a folder; skipped where that is not allowed."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            done = False
        if not done:
            pytest.skip("mounting is not allowed here")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


WIDE = ["anchor.width=256", "anchor.epochs=1", "anchor.name=digits"]  # 10 MB of weights


def test_full_disk_for_the_artifacts(small_disk: Callable[[Path, str], None], tracker: Callable, ready: Path) -> None:
    words = [*WIDE, "+codec=zstd", "codec.zstd.level=1"]
    small_disk(ready / "mlruns" / "artifacts", "1m")
    ended = tracker(*words)
    assert ended.returncode == 1
    assert_one_line(ended.stderr)
    assert "cannot be stored" in ended.stderr and "space" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    (anchor,) = runs(ready, "anchor")
    assert anchor.info.status == "FAILED"
    assert "cannot be stored" in anchor.data.tags["tracker.error"]
    assert not list(ready.glob("mlruns/artifacts/**/*.safetensors"))
    assert not runs(ready, "compression")


@pytest.mark.parametrize("where", ["outputs", "mlruns", "cache"])
def test_full_disk_elsewhere(
    small_disk: Callable[[Path, str], None], tracker: Callable, tmp_path: Path, where: str
) -> None:
    small_disk(tmp_path / where, "200k")
    ended = tracker("+codec=zstd", "anchor.epochs=1", TRACKER_CACHE=str(tmp_path / "cache"))
    assert ended.returncode == 1
    assert_one_line(ended.stderr)
    assert "unexpected" not in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    if where != "mlruns":
        assert not [run for run in runs(tmp_path, "compression") if run.info.status != "FAILED"]


def test_full_disk_for_the_database(
    small_disk: Callable[[Path, str], None], tracker: Callable, tmp_path: Path, made_store: Path
) -> None:
    small_disk(tmp_path / "mlruns", "960k")
    shutil.copy(made_store, tmp_path / "mlruns" / "mlflow.db")  # 932 KiB
    ended = tracker("+codec=zstd")
    assert ended.returncode == 1
    assert_one_line(ended.stderr)
    assert "disk is full" in ended.stderr and "unexpected" not in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


def test_bitstream_that_cannot_be_written_whole(ready: Path) -> None:
    """A limit on the size of files cuts the copy into the artifacts short."""
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, "+codec=zstd"],
        cwd=ready,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1, ended
    assert_one_line(ended.stderr)
    assert "bitstream/ cannot be stored" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert_failed(ready, "bitstream/ cannot be stored")


CODECS = ["fp16", "bf16", "int8", "int4", "zstd", "nnc", "nnc codec.nnc.qp=-28", "int4 codec.int4.group_size=32"]


@pytest.mark.slow
def test_eight_runs_at_once_on_a_fresh_store(tmp_path: Path) -> None:
    environment = {**os.environ, "TRACKER_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    started = []
    for codec in CODECS:
        command = [sys.executable, "-m", "tracker", *f"+codec={codec}".split()]
        started.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    ended = [(*process.communicate(timeout=240), process.returncode) for process in started]
    assert [status for *_, status in ended] == [0] * len(CODECS), ended
    (anchor,) = runs(tmp_path, "anchor")
    compressed = runs(tmp_path, "compression")
    assert len(compressed) == len(CODECS)
    assert {run.info.status for run in [anchor, *compressed]} == {"FINISHED"}
    assert {run.data.tags["tracker.anchor.run_id"] for run in compressed} == {anchor.info.run_id}
    assert len({run.data.tags["tracker.bitstream.sha256"] for run in compressed}) == len(CODECS)
