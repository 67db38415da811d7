"""Coding and decoding of a model of 25 million parameters on all cores, against NNCodec's single pass.

    python benchmarks/coding.py [--repeats 3]

The model has ResNet-50's shapes, with weights drawn from a Laplace distribution. Each way runs in a process of its own.
Times are medians of runs that nothing looks at, compared in one run. Memory is taken in one more run of each way: the
largest sum over all its processes of what each has to itself and its share of what it shares with others (PSS), beyond
what the first process had with the model given and everything imported; the imports of the other processes count.

Must hold: coding and decoding together at least 1.8 times as fast (on two cores that have nothing else to do: a single
pass needs only one), the same bytes and tensors, and less than 3 copies of the model in memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from typing import Any

from watched import memory, watched

FASTER, COPIES = 1.8, 3.0  # what must hold


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


def work(way: str) -> None:
    """Code and decode once; print each step as it begins, and at last what it took as JSON."""
    import tqdm  # noqa: F401
    from nncodec import nnc

    from tracker.codecs import nnc_units
    from tracker.codecs.nnc import Nnc
    from tracker.codecs.nnc_arguments import keywords

    given = arrays()
    options = keywords(given, set(given), Nnc())
    print("begun", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    if way == "tracker":
        coded = nnc_units.encode_units(given, None, options)[0]
    else:
        coded = bytes(nnc.compress(given, bitstream_path=None, return_bitstream=True, **options))
    middle = time.perf_counter()
    print("decode", flush=True)
    decoded = nnc_units.decode_units(coded) if way == "tracker" else nnc.decompress(bytearray(coded))
    ended = time.perf_counter()
    print("ended", flush=True)
    digest = hashlib.sha256(coded)
    for name, array in sorted(decoded.items()):
        digest.update(name.encode() + array.tobytes())
    size = sum(array.nbytes for array in given.values())
    found = {"encode": middle - began, "decode": ended - middle, "size": size, "sha256": digest.hexdigest()}
    print(json.dumps(found))


def run(way: str, looked_at: bool) -> dict[str, Any]:
    """What `work` prints in a process of its own; with the copies of the model in memory, if it is watched."""
    command = [sys.executable, __file__, "--way", way]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    for line in process.stdout:
        if line == "begun\n":
            break
    before, peaks, step = memory(process.pid), {"encode": 0, "decode": 0, "ended": 0}, "encode"

    def seen(taken: int) -> None:
        peaks[step] = max(peaks[step], taken)

    with watched(process.pid, seen) if looked_at else nullcontext():
        print(file=process.stdin, flush=True)
        for line in process.stdout:
            step = line.strip() if line.strip() in peaks else step
    if process.wait():
        raise SystemExit(f"{way} failed")
    found: dict[str, Any] = json.loads(line)
    return found | {f"{name} copies": (peak - before) / found["size"] for name, peak in peaks.items()}


def main() -> None:
    """Measure both ways in turn, and end with status 1 where what must hold does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=("tracker", "nncodec"))
    chosen = parser.parse_args()
    if chosen.way:
        return work(chosen.way)
    ways = ("nncodec", "tracker")
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(chosen.repeats):
        for way in ways:
            rows[way].append(run(way, False))
    copies_of = {way: run(way, True) for way in ways}
    print("| way | encode | decode | memory while encoding | while decoding, in copies of the model |")
    print("|---|---|---|---|---|")
    both = {}
    for way in ways:
        encode, decode = (statistics.median(row[key] for row in rows[way]) for key in ("encode", "decode"))
        both[way] = encode + decode
        cells = " | ".join(f"{copies_of[way][f'{step} copies']:.2f}" for step in ("encode", "decode"))
        print(f"| {way} | {encode:.1f} s | {decode:.1f} s | {cells} |")
    ratio = both["nncodec"] / both["tracker"]
    copies = max(copies_of["tracker"]["encode copies"], copies_of["tracker"]["decode copies"])
    same = len({row["sha256"] for row in (*rows["nncodec"], *rows["tracker"], *copies_of.values())}) == 1
    checks = {
        f"{ratio:.2f} times as fast, at least {FASTER}": ratio >= FASTER,
        f"{copies:.2f} copies in memory, less than {COPIES}": 0 < copies < COPIES,
        "the same bytes and tensors": same,
    }
    print()
    for text, holds in checks.items():
        print(f"{'PASS' if holds else 'FAIL'}: {text}")
    sys.exit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
