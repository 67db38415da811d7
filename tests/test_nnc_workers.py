"""Coding by several processes: the bytes of NNCodec's single pass, the tensors of its decoder, and its errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nncodec import nnc

from tracker.codecs import nnc_units, nnc_workers
from tracker.errors import TrackerError

OPTIONS = {
    "qp": -20,
    "qp_density": 2,
    "nonweight_qp": -40,
    "qp_per_tensor": {"layer1.weight": -12},
    "use_dq": True,
    "codebook_mode": 0,
    "scan_order": 0,
    "lambda_scale": 0.0,
    "param_opt": True,
    "cabac_unary_length_minus1": 10,
    "row_skipping": True,
    "int_quant_bw": False,
}


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


def test_the_bytes_are_those_of_a_single_pass(several: None) -> None:
    given = arrays()
    coded, sizes, _ = nnc_units.encode_units(given, None, OPTIONS)
    single = nnc.compress(dict(given), bitstream_path=None, return_bitstream=True, verbose=False, **OPTIONS)
    assert coded == bytes(single) and set(sizes) == set(given)
    decoded = nnc_units.decode_units(coded)
    alone = nnc.decompress(bytearray(coded))
    assert list(decoded) == list(alone) and all(np.array_equal(decoded[name], alone[name]) for name in alone)
    values = nnc_units.quantise_units(given, OPTIONS)
    assert all(np.array_equal(values[name], decoded[name]) for name in given)


def test_what_a_process_raises_is_told_in_one_line(several: None, tmp_path: Path) -> None:
    coded, _, _ = nnc_units.encode_units(arrays(), None, OPTIONS)
    with pytest.raises((RuntimeError, AssertionError, IndexError, ValueError)):
        nnc_units.decode_units(coded[: len(coded) // 2])
    with pytest.raises(TrackerError, match="nncodec cannot code"), nnc_units.told_in_one_line():
        nnc_units.encode_units(arrays(), None, {**OPTIONS, "qp_density": 99})


def test_a_process_imports_no_framework() -> None:
    code = (
        "import sys\n"
        "from tracker.codecs import nnc_process, nnc_units\n"
        "nnc_process.spare_frameworks()\n"
        "import nncodec.nnc\n"
        "print('torch' in sys.modules, 'tensorflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_script_without_a_guard_can_use_them(tmp_path: Path) -> None:
    """Processes that begin as a copy of the caller's script would run it again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\n"
        "from tracker.codecs import nnc_units, nnc_workers\n"
        "print('begun')\n"
        "nnc_units.ELEMENTS = 1\n"
        "nnc_workers._processes = lambda tasks: min(2, tasks)\n"
        f"options = {OPTIONS | {'qp_per_tensor': None}!r}\n"
        "arrays = {name: np.ones((9, 9), np.float32) for name in 'abc'}\n"
        "print(len(nnc_units.encode_units(arrays, None, options)[0]))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("begun") == 1 and not done.stderr
