"""NNC with one global qp on the published anchors: rate and performance on all test images.

    python benchmarks/baselines.py --data-root FOLDER [--anchor resnet20_cifar10]

must hold: the rate within 0.05 points of the rates below, measured with nncodec alone, and the same drop.
Prints a Markdown table; the runs go to the tracking store as usual.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from multirun import compression_runs

# Rates in percent and drops (points of top-1, dB of PSNR) of nncodec called directly with use_dq and nonweight_qp=-75.
REFERENCE = {
    "resnet20_cifar10": {
        -28: (14.75, 0.14),
        -26: (13.04, -0.01),
        -24: (11.88, 0.08),
        -22: (10.30, 1.30),
        -20: (9.22, 3.17),
    },
    "resnet56_cifar10": {-32: (15.34, 0.34), -28: (12.38, -0.36), -26: (10.76, 0.60), -24: (9.66, 1.80)},
    "vdsr_set5": {-36: (13.22, 0.00), -32: (10.48, 0.03), -28: (7.99, 0.16), -24: (5.62, 0.33)},
}


def measure(anchor: str, root: Path) -> dict[int, tuple[float, float]]:
    """One multirun over the reference's qps: rate in percent, and drop in points or dB."""
    qps = ",".join(map(str, REFERENCE[anchor]))
    words = [f"anchor={anchor}", "+codec=nnc", f"codec.nnc.qp={qps}", "task.split=all", f"data.root={root}"]
    runs = compression_runs(f"baselines-{anchor}", len(REFERENCE[anchor]), words)
    scale = 1 if anchor == "vdsr_set5" else 100
    return {
        int(run.data.params["codec.nnc.qp"]): (
            run.data.metrics["size/rate_percent"],
            scale * run.data.metrics["performance/drop"],
        )
        for run in runs
    }


def main() -> None:
    """Measure, compare, and end with status 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--anchor", choices=sorted(REFERENCE), action="append")
    chosen = parser.parse_args()
    wrong = 0
    print("| anchor | qp | rate | nncodec alone | drop | nncodec alone |\n|---|---|---|---|---|---|")
    for anchor in chosen.anchor or REFERENCE:
        measured = measure(anchor, chosen.data_root.resolve())
        for qp, (rate, drop) in REFERENCE[anchor].items():
            own_rate, own_drop = measured[qp]
            same = abs(own_rate - rate) <= 0.05 and abs(own_drop - drop) <= 0.0051
            wrong += not same
            mark = "" if same else " differs"
            print(
                f"| {anchor} | {qp} | {own_rate:.2f} % | {rate:.2f} % | {own_drop:.2f} | {drop:.2f}{mark} |", flush=True
            )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
