"""Bad input on the command line: one line that says what and how to mend it, and nothing that looks finished."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import Completed, Here, runs
from safetensors.torch import save_file

from tracker.anchors.resnet_cifar import CifarResNet
from tracker.errors import TrackerError
from tracker.tracking import store


def assert_refused(ended: Completed, folder: Path, *parts: str) -> None:
    """Status, the one line, and no run that looks finished."""
    assert ended.returncode == 1, ended
    assert ended.stderr.startswith("error: "), ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert "unexpected" not in ended.stderr, ended.stderr
    for part in parts:
        assert part in ended.stderr, ended.stderr
    if (folder / "mlruns" / "mlflow.db").exists():
        for run in runs(folder):
            if run.data.tags["tracker.kind"] == "compression":
                assert run.info.status == "FAILED"
                assert run.data.tags["tracker.error"]
            assert "tracker.bitstream.sha256" not in run.data.tags


CONFIGURATION = {
    "unknown option of a codec": (["+codec=nnc", "codec.nnc.foo=1"], ["codec.nnc.foo", "--cfg job"]),
    "appended option of a codec": (["+codec=nnc", "+codec.nnc.foo=1"], ["codec.nnc.foo", "--cfg job"]),
    "option of a codec that is swept over": (
        ["-m", "+codec=[fp16],[zstd]", "codec.zstd.level=3"],
        ["codec.zstd", "++KEY=VALUE"],
    ),
    "two of Hydra's modes": (["-m", "--cfg", "job"], ["Only one of --", "leave out"]),
    "option of a codec that is not there": (["codec.nnc.qp=1"], ["codec.nnc", "+codec=NAME"]),
    "unknown option at the top": (["+foo=1"], ["foo is not an option"]),
    "unknown option of a task": (["task.foo=1"], ["task.foo"]),
    "appended option of a task": (["+task.foo=1"], ["task.foo", "--cfg job"]),
    "unknown anchor": (["anchor=nope"], ["anchor/nope", "digits"]),
    "unknown codec": (["+codec=nope"], ["codec/nope", "nnc"]),
    "unknown task": (["task=nope"], ["task/nope", "classification"]),
    "unknown data": (["data=nope"], ["data/nope"]),
    "a codec without a plus": (["codec=nnc"], ["+codec=nnc"]),
    "no override at all": (["nnc"], ["nnc"]),
    "qp too large": (["+codec=nnc", "codec.nnc.qp=128"], ["qp=128", "-128 to 127"]),
    "qp too small": (["+codec=nnc", "codec.nnc.qp=-129"], ["qp=-129", "-128 to 127"]),
    "nonweight_qp out of range": (["+codec=nnc", "codec.nnc.nonweight_qp=999"], ["nonweight_qp=999"]),
    "nonweight_qp of 0": (["+codec=nnc", "codec.nnc.nonweight_qp=0"], ["nonweight_qp=0", "-1 or 1"]),
    "a qp of one tensor out of range": (["+codec=nnc", "+codec.nnc.qp_per_tensor={a: 999}"], ["qp_per_tensor.a=999"]),
    "qp_density out of range": (["+codec=nnc", "codec.nnc.qp_density=5"], ["codec.nnc.qp_density=5"]),
    "a number that is none": (["+codec=nnc", "codec.nnc.qp=low"], ["codec.nnc.qp='low'", "number"]),
    "a flag that is none": (["+codec=nnc", "codec.nnc.use_dq=perhaps"], ["codec.nnc.use_dq"]),
    "lsa": (["+codec=nnc", "codec.nnc.lsa=true"], ["codec.nnc.lsa", "does not work here"]),
    "ioq": (["+codec=nnc", "codec.nnc.ioq=true"], ["codec.nnc.ioq", "does not work here"]),
    "fine_tune": (["+codec=nnc", "codec.nnc.fine_tune=true"], ["codec.nnc.fine_tune", "does not work here"]),
    "tca": (["+codec=nnc", "codec.nnc.tca=true"], ["codec.nnc.tca", "does not work here"]),
    "level out of range": (["+codec=zstd", "codec.zstd.level=40"], ["codec.zstd.level=40"]),
    "two coders": (["+codec=[nnc,fp16]"], ["2 coders", "keep one"]),
    "a stage twice": (["+codec=[svd,'svd',nnc]"], ["svd>svd>nnc has svd more than once", "leave the others out"]),
    "a coder twice": (["+codec=[nnc,nnc]"], ["has nnc more than once"]),
    "missing command": (["+codec=external"], ["codec.external.encode_command is missing"]),
    "missing value of a task": (["task=custom"], ["task.tolerance is missing"]),
    "split that is none": (["task.split=train"], ["task.split", "report"]),
    "negative tolerance": (["task.tolerance=-1"], ["task.tolerance=-1"]),
    "confidence of 1": (["transparency.confidence=1"], ["transparency.confidence=1"]),
    "confidence of 0": (["transparency.confidence=0"], ["transparency.confidence=0"]),
    "confidence in percent": (["transparency.confidence=95"], ["transparency.confidence=95"]),
    "too few resamples": (["transparency.resamples=1"], ["transparency.resamples=1"]),
    "a device that is none": (["device=gpu"], ["device='gpu': it is auto, cpu, cuda (any GPU) or cuda:N"]),
    "a device with a number that is none": (["device=cuda:x"], ["device='cuda:x': it is auto"]),
    "negative seed": (["seed=-1"], ["seed=-1"]),
    "a target that is not there": (["anchor._target_=no.such.Thing"], ["anchor._target_=no.such.Thing"]),
    "a target of another kind": (["anchor._target_=tracker.data.digits.Digits"], ["anchor"]),
    "a scenario that is not there": (["scenario._target_=no.such.run"], ["scenario._target_=no.such.run"]),
    "missing CUDA": (["device=cuda:7"], ["device=cuda:7", "device=cpu"]),
    "missing command's program": (
        [
            "+codec=external",
            "codec.external.encode_command='no-such-program {input}'",
            "codec.external.decode_command='cat {input}'",
        ],
        ["no-such-program", "PATH"],
    ),
    "a command without its input": (
        ["+codec=external", "codec.external.encode_command=cat", "codec.external.decode_command='cat {input}'"],
        ["codec.external.encode_command", "{input}"],
    ),
}


@pytest.mark.parametrize("case", CONFIGURATION)
def test_refused_configurations(here: Here, ready: Path, case: str) -> None:
    words, parts = CONFIGURATION[case]
    assert_refused(here(*words), ready, *parts)
    assert not runs(ready)


@pytest.mark.parametrize("case", ["unknown option of a codec", "qp too large", "missing command", "unknown anchor"])
def test_refused_configurations_by_a_new_process(tracker: Callable, tmp_path: Path, case: str) -> None:
    words, parts = CONFIGURATION[case]
    began = time.monotonic()
    assert_refused(tracker(*words), tmp_path, *parts)
    assert time.monotonic() - began < 20
    left = {path.name for path in (tmp_path / "mlruns").glob("*")} if (tmp_path / "mlruns").exists() else set()
    assert not left - {"mlflow.lock"}  # the store that was being prepared is given up


@pytest.mark.parametrize("word, kept", [("wanted\n", True), ("", False)])
def test_a_store_is_made_beforehand_and_kept_only_if_it_is_wanted(tmp_path: Path, word: str, kept: bool) -> None:
    """However slow the command is to refuse its configuration, or if it was killed meanwhile."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    command = [sys.executable, "-m", "tracker.tracking.store"]
    done = subprocess.run(command, input=word, text=True, env=environment, capture_output=True)
    assert done.returncode == (0 if kept else 1), done.stderr
    assert {path.name for path in tmp_path.glob("*")} == {"mlflow.lock", *(["mlflow.db"] if kept else [])}


