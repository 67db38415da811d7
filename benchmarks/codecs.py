"""All coders at their defaults on the built-in anchors, on the report split: the README's table.

    python benchmarks/codecs.py [--data-root FOLDER]

Without a data root only the offline anchor. The runs go to the tracking store as usual; times are those of one run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from multirun import compression_runs

CODECS = "nnc,int4,int8,fp16,bf16,zstd"
ANCHORS = ["resnet20_cifar10", "resnet56_cifar10", "vdsr_set5"]


def rows(anchor: str, words: list[str]) -> list[str]:
    """One multirun; a Markdown row for each run, the smallest first."""
    chosen = [f"anchor={anchor}", f"+codec={CODECS}", *words]
    runs = compression_runs(f"codecs-{anchor}", CODECS.count(",") + 1, chosen)
    table = []
    for run in sorted(runs, key=lambda run: run.data.metrics["size/bitstream_bytes"]):
        value = run.data.metrics
        low, high = value["performance/drop_low"], value["performance/drop_high"]
        table.append(
            f"| {anchor} | {run.data.tags['tracker.codec']} | {value['size/rate_percent']:.2f} % "
            f"| {value['performance/anchor']:.4f} | {value['performance/drop']:.4f} [{low:.4f}, {high:.4f}] "
            f"| {'yes' if value['performance/transparent'] else 'no'} "
            f"| {value['time/encode_s']:.2f} / {value['time/decode_s']:.2f} |"
        )
    return table


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    chosen = parser.parse_args()
    print("| anchor | codec | rate | anchor | drop [95 % interval] | transparent | encode / decode, s |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows("digits", [])), flush=True)
    for anchor in ANCHORS if chosen.data_root else []:
        print("\n".join(rows(anchor, [f"data.root={chosen.data_root.resolve()}"])), flush=True)


if __name__ == "__main__":
    main()
