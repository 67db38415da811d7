"""Model updates: what is sent, what a receiver makes of it, and what it refuses."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Completed, Here, runs
from nncodec import nnc
from safetensors.torch import save_file
from torch import Tensor, nn

from tracker.bitstream import bitstream_bytes, encode_bitstream
from tracker.bitstream.decoder import decode_bitstream
from tracker.codecs.base import Coder, Context
from tracker.codecs.chain import Codec
from tracker.codecs.integers import Int8
from tracker.codecs.nnc import Nnc
from tracker.errors import TrackerError
from tracker.structure import rebuild
from tracker.structure.resize import edits
from tracker.update.checkpoints import checkpoints
from tracker.update.delta import applied, encode_update
from tracker.update.modes import MODES
from tracker.update.receiver import Receiver
from tracker.update.state import FILE, Missed, State

CONTEXT = Context(lambda model, inputs: model(inputs), lambda: (), 0, "cpu", state=lambda model: model.state_dict())
COARSE = Nnc(qp=-12, nonweight_qp=-40, bnf=False)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 4)
    )


def sequence(count: int, share: float = 0.02) -> list[dict[str, Tensor]]:
    """Checkpoints that move a little from one to the next, each in another direction; the last layer stays."""
    state, found = network().state_dict(), []
    torch.manual_seed(1)
    for _ in range(count):
        found.append({name: tensor.clone() for name, tensor in state.items()})
        for name, tensor in state.items():
            if not name.startswith("5."):
                tensor += share * torch.randn(tensor.shape) if tensor.is_floating_point() else 1
    return found


def codec_of(coder: Coder) -> Codec:
    return Codec({}, "nnc" if isinstance(coder, Nnc) else "int8", coder)


def whole(tensors: Mapping[str, Tensor], folder: Path, coder: Coder = COARSE) -> Path:
    folder.mkdir()
    encode_bitstream(codec_of(coder), tensors, None, folder, CONTEXT)
    return folder


def update(
    mode: str, tensors: Mapping[str, Tensor], state: State, before: Any, folder: Path, coder: Coder = COARSE
) -> Path:
    folder.mkdir()
    encode_update(codec_of(coder), tensors, MODES[mode], state, before, folder, CONTEXT)
    return folder


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim}


def alone(function: Any, *words: Any, **options: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*words, **options)


@pytest.mark.parametrize("temporal", [False, True])
def test_differences_are_nncodecs_own_incremental_updates(temporal: bool, tmp_path: Path) -> None:
    """Unit by unit the same bytes, and for NNCodec alone the same values."""
    steps = sequence(4, 0.2)
    state = applied(None, whole(steps[0], tmp_path / "whole"))
    base: dict[str, Any] = {"parameters": {}, "put_node_depth": {}, "parameter_id": {}, "device_id": 0}
    theirs, decoding = copy.deepcopy(base), copy.deepcopy(base)
    known = arrays(state.tensors)
    for number, tensors in enumerate(steps[1:], 1):
        tensors = {name: t + 0.3 * number if t.is_floating_point() else t for name, t in tensors.items()}
        mode = "context" if temporal else "difference"
        folder = update(mode, tensors, state, steps[number - 1], tmp_path / f"{number}")
        difference = {name: array - known[name] for name, array in arrays(tensors).items()}
        given = {"qp": -12, "nonweight_qp": -40, "compress_differences": True, "tca": temporal, "row_skipping": True}
        coded = alone(
            nnc.compress,
            difference,
            bitstream_path=None,
            return_bitstream=True,
            approx_param_base=theirs,
            update_base_param=True,
            **given,
        )
        own = (folder / "model.nnc").read_bytes()
        assert own == bytes(coded)
        values = alone(nnc.decompress, bytearray(own), approx_param_base=decoding, update_base_param=True)
        known = {name: known[name] + values[name] for name in known}
        state = applied(state, folder)
        assert all(np.array_equal(known[name], state.tensors[name].numpy()) for name in known)
        assert all(int(state.tensors[name]) == int(tensors[name]) for name in tensors if name.endswith("tracked"))


@pytest.mark.parametrize(
    ("mode", "coder"), [("difference", COARSE), ("context", COARSE), ("changed", COARSE), ("difference", Int8())]
)
def test_errors_of_fifty_updates_do_not_pile_up(mode: str, coder: Coder, tmp_path: Path) -> None:
    steps = sequence(51)
    receiver = Receiver(tmp_path / "state")
    receiver.apply(whole(steps[0], tmp_path / "0", coder))
    errors = []
    for number, tensors in enumerate(steps):
        if number:
            assert receiver.state is not None
            receiver.apply(update(mode, tensors, receiver.state, steps[number - 1], tmp_path / f"{number}", coder))
        receiver = Receiver(tmp_path / "state")  # it is started anew
        assert receiver.state is not None
        off = [(receiver.state.tensors[name] - tensors[name]).square().sum() for name in ("0.weight", "4.weight")]
        errors.append(float(sum(off)) ** 0.5)
    assert max(errors[-10:]) < 1.3 * errors[0]
    if mode == "changed":  # what does not change stays as it was decoded first
        assert torch.equal(receiver.state.tensors["5.weight"], decode_bitstream(tmp_path / "0")["5.weight"])


def test_long_tensors_of_few_bytes_are_decoded_as_nncodec_does(tmp_path: Path) -> None:
    """They are decoded in a process of their own, from the contexts of the update before."""
    torch.manual_seed(0)
    tensors = {"little": torch.randn(16, 16), "long": torch.randn(400, 1000)}
    state = applied(None, whole(tensors, tmp_path / "whole"))
    decoding = _base()["approx_param_base"]
    for number in range(3):
        before, tensors = tensors, {name: tensor.clone() for name, tensor in state.tensors.items()}
        tensors["little"] += 0.5 * torch.randn(16, 16)
        tensors["long"][number, :3] += 1.0
        folder = update("context", tensors, state, before, tmp_path / f"{number}")
        content = (folder / "model.nnc").read_bytes()
        assert 64 * len(content) < tensors["long"].numel()
        values = alone(nnc.decompress, bytearray(content), approx_param_base=decoding, update_base_param=True)
        wanted = {name: state.tensors[name].numpy() + array for name, array in values.items()}
        state = applied(state, folder)
        assert wanted.keys() == {"little", "long"}
        assert all(np.array_equal(state.tensors[name].numpy(), array) for name, array in wanted.items())


def test_a_difference_leaves_out_what_becomes_zero(tmp_path: Path) -> None:
    tensors = sequence(1)[0]
    state = applied(None, whole(tensors, tmp_path / "whole"))
    moved = {name: t.clone() for name, t in state.tensors.items()}
    moved["0.weight"] += 0.4
    moved["4.weight"] += 1e-4  # far less than a step
    folder = update("difference", moved, state, tensors, tmp_path / "one")
    after = applied(state, folder)
    assert list(alone(nnc.decompress, bytearray((folder / "model.nnc").read_bytes()), **_base())) == ["0.weight"]
    assert torch.equal(after.tensors["4.weight"], state.tensors["4.weight"])
    # And of nothing at all there is a manifest only.
    folder = update("difference", dict(state.tensors), state, tensors, tmp_path / "nothing")
    assert [path.name for path in folder.iterdir()] == ["manifest.json"] and bitstream_bytes(folder) < 300
    assert applied(state, folder).tensors.keys() == state.tensors.keys()


def _base() -> dict[str, Any]:
    empty: dict[str, Any] = {"parameters": {}, "put_node_depth": {}, "parameter_id": {}, "device_id": 0}
    return {"approx_param_base": empty}


def test_an_update_that_was_lost_is_noticed_and_one_that_came_twice_is_not(tmp_path: Path) -> None:
    steps = sequence(4)
    receiver = Receiver(tmp_path / "state")
    with pytest.raises(Missed, match="the receiver has nothing"):
        known = applied(None, whole(steps[0], tmp_path / "0"))
        receiver.apply(update("difference", steps[1], known, steps[0], tmp_path / "1"))
    receiver.apply(tmp_path / "0")
    second = applied(known, tmp_path / "1")
    update("context", steps[2], second, steps[1], tmp_path / "2")
    with pytest.raises(Missed, match="an update before it was lost"):
        receiver.apply(tmp_path / "2")
    assert receiver.state is not None and receiver.state.digest == known.digest
    receiver.apply(tmp_path / "1")
    receiver.apply(tmp_path / "1")
    assert receiver.state.digest == second.digest
    receiver.apply(tmp_path / "2")
    with pytest.raises(Missed):
        receiver.apply(tmp_path / "1")  # an old one
    # A whole model always helps.
    receiver.apply(whole(steps[3], tmp_path / "3"))
    assert receiver.state.digest == applied(None, tmp_path / "3").digest
    # An update is no model.
    with pytest.raises(TrackerError, match="an update of one"):
        decode_bitstream(tmp_path / "1")


def test_damage_is_refused_and_the_state_stays(tmp_path: Path) -> None:
    steps = sequence(2)
    receiver = Receiver(tmp_path / "state")
    receiver.apply(whole(steps[0], tmp_path / "0"))
    assert receiver.state is not None
    digest = receiver.state.digest
    folder = update("difference", steps[1], receiver.state, steps[0], tmp_path / "1")
    rng = np.random.default_rng(0)
    for file in ("model.nnc", "side.zst", "manifest.json"):
        content = bytearray((folder / file).read_bytes())
        for _ in range(20):
            other = bytearray(content)
            other[rng.integers(len(other))] ^= 1 << rng.integers(8)
            (folder / file).write_bytes(other)
            with pytest.raises(TrackerError):
                receiver.apply(folder)
        (folder / file).write_bytes(content)
    assert Receiver(tmp_path / "state").state.digest == digest  # type: ignore[union-attr]
    receiver.apply(folder)
    # A state that is not as it was written is no state.
    file = tmp_path / "state" / FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(TrackerError, match="have a whole model sent"):
        Receiver(tmp_path / "state")


def test_a_receiver_killed_at_any_time_has_the_state_before_or_after(tmp_path: Path) -> None:
    steps = sequence(2)
    before = applied(None, whole(steps[0], tmp_path / "0"))
    folder = update("context", steps[1], before, steps[0], tmp_path / "1")
    after = applied(before, folder)
    Receiver(tmp_path / "state").apply(tmp_path / "0")
    command = [sys.executable, "-m", "tracker.update.receiver", str(tmp_path / "state"), str(folder)]
    began = time.monotonic()
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    assert subprocess.run([*command[:3], str(tmp_path / "copy"), str(folder)], check=False).returncode == 0
    took = time.monotonic() - began
    for share in (0.5, 0.9, 0.95):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(share * took)
        process.send_signal(signal.SIGKILL)
        process.wait()
        state = Receiver(tmp_path / "state").state
        assert state is not None and state.digest in (before.digest, after.digest)
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0 and after.digest in told.stdout
    assert sorted(path.name for path in (tmp_path / "state").iterdir() if "partial" not in path.name) == ["lock", FILE]
    lost = subprocess.run(
        [*command[:3], str(tmp_path / "empty"), str(folder)], capture_output=True, text=True, check=False
    )
    assert lost.returncode == 2 and lost.stderr.startswith("error: ") and lost.stderr.count("\n") == 1


def test_a_head_with_one_class_more_arrives(tmp_path: Path) -> None:
    model = network()
    state = applied(None, whole(model.state_dict(), tmp_path / "0"))
    larger = copy.deepcopy(model)
    larger[5] = nn.Linear(10, 5)
    tensors = larger.state_dict()
    changed = edits(network(), tensors)
    assert [(edit.kind, edit.layers) for edit in changed] == [("resize", {"5": [5, 10]})]
    (tmp_path / "1").mkdir()
    encode_update(codec_of(COARSE), tensors, MODES["difference"], state, {}, tmp_path / "1", CONTEXT, changed)
    after = applied(state, tmp_path / "1")
    rebuilt = rebuild(network(), after.structure)
    rebuilt.load_state_dict(dict(after.tensors))
    assert rebuilt[5].out_features == 5
    assert float((after.tensors["5.weight"] - tensors["5.weight"]).abs().max()) < 0.2
    # The next one needs no change.
    (tmp_path / "2").mkdir()
    encode_update(codec_of(COARSE), tensors, MODES["difference"], after, tensors, tmp_path / "2", CONTEXT)
    assert applied(after, tmp_path / "2").structure == after.structure


def test_checkpoints_are_taken_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    from tracker.anchors.checkpoint import Checkpoint

    anchor = Checkpoint(name="own", weights_file=tmp_path / "none.pt")
    with pytest.raises(TrackerError, match="holds no checkpoints"):
        checkpoints([str(tmp_path)], anchor)
    for number in (10, 9, 1):
        save_file({"w": torch.full((1,), float(number))}, tmp_path / f"epoch{number}.safetensors")
    (tmp_path / "notes.txt").write_text("none of them")
    found = checkpoints([str(tmp_path)], anchor)
    assert [int(one.read()["w"]) for one in found] == [1, 9, 10]
    with pytest.raises(TrackerError, match="does not exist"):
        checkpoints([str(tmp_path), "elsewhere.pt"], anchor)
    with pytest.raises(TrackerError, match="needs two"):
        checkpoints([str(tmp_path / "epoch1.safetensors")], anchor)


@pytest.fixture
def digits(here: Here, ready: Path) -> Path:
    """Checkpoints of the digits anchor, which move a little."""
    from tracker.anchors.digits import Digits

    tensors, folder = dict(Digits(name="digits").weights()), ready / "checkpoints"
    folder.mkdir()
    torch.manual_seed(0)
    for number in range(4):
        save_file(tensors, folder / f"{number}.safetensors")
        tensors = {n: t + 0.01 * torch.randn(t.shape) if t.is_floating_point() else t for n, t in tensors.items()}
    return folder


@pytest.mark.slow
def test_checkpoints_are_sent_and_measured(here: Here, ready: Path, digits: Path) -> None:
    words = ("scenario=update", f"scenario.checkpoints={digits}", "codec.nnc.qp=-20")
    for more in ("scenario.mode=whole",), ("scenario.mode=context",), ("scenario.lost=[2]",):
        done: Completed = here(*words, "+codec=nnc", *more)
        assert done.returncode == 0, done.stderr
    plain, context, lost = runs(ready, "update")
    assert plain.data.metrics["update/saving_percent"] == 0
    assert context.data.metrics["update/saving_percent"] > 30
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{ready}/mlruns/mlflow.db")
    history = {one.step: one.value for one in client.get_metric_history(context.info.run_id, "update/bytes")}
    assert sorted(history) == [0, 1, 2, 3] and context.data.metrics["size/bitstream_bytes"] == sum(history.values())
    artifacts = ready / "mlruns" / "artifacts"
    for step, size in history.items():
        name = f"{step:03}-whole" if step == 0 else f"{step:03}-context"
        assert bitstream_bytes(artifacts / context.info.run_id / "artifacts" / "updates" / name) == size
    assert len(list((artifacts / context.info.run_id / "artifacts" / "updates").iterdir())) == 4  # what was sent
    table = json.loads((artifacts / lost.info.run_id / "artifacts" / "updates.json").read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["lost"] for row in rows] == [False, False, True, False]
    assert [row["update/repaired"] for row in rows] == [0, 0, 0, 1] and rows[1]["state"] == rows[2]["state"]
    assert rows[3]["update/bytes"] > rows[3]["update/whole_bytes"]
    for name in ("updates.png", "updates.html"):
        assert (artifacts / lost.info.run_id / "artifacts" / "plots" / name).is_file()
    assert len(runs(ready, "anchor")) == 4  # each checkpoint was measured once, for all modes


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("+codec=nnc",), "scenario.checkpoints is missing"),
        (("scenario.checkpoints=none",), "needs a codec"),
        (("scenario.checkpoints=none", "+codec=nnc"), "none does not exist"),
        (("scenario.checkpoints=none", "+codec=nnc_fast"), "takes a coder alone"),
        (("scenario.checkpoints=none", "+codec=int8", "scenario.mode=context"), "needs a coder with temporal contexts"),
        (("scenario.checkpoints=none", "+codec=nnc", "scenario.mode=some"), "scenario.mode='some'"),
        (("scenario.checkpoints=none", "+codec=nnc", "scenario.lost=[0]"), "counted from 1"),
        (("scenario.checkpoints=none", "+codec=nnc", "scenario.other=1"), "scenario.other is not an option"),
    ],
)
def test_mistakes_are_refused_in_one_line(words: tuple[str, ...], reason: str, here: Here, ready: Path) -> None:
    done = here("scenario=update", *words)
    assert done.returncode == 1 and reason in done.stderr and done.stderr.count("\n") == 1
    assert not runs(ready)
