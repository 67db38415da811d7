"""Coding and decoding of a model of 25 million parameters on all cores, against NNCodec's single pass.

    python benchmarks/coding.py [--repeats 3]

The model has ResNet-50's shapes, with weights drawn from a Laplace distribution. Each way runs in a process of its own;
the times are medians, compared in one run. Must hold: coding and decoding together at least 1.8 times as fast (on two
cores), the same bytes, and all processes together less than 3 copies of the model beyond what the imports take.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

OPTIONS = {
    "qp": -32,
    "qp_density": 2,
    "nonweight_qp": -75,
    "use_dq": True,
    "codebook_mode": 0,
    "scan_order": 0,
    "lambda_scale": 0.0,
    "param_opt": True,
    "cabac_unary_length_minus1": 10,
    "row_skipping": True,
    "int_quant_bw": False,
}


def arrays() -> dict[str, Any]:
    """ResNet-50's tensors with values of a seeded generator."""
    import numpy as np
    from torchvision.models import resnet50

    generator = np.random.default_rng(0)
    return {
        name: generator.laplace(0, 0.02, tensor.shape).astype(np.float32)
        for name, tensor in resnet50(weights=None).state_dict().items()
        if tensor.ndim
    }


def resident() -> int:
    """Bytes that this process and its children hold."""
    import psutil

    own = psutil.Process()
    return sum(process.memory_info().rss for process in (own, *own.children(recursive=True)) if process.is_running())


def work(way: str) -> None:
    """Code and decode once; print what it took as JSON."""
    from nncodec import nnc

    from tracker.codecs import nnc_units

    given = arrays()
    before, peak, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    if way == "tracker":
        coded = nnc_units.encode_units(given, None, OPTIONS)[0]
    else:
        coded = bytes(nnc.compress(given, bitstream_path=None, return_bitstream=True, **OPTIONS))
    middle = time.perf_counter()
    decoded = nnc_units.decode_units(coded) if way == "tracker" else nnc.decompress(bytearray(coded))
    ended = time.perf_counter()
    done.set()
    watcher.join()
    size = sum(array.nbytes for array in given.values())
    found = {
        "encode": middle - began,
        "decode": ended - middle,
        "copies": (peak[0] - before) / size,
        "sha256": hashlib.sha256(coded).hexdigest(),
        "tensors": len(decoded),
    }
    print(json.dumps(found))


def main() -> None:
    """Measure both ways in turn, and end with status 1 where what must hold does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=("tracker", "nncodec"))
    chosen = parser.parse_args()
    if chosen.way:
        return work(chosen.way)
    rows: dict[str, list[dict[str, Any]]] = {"nncodec": [], "tracker": []}
    for _ in range(chosen.repeats):
        for way, found in rows.items():
            command = [sys.executable, __file__, "--way", way]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    print("| way | encode | decode | memory beyond the given model, in copies of it |\n|---|---|---|---|")
    both = {}
    for way, found in rows.items():
        encode, decode, copies = (
            statistics.median(row[key] for row in found) for key in ("encode", "decode", "copies")
        )
        both[way] = encode + decode
        print(f"| {way} | {encode:.1f} s | {decode:.1f} s | {copies:.2f} |")
    ratio = both["nncodec"] / both["tracker"]
    same = len({row["sha256"] for found in rows.values() for row in found}) == 1
    print(f"\n{ratio:.2f} times as fast; {'the same' if same else 'other'} bytes")
    sys.exit(0 if ratio >= 1.8 and same and max(row["copies"] for row in rows["tracker"]) < 3 else 1)


if __name__ == "__main__":
    main()