STAGES = '''
from tracker.codecs import Coder, Transform

class Nothing(Transform):
    """Changes nothing."""
    def apply(self, model, context):
        return model

class Raises(Transform):
    """Has a mistake."""
    def apply(self, model, context):
        raise ZeroDivisionError("of mine")

class Plain:
    """Is no stage."""
'''


@pytest.fixture
def stages(ready: Path) -> Path:
    """A user's transforms, and their configs."""
    (ready / "mystages.py").write_text(STAGES)
    (ready / "mybroken.py").write_text("def half(:\n")
    folder = ready / "mine" / "codec"
    folder.mkdir(parents=True)
    targets = {"nothing": "mystages.Nothing", "raises": "mystages.Raises", "plain": "mystages.Plain"}
    targets |= {"broken": "mybroken.Stage", "absent": "mystages.Absent"}
    for name, target in targets.items():
        (folder / f"{name}.yaml").write_text(f"# @package codec.{name}\n_target_: {target}\n")
    (folder / "twice.yaml").write_text("# @package codec.twice\n_target_: tracker.codecs.floats.Fp16\n")
    return ready / "mine"


@pytest.mark.parametrize(
    ("chain", "parts"),
    [
        ("nothing", ["no coder", "nnc"]),
        ("[fp16,nothing]", ["fp16 is not last"]),
        ("[fp16,twice]", ["2 coders (fp16, twice)"]),
        ("[plain,fp16]", ["codec.plain"]),
        ("[broken,fp16]", ["codec.broken", "SyntaxError"]),
        ("[absent,fp16]", ["codec.absent._target_=mystages.Absent"]),
    ],
)
def test_chains_that_cannot_work(here: Here, ready: Path, stages: Path, chain: str, parts: list[str]) -> None:
    assert_refused(here("--config-dir", str(stages), f"+codec={chain}"), ready, *parts)
    assert not runs(ready)


