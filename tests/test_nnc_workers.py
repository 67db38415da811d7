"""Coding by several processes: the bytes of NNCodec's single pass, the tensors of its decoder, and its errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from nncodec import nnc
from nncodec.nnc_core import coder, hls

from tracker.codecs import nnc_guard, nnc_units, nnc_workers
from tracker.codecs.nnc import Nnc
from tracker.codecs.nnc_arguments import keywords
from tracker.errors import TrackerError

OPTIONS = {"qp": -20, "nonweight_qp": -40, "qp_per_tensor": {"layer1.weight": -12}}


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, however small the work."""
    monkeypatch.setattr(nnc_units, "ELEMENTS", 1)
    monkeypatch.setattr(nnc_units, "BYTES", 1)
    monkeypatch.setattr(nnc_workers, "_processes", lambda tasks: min(2, tasks))


def arrays() -> dict[str, np.ndarray]:
    dice = np.random.default_rng(0)
    shapes = [(8, 3, 3, 3), (8,), (40, 70), (40,), (5, 40), (1, 1)]
    found = {
        f"layer{index}.weight": dice.laplace(0, 0.1, shape).astype(np.float32) for index, shape in enumerate(shapes)
    }
    return {**found, "counts": dice.integers(-9, 9, (6, 7), dtype=np.int32)}


def options(given: dict[str, np.ndarray], **more: Any) -> dict[str, Any]:
    """As the coder gives them to NNCodec."""
    return keywords(given, {name for name, array in given.items() if array.dtype.kind == "f"}, Nnc(**OPTIONS, **more))


def test_the_bytes_are_those_of_a_single_pass(several: None) -> None:
    given = arrays()
    coded, sizes, _ = nnc_units.encode_units(given, None, options(given))
    single = nnc.compress(dict(given), bitstream_path=None, return_bitstream=True, verbose=False, **options(given))
    assert coded == bytes(single) and set(sizes) == set(given)
    decoded = nnc_units.decode_units(coded)
    alone = nnc.decompress(bytearray(coded))
    assert list(decoded) == list(alone) and all(np.array_equal(decoded[name], alone[name]) for name in alone)
    values = nnc_units.quantise_units(given, options(given))
    assert all(np.array_equal(values[name], decoded[name]) for name in given)


def test_entry_points_are_looked_for_only_where_the_bitstream_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """And they are the same: a scan by blocks gives the bytes of a single pass too."""
    looked: list[str] = []
    plain = coder.baseline.decodeAndCreateEPs

    def noted(*given: Any) -> Any:
        looked.append(given[3])
        return plain(*given)

    monkeypatch.setattr(coder.baseline, "decodeAndCreateEPs", noted)
    given = {name: array for name, array in arrays().items() if min(array.shape) > 1}
    for order, names in ((0, []), (1, ["counts", "layer0.weight", "layer2.weight", "layer4.weight"])):
        looked.clear()
        coded, _, _ = nnc_units.encode_units(given, None, options(given, scan_order=order))
        assert sorted(looked) == names
        single = nnc.compress(
            dict(given), bitstream_path=None, return_bitstream=True, verbose=False, **options(given, scan_order=order)
        )
        assert coded == bytes(single)
        decoded, alone = nnc_units.decode_units(coded), nnc.decompress(bytearray(coded))
        assert all(np.array_equal(decoded[name], alone[name]) for name in alone)
    assert coder.baseline.decodeAndCreateEPs is noted


def test_a_process_is_told_the_qps_of_its_own_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, int]] = []
    plain = nnc_units.compress

    def noted(own: Any, numbers: Any, blocks: Any, given: Any) -> Any:
        told.append(given["qp_per_tensor"])
        return plain(own, numbers, blocks, given)

    monkeypatch.setattr(nnc_units, "compress", noted)
    nnc_units.encode_units(arrays(), None, options(arrays()))
    assert sorted(map(str, told)) == sorted(map(str, [{"layer1.weight": -12}] + 6 * [{}]))


