"""Model updates in all modes: a classifier is fine-tuned for some epochs, and each epoch is sent to a receiver.

    python benchmarks/updates.py [--anchor digits] [--data-root FOLDER] [--epochs 10] [--qp -28]

Must hold: differences take at most half the bytes of whole models, and are as transparent. Prints a Markdown table;
bytes are those of the updates, without the first model. The checkpoints stay in updates-ANCHOR in the current folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from multirun import compression_runs

FINETUNE = Path(__file__).parents[1] / "examples" / "updates" / "finetune.py"
MODES = ("whole", "changed", "difference", "context")
PLAIN = ("int8", "fp16", "zstd")


def main() -> None:
    """Measure, and end with status 1 where what must hold does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anchor", default="digits")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--qp", type=int, default=-28)
    chosen = parser.parse_args()
    words = [f"anchor={chosen.anchor}"]
    words += [f"data.root={chosen.data_root.resolve()}"] if chosen.data_root else []
    folder = Path(f"updates-{chosen.anchor}").absolute()
    if not folder.exists():
        subprocess.run([sys.executable, FINETUNE, folder, "--epochs", str(chosen.epochs), *words], check=True)
    common = [*words, "scenario=update", f"scenario.checkpoints={folder}"]
    experiment = f"updates-{chosen.anchor}"
    modes = [*common, "+codec=nnc", f"codec.nnc.qp={chosen.qp}", f"scenario.mode={','.join(MODES)}"]
    plain = [*common, f"+codec={','.join(PLAIN)}", "scenario.mode=whole,difference"]
    found = compression_runs(experiment, len(MODES), modes, kind="update")
    found += compression_runs(experiment, 2 * len(PLAIN), plain, kind="update")
    print("| anchor | mode, codec | bytes of an update | of whole models | largest drop | transparent |")
    print("|---|---|---|---|---|---|")
    rows = {run.data.tags["tracker.codec"]: run.data for run in found}
    for name, data in sorted(rows.items(), key=lambda row: row[1].metrics["update/mean_bytes"]):
        size, saving = data.metrics["update/mean_bytes"], data.metrics["update/saving_percent"]
        print(
            f"| {chosen.anchor} | {name} | {size:,.0f} | {1 - saving / 100:.3f} | "
            f"{data.metrics['update/worst_drop']:+.4f} | {data.tags['tracker.transparent']} |"
        )
    size, drop = (
        {name: row.metrics[f"update/{what}"] for name, row in rows.items()} for what in ("mean_bytes", "worst_drop")
    )
    small = size["difference nnc"] <= 0.5 * size["whole nnc"]
    sys.exit(0 if small and drop["difference nnc"] <= max(drop["whole nnc"], 0.005) else 1)


if __name__ == "__main__":
    main()