def test_a_transform_of_the_user_that_raises(here: Here, stages: Path, ready: Path) -> None:
    """Its own mistake, in one line with its kind, and with the way to its traceback; and the chain works without it."""
    ended = here("--config-dir", str(stages), "+codec=[raises,fp16]")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith("error: ")
    assert "ZeroDivisionError" in ended.stderr and "HYDRA_FULL_ERROR=1" in ended.stderr
    (run,) = runs(ready, "compression")
    assert run.info.status == "FAILED" and "of mine" in run.data.tags["tracker.error"]
    assert here("--config-dir", str(stages), "+codec=[nothing,fp16]").returncode == 0


@pytest.mark.parametrize(
    "encode",
    ["false {input}", f"{sys.executable} -c 'import sys; sys.exit(\"no licence\")' {{input}}", "true {input}"],
    ids=["fails", "says why", "writes nothing"],
)
def test_external_commands_that_fail(here: Here, ready: Path, encode: str) -> None:
    words = ["+codec=external", "codec.external.decode_command='cat {input}'"]
    quoted = encode.replace("'", "\\'")
    ended = here(*words, f"codec.external.encode_command='{quoted}'")
    assert_refused(ended, ready, encode.split()[0])
    if "licence" in encode:
        assert "no licence" in ended.stderr
    (run,) = runs(ready, "compression")
    assert not list(ready.glob("mlruns/artifacts/*/artifacts/bitstream"))
    assert encode.split()[0] in run.data.tags["tracker.error"]


def test_external_decoder_that_gives_other_tensors(here: Here, ready: Path) -> None:
    """Its bitstream is stored by then: it is taken back."""
    other = ready / "other.safetensors"
    save_file({"0.weight": torch.zeros(1)}, other)
    decode = f"{sys.executable} -c \\'import sys,shutil; shutil.copy(\"{other}\", sys.argv[2])\\' {{input}} {{output}}"
    words = ["+codec=external", "codec.external.encode_command='cat {input}'"]
    ended = here(*words, f"codec.external.decode_command='{decode}'")
    assert_refused(ended, ready, "decoded tensors do not fit")
    assert not list(ready.glob("mlruns/artifacts/*/artifacts/bitstream"))