def forged(side: int, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A bitstream of 64 by 64 values that claims to have more."""
    plain = hls.Coder.tensor_dimensions_list

    def claim(writer: Any) -> None:
        fields = writer._Coder__seDict
        fields["tensor_dimensions"] = tuple(side for _ in fields["tensor_dimensions"])
        plain(writer)

    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(hls.Coder, "tensor_dimensions_list", claim)
        return bytes(nnc.compress({"w": weight}, bitstream_path=None, return_bitstream=True, qp=-20, verbose=False))


def test_what_claims_to_be_far_larger_than_it_is_ends_no_process_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """NNCodec reads behind the end of what it is given; in this process that could be the end of all tests."""
    assert nnc_units.decode_units(forged(64, monkeypatch))["w"].shape == (64, 64)
    coded = forged(4096, monkeypatch)
    with pytest.raises(nnc_guard.Implausible):
        nnc_units.decompress(coded, 1 << 40, False)
    with pytest.raises((TrackerError, RuntimeError)):
        nnc_units.decode_units(coded)


def test_what_is_mostly_zeros_is_no_forgery() -> None:
    given = {"w": np.zeros((600, 600), np.float32), "v": np.ones((3, 4), np.float32)}
    coded, sizes, _ = nnc_units.encode_units(given, None, options(given))
    assert given["w"].size > nnc_guard.PER_BYTE * sizes["w"] + nnc_guard.FREE
    assert np.array_equal(nnc_units.decode_units(coded)["w"], given["w"])


def test_what_a_process_raises_is_told_in_one_line(several: None, tmp_path: Path) -> None:
    given = arrays()
    coded, _, _ = nnc_units.encode_units(given, None, options(given))
    with pytest.raises((RuntimeError, AssertionError, IndexError, ValueError)):
        nnc_units.decode_units(coded[: len(coded) // 2])
    with pytest.raises(TrackerError, match="nncodec cannot code"), nnc_units.told_in_one_line():
        nnc_units.encode_units(given, None, {**options(given), "qp_density": 99})


def test_trellises_take_turns(several: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each asks for as much room as it has elements; without one there is nothing to wait for."""
    asked: list[int] = []
    taken = nnc_workers.Room.taken

    def noted(room: nnc_workers.Room, elements: int) -> AbstractContextManager[None]:
        asked.append(elements)
        return taken(room, elements)

    monkeypatch.setattr(nnc_workers.Room, "taken", noted)
    nnc_units.encode_units(arrays(), None, options(arrays()))
    assert not asked  # these are small, and do not wait
    monkeypatch.setattr(nnc_workers, "SMALL", 0)
    given = {name: array for name, array in arrays().items() if array.dtype.kind == "f"}
    nnc_units.encode_units(given, None, options(given))
    assert sorted(asked) == sorted(array.size for array in given.values())
    nnc_units.encode_units(given, None, options(given, use_dq=False))
    assert len(asked) == len(given)


def test_workers_of_a_sweep_share_the_cores() -> None:
    """Two workers of a machine with one thread each start one process each to code tensors."""
    code = (
        "from tracker.codecs.nnc_workers import _processes; from tracker.sweep.worker import share_threads; "
        "before = _processes(64); share_threads(2, 1); print(before, _processes(64))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "LOKY_MAX_CPU_COUNT"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout.split() == [str(min(64, nnc_workers._processes(64))), "1"]


def test_a_room_holds_no_more_than_its_size() -> None:
    room = nnc_workers.Room(10)
    inside: list[int] = []
    sums: list[int] = []

    def enter(elements: int) -> None:
        with room.taken(elements):
            inside.append(elements)
            sums.append(sum(inside))
            inside.remove(elements)

    with room.taken(7):
        inside.append(7)
        threads = [threading.Thread(target=enter, args=(elements,)) for elements in (3, 6, 9, 10)]
        for thread in threads:
            thread.start()
        threads[0].join(60)
        assert sums == [10]  # what fits goes in, the rest waits
        inside.remove(7)
    for thread in threads:
        thread.join(60)
    assert len(sums) == 4 and max(sums) == 10
    with room.taken(99):  # more than there is: alone
        pass


def test_a_process_that_dies_is_told_and_the_others_end(several: None) -> None:
    before = {child.pid for child in psutil.Process().children()}
    codes = {"dies": "import os; os._exit(3)", "lasts": "import time; time.sleep(600)"}
    with pytest.raises(TrackerError, match="status 3"):
        list(nnc_workers.each("exit", exec, dict.fromkeys(codes, 1), lambda key: (codes[key],), 1))
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_caller(number: int, tmp_path: Path) -> None:
    """Ctrl-C reaches all of a terminal's processes; a kill only the one."""
    script = tmp_path / "script.py"
    script.write_text(
        "import time\n"
        "from tracker.codecs import nnc_workers\n"
        "nnc_workers._processes = lambda tasks: 2\n"
        "seconds = {'first': 0, 'second': 4, 'third': 4, 'fourth': 4}\n"
        "costs = dict.fromkeys(seconds, 1)\n"
        "for key, _ in nnc_workers.each('sleep', time.sleep, costs, lambda key: (seconds[key],), 1):\n"
        "    print(key, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "first\n"
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and errors.count("KeyboardInterrupt") == (number == signal.SIGINT)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive and "Exception ignored" not in errors


def test_a_process_imports_no_framework() -> None:
    code = (
        "import sys\n"
        "from tracker.codecs import nnc_process, nnc_units\n"
        "nnc_process.spare_frameworks()\n"
        "import nncodec.nnc\n"
        "print([name for name in ('torch', 'tensorflow', 'pydantic', 'joblib') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_script_without_a_guard_can_use_them(tmp_path: Path) -> None:
    """Processes that begin as a copy of the caller's script would run it again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\n"
        "from tracker.codecs import nnc_units, nnc_workers\n"
        "from tracker.codecs.nnc import Nnc\n"
        "from tracker.codecs.nnc_arguments import keywords\n"
        "print('begun')\n"
        "nnc_units.ELEMENTS = 1\n"
        "nnc_workers._processes = lambda tasks: min(2, tasks)\n"
        "arrays = {name: np.ones((9, 9), np.float32) for name in 'abc'}\n"
        "options = keywords(arrays, set(arrays), Nnc())\n"
        "print(len(nnc_units.encode_units(arrays, None, options)[0]))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("begun") == 1 and not done.stderr
