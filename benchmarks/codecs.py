"""Every codec and chain at its defaults on the anchors, on the report split, by one multirun: the README's table.

    python benchmarks/codecs.py [--data-root FOLDER] [--codecs 'nnc,[svd,nnc]'] [--anchors digits,...]

Without a data root only the offline anchors. The runs go to the tracking store as usual; times are those of one run.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from multirun import compression_runs

CODECS = (
    "nnc,int4,int8,fp16,bf16,zstd,[svd,nnc],[svd,finetune,nnc],[weight_svd,nnc],[prune,nnc],[prune,finetune,nnc],"
    "[quantsim,nnc],[quantsim,zstd]"
)
OFFLINE = "digits"
ALL = "digits,resnet20_cifar10,resnet56_cifar10,vdsr_set5"


def cell(run: Any) -> str:
    """Rate, drop, MAC ratio and times of a run; in italics where it is not transparent."""
    value = run.data.metrics
    unit = " dB" if "psnr/decoded" in value else ""
    digits = 2 if unit else 4
    text = f"{value['size/rate_percent']:.2f} % ({value['performance/drop']:+.{digits}f}{unit})"
    if not value["performance/transparent"]:
        text = f"*{text}*"
    return f"{text} {value['cost/mac_ratio']:.2f} {value['time/encode_s']:.1f}/{value['time/decode_s']:.1f} s"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--codecs", default=CODECS)
    parser.add_argument("--anchors")
    chosen = parser.parse_args()
    if chosen.data_root:
        os.environ["TRACKER_DATA"] = str(chosen.data_root.resolve())
    anchors = (chosen.anchors or (ALL if chosen.data_root else OFFLINE)).split(",")
    choices = OverridesParser.create().parse_override(f"+codec={chosen.codecs}").sweep_string_iterator()
    chains = [choice.strip("[]").replace(",", ">") for choice in choices]
    # The table has no figures after single stages, so they are not measured.
    words = [f"anchor={','.join(anchors)}", f"+codec={chosen.codecs}", "tracking.evaluate_stages=false"]
    runs = compression_runs("codecs", len(anchors) * len(chains), words, strict=False)
    found = {(run.data.params["anchor.name"], run.data.tags["tracker.codec"]): run for run in reversed(runs)}
    print(f"| rate (drop), MAC ratio, encode/decode | {' | '.join(anchors)} |")
    print(f"|---|{'---|' * len(anchors)}")
    for chain in chains:
        cells = [cell(found[anchor, chain]) if (anchor, chain) in found else "failed" for anchor in anchors]
        print(f"| `{chain.replace('>', ',')}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
