"""What tracker adds to the work itself: a run against a bare script that does the same evaluation and coding.

Both start cold (a new process, for tracker also a new tracking store) and do: evaluate the anchor, encode with NNC,
decode, evaluate the decoded model. They run alternately, and medians are compared, because other work on the machine
disturbs single runs.

    python benchmarks/overhead.py --data-root FOLDER [--anchor resnet20_cifar10] [--repeats 5]

must hold: time - bare time <= 3 s + 5 % of it; peak memory <= 1.25 times the bare one + 200 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def bare(anchor: str, data_root: Path) -> None:
    """The same work without tracker: NNCodec, PyTorch and Pillow called directly; prints its results as JSON."""
    import nncodec.nnc
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    from tracker.anchors.resnet_cifar import CifarResNet

    def network() -> torch.nn.Module:
        return CifarResNet(3 if anchor == "resnet20_cifar10" else 9)

    weights = load_file(data_root / f"{anchor}.safetensors")
    model = network()
    model.load_state_dict(weights)
    model.eval()
    images, labels = [], []
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    for label, folder in enumerate(sorted((data_root / "cifar10" / "test").iterdir())):
        for path in sorted(folder.iterdir())[500:]:
            pixels = np.asarray(Image.open(path), dtype=np.float32) / 255
            images.append(torch.from_numpy(((pixels - mean) / deviation).transpose(2, 0, 1)))
            labels.append(label)
    inputs, classes = torch.stack(images), torch.tensor(labels)
    del images

    batches = list(zip(inputs.split(128), classes.split(128), strict=True))

    def top1(network: torch.nn.Module) -> float:
        with torch.inference_mode():
            right = [(network(x).argmax(1) == y).sum() for x, y in batches]
        return float(sum(right)) / len(classes)

    results = {"anchor": top1(model)}
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    coded = nncodec.nnc.compress(
        arrays, bitstream_path=None, qp=-28, nonweight_qp=-75, row_skipping=True, return_bitstream=True
    )
    decoded = nncodec.nnc.decompress(coded)
    again = network()
    again.load_state_dict({name: torch.from_numpy(array) for name, array in decoded.items()})
    print(json.dumps({**results, "bytes": len(coded), "decoded": top1(again.eval())}))


def measured(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Seconds, peak resident MiB and standard output of a command."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"},
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{command} failed: {output}")
    return seconds, usage.ru_maxrss / 1024, output


def main() -> None:
    """Run both in turn and compare medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="with the weights and cifar10/ extracted")
    parser.add_argument("--anchor", default="resnet20_cifar10", choices=["resnet20_cifar10", "resnet56_cifar10"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    root = chosen.data_root.resolve()
    if chosen.bare:
        return bare(chosen.anchor, root)
    commands = {
        "bare": [
            sys.executable,
            str(Path(__file__).resolve()),
            "--bare",
            "--anchor",
            chosen.anchor,
            "--data-root",
            str(root),
        ],
        "tracker": [
            sys.executable,
            "-m",
            "tracker",
            f"anchor={chosen.anchor}",
            "+codec=nnc",
            "codec.nnc.qp=-28",
            f"data.root={root}",
        ],
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(chosen.repeats):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds, peak, _ = measured(command, Path(folder))
            results[name].append((seconds, peak))
            print(f"{name:8} {seconds:6.2f} s {peak:7.0f} MiB", flush=True)
    (bare_s, bare_m), (own_s, own_m) = (
        tuple(statistics.median(column) for column in zip(*results[name], strict=True)) for name in commands
    )
    print(
        f"{chosen.anchor}: bare {bare_s:.2f} s, tracker {own_s:.2f} s: +{own_s - bare_s:.2f} s "
        f"(limit {3 + 0.05 * bare_s:.2f}); peak {bare_m:.0f} and {own_m:.0f} MiB (limit {1.25 * bare_m + 200:.0f})"
    )


if __name__ == "__main__":
    main()