# Data and weights: the CIFAR-10 anchor with images and weights that are made here.


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """data.root with two images a class and weights of ResNet-20, untrained."""
    from PIL import Image

    root = tmp_path / "root"
    for name in "abcdefghij":
        (root / "cifar10" / "test" / name).mkdir(parents=True)
        for number in range(2):
            image = Image.new("RGB", (32, 32), (25 * ord(name) % 256, 0, 0))
            image.save(root / "cifar10" / "test" / name / f"{number}.png")
    torch.manual_seed(0)
    save_file(CifarResNet(3).state_dict(), root / "resnet20_cifar10.safetensors")
    return root


def test_the_made_cifar_works(here: Here, ready: Path, cifar: Path) -> None:
    """What the following tests break is whole to begin with."""
    ended = here("anchor=resnet20_cifar10", f"data.root={cifar}", "+codec=fp16")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [run.info.status for run in runs(ready)] == ["FINISHED", "FINISHED"]


def broken_image(root: Path) -> None:
    path = root / "cifar10" / "test" / "c" / "1.png"
    path.write_bytes(path.read_bytes()[:40])


def no_image(root: Path) -> None:
    (root / "cifar10" / "test" / "c" / "1.png").write_text("not an image")


def empty_class(root: Path) -> None:
    shutil.rmtree(root / "cifar10" / "test" / "c")
    (root / "cifar10" / "test" / "c").mkdir()


def no_data(root: Path) -> None:
    shutil.rmtree(root / "cifar10")


def no_weights(root: Path) -> None:
    (root / "resnet20_cifar10.safetensors").unlink()


def truncated_weights(root: Path) -> None:
    path = root / "resnet20_cifar10.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def empty_weights(root: Path) -> None:
    (root / "resnet20_cifar10.safetensors").write_bytes(b"")


def deeper_weights(root: Path) -> None:
    save_file(CifarResNet(9).state_dict(), root / "resnet20_cifar10.safetensors")


def wider_weights(root: Path) -> None:
    save_file(CifarResNet(3, classes=100).state_dict(), root / "resnet20_cifar10.safetensors")


def nan_weights(root: Path) -> None:
    tensors = CifarResNet(3).state_dict()
    tensors["layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    save_file(tensors, root / "resnet20_cifar10.safetensors")


def infinite_weights(root: Path) -> None:
    tensors = CifarResNet(3).state_dict()
    tensors["linear.bias"][3] = float("inf")
    save_file(tensors, root / "resnet20_cifar10.safetensors")


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (broken_image, ["c/1.png", "replace or remove"]),
        (no_image, ["c/1.png", "replace or remove"]),
        (empty_class, ["test/c", "no images"]),
        (no_data, ["data.root=", "CIFAR-10"]),
        (no_weights, ["resnet20_cifar10.safetensors does not exist", "akamaster", "put it there"]),
        (truncated_weights, ["resnet20_cifar10.safetensors", "cannot be read", "again"]),
        (empty_weights, ["resnet20_cifar10.safetensors", "cannot be read", "again"]),
        (deeper_weights, ["the anchor's weights do not fit the architecture", "unexpected, such as layer1.3"]),
        (wider_weights, ["do not fit the architecture", "linear.", "(100"]),
        (nan_weights, ["layer2.0.conv1.weight", "NaN", "mend"]),
        (infinite_weights, ["linear.bias", "infinite", "mend"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_data_and_weights(
    here: Here, ready: Path, cifar: Path, damage: Callable[[Path], None], parts: list[str]
) -> None:
    damage(cifar)
    ended = here("anchor=resnet20_cifar10", f"data.root={cifar}", "+codec=nnc")
    if damage is deeper_weights:  # its message holds the word that assert_refused takes for an unforeseen error
        ended = Completed(ended.args, ended.returncode, ended.stdout, ended.stderr.replace("unexpected,", "surplus,"))
        parts = [part.replace("unexpected,", "surplus,") for part in parts]
    assert_refused(ended, ready, *parts)
    assert not [run for run in runs(ready) if run.info.status != "FAILED"]


@pytest.mark.parametrize(
    ("root", "parts"),
    [
        (None, ["data.root is not set", "data.root=FOLDER"]),
        ("absent", ["data.root=absent is not a folder"]),
        ("file", ["data.root=file is not a folder"]),
        ("empty", ["data.root=empty holds no CIFAR-10"]),
    ],
)
def test_data_roots_without_data(here: Here, ready: Path, root: str | None, parts: list[str]) -> None:
    (ready / "file").write_text("")
    (ready / "empty").mkdir()
    words = [] if root is None else [f"data.root={root}"]
    assert_refused(here("anchor=resnet20_cifar10", *words), ready, *parts)
    assert not runs(ready)


def test_broken_image_in_an_image_folder(here: Here, ready: Path, cifar: Path) -> None:
    broken_image(cifar)
    words = ["anchor=resnet20_cifar10", "data=image_folder", f"data.root={cifar / 'cifar10'}"]
    words.append(f"anchor.weights_file={cifar / 'resnet20_cifar10.safetensors'}")
    assert_refused(here(*words, "+codec=nnc"), ready, "c/1.png", "replace or remove")


def test_broken_batch_of_torchvisions_cifar(here: Here, ready: Path, cifar: Path) -> None:
    shutil.rmtree(cifar / "cifar10")
    (cifar / "cifar-10-batches-py").mkdir()
    (cifar / "cifar-10-batches-py" / "test_batch").write_bytes(b"\x80\x04cos\nsystem\n")
    words = ["anchor=resnet20_cifar10", f"data.root={cifar}", "+codec=nnc"]
    assert_refused(here(*words), ready, "test_batch is not a batch of CIFAR-10")


def test_confidence_for_a_task_without_scores(here: Here, ready: Path) -> None:
    """The bitstream was made and evaluated before this is known: the run is FAILED, and keeps no bitstream."""
    (ready / "mytask.py").write_text("def measure(predict, batches):\n    return {'always': 1.0}\n")
    words = ["task=custom", "task.tolerance=0.1", "task.metric=always", "task.function._target_=mytask.measure"]
    ended = here(*words, "+codec=fp16", "transparency.confidence=0.95")
    assert_refused(ended, ready, "transparency.confidence=0.95", "leave it out")
    assert here(*words, "+codec=fp16").returncode == 0


# The tracking store.


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("http://127.0.0.1:9", ["http://127.0.0.1:9", "does not answer", "MLFLOW_TRACKING_URI"]),
        ("http://user:secret@127.0.0.1:9", ["http://127.0.0.1:9", "does not answer"]),
        ("http://", ["MLFLOW_TRACKING_URI"]),
        ("http://[::1", ["MLFLOW_TRACKING_URI"]),
        ("http://127.0.0.1:port", ["MLFLOW_TRACKING_URI"]),
        ("nonsense://somewhere", ["nonsense://somewhere", "MLFLOW_TRACKING_URI"]),
        ("postgresql://user:secret@127.0.0.1:9/runs", ["postgresql://127.0.0.1:9/runs", "MLFLOW_TRACKING_URI"]),
        ("sqlite:////proc/nowhere/mlflow.db", ["/proc/nowhere", "cannot be made"]),
    ],
)
def test_stores_that_cannot_be_used(here: Here, ready: Path, uri: str, parts: list[str]) -> None:
    began = time.monotonic()
    ended = here("+codec=fp16", MLFLOW_TRACKING_URI=uri)
    assert_refused(ended, ready, *parts)
    assert "secret" not in ended.stdout + ended.stderr
    assert time.monotonic() - began < 15


def test_store_that_is_no_database(here: Here, ready: Path) -> None:
    (ready / "mlruns" / "mlflow.db").write_text("not a database, but long enough to be looked at " * 100)
    ended = here("+codec=fp16")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: the MLflow store") and ended.stderr.count("\n") == 1
    assert "not a database" in ended.stderr


def test_file_in_the_place_of_the_tracking_folder(here: Here, ready: Path) -> None:
    shutil.rmtree(ready / "mlruns")
    (ready / "mlruns").write_text("")
    assert_refused(here("+codec=fp16"), ready, "mlruns", "cannot be made")


def test_missing_server_fails_within_seconds(tracker: Callable, tmp_path: Path) -> None:
    began = time.monotonic()
    ended = tracker("+codec=nnc", MLFLOW_TRACKING_URI="http://127.0.0.1:9", timeout=60)
    assert_refused(ended, tmp_path, "does not answer")
    assert time.monotonic() - began < 30


@pytest.fixture
def other_server() -> Iterator[str]:
    """A web server that is no MLflow."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404 if "api" in self.path else 200)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://user:secret@127.0.0.1:{server.server_port}"
    server.shutdown()


def test_server_that_is_no_mlflow(here: Here, ready: Path, other_server: str) -> None:
    ended = here("+codec=fp16", MLFLOW_TRACKING_URI=other_server)
    assert_refused(ended, ready, "cannot be opened", "MLFLOW_TRACKING_URI")
    assert "secret" not in ended.stdout + ended.stderr


def test_messages_without_passwords() -> None:
    uri = "https://user:secret@host:5000/path"
    assert store.without_secrets("https://user:secret@host:5000/path?token=1") == "https://host:5000/path"
    assert store.without_secrets("sqlite:///mlruns/mlflow.db") == "sqlite:///mlruns/mlflow.db"
    assert store.without_password(f"failed: {uri}!", uri) == "failed: https://host:5000/path!"


# What a run that works leaves behind, and what it says.


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_quiet_and_tidy(tracker: Callable, ready: Path) -> None:
    """A few summary lines on stdout, nothing on stderr; files only in mlruns/, outputs/ and the cache.

    On a machine without git as well, of which MLflow warns.
    """
    home, cache, scratch = (ready / name for name in ("home", "cache", "scratch"))
    work = ready / "work"
    for folder in (home, scratch, work):
        folder.mkdir()
    shutil.move(ready / "mlruns", work / "mlruns")
    environment = {"HOME": str(home), "TRACKER_CACHE": str(cache), "TMPDIR": str(scratch), "PATH": str(scratch)}
    ended = tracker("+codec=nnc", cwd=work, **environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert 3 <= len(lines) <= 6, lines
    assert "\r" not in ended.stdout and "it/s" not in ended.stdout
    assert {path.name for path in work.iterdir()} <= {"mlruns", "outputs"}
    assert not listing(home)
    assert not listing(scratch)
    assert not [name for name in listing(cache) if name.endswith(".partial")]
    assert not [name for name in listing(work / "outputs") if "bitstream" in name or name.endswith("safetensors")]
    assert {path.name for path in (work / "mlruns").iterdir()} == {"mlflow.db", "mlflow.lock", "artifacts"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on the loopback device; the store's artifacts go through it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "server"
    folder.mkdir()
    words = ["server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--host", "127.0.0.1"]
    words += ["--artifacts-destination", str(folder / "artifacts"), "--port", str(port), "--workers", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None and time.monotonic() < end, "mlflow server does not start"
            time.sleep(0.3)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


@pytest.mark.slow
def test_password_of_a_server_is_nowhere(tracker: Callable, tmp_path: Path, server: str) -> None:
    """One run that works and one that fails, on a real server whose address holds a password."""
    work = tmp_path / "work"
    work.mkdir()
    uri = f"http://user:s3cr3t-word@{server}"
    good = tracker("+codec=fp16", cwd=work, MLFLOW_TRACKING_URI=uri)
    assert (good.returncode, good.stderr) == (0, ""), good
    bad = tracker(
        "+codec=external",
        "codec.external.encode_command='false {input}'",
        "codec.external.decode_command='cat {input}'",
        cwd=work,
        MLFLOW_TRACKING_URI=uri,
    )
    assert bad.returncode == 1 and bad.stderr.count("\n") == 1
    assert "s3cr3t" not in good.stdout + good.stderr + bad.stdout + bad.stderr
    stored = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in stored if path.name == "manifest.json"]
    assert not [path for path in stored if b"s3cr3t" in path.read_bytes()]
    assert not (work / "mlruns").exists()


def test_a_long_message_keeps_both_ends() -> None:
    told = str(TrackerError(f"begins {'x' * 100_000} ends"))
    assert told.startswith("begins") and told.endswith("ends") and len(told) < 2100 and "\n" not in told
