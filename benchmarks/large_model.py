"""A model of 100 million parameters through anchor, encode, store, decode and evaluation: time and memory.

    python benchmarks/large_model.py [--codec nnc] [--layers 6]

Wanted: the run's peak memory, that of processes which it starts included (PSS), less what it takes with a tiny model
of the same kind, is at most 4 copies of the weights. On two cores it is 4.40: 2.67 are NNCodec's trellis of one layer,
a sixth of the model, and a third is what the other process holds meanwhile. LOKY_MAX_CPU_COUNT=1 codes in one process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from watched import watched

from tracker.anchors import Anchor


class Large(Anchor):
    """Linear layers of 4096x4096 random weights (16.8 million each) on the ten features of the diabetes table."""

    layers: int = 6
    width: int = 4096

    def build(self) -> nn.Module:
        """The network, of linear layers only."""
        return nn.Sequential(nn.Linear(10, self.width), *self._middle(), nn.Linear(self.width, 1))

    def _middle(self) -> list[nn.Module]:
        return [nn.Linear(self.width, self.width) for _ in range(self.layers)]

    def weights(self) -> Mapping[str, Tensor]:
        """PyTorch's initial values, seeded."""
        torch.manual_seed(0)
        return self.build().state_dict()


def run(codec: str, layers: int, width: int) -> tuple[float, str]:
    """Peak MiB and the summary of one run."""
    peak = 0

    def seen(taken: int) -> None:
        nonlocal peak
        peak = max(peak, taken)

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "anchor").mkdir()
        (Path(folder) / "anchor" / "large.yaml").write_text(
            "defaults:\n  - override /task@_global_.task: regression\n  - override /data@_global_.data: diabetes\n"
            f"_target_: large_model.Large\nname: large\nlayers: {layers}\nwidth: {width}\n"
        )
        words = ["--config-dir", folder, "anchor=large", f"+codec={codec}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "tracker", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with watched(process.pid, seen):
            output = process.stdout.read()
        if process.wait():
            raise SystemExit(f"the run failed: {output}")
        return peak / 2**20, output


def main() -> None:
    """Compare the peak with that of a tiny model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="nnc")
    parser.add_argument("--layers", type=int, default=6)
    chosen = parser.parse_args()
    small, _ = run(chosen.codec, 1, 16)
    large, output = run(chosen.codec, chosen.layers, 4096)
    copy = sum(t.numel() for t in Large(name="large", layers=chosen.layers).build().state_dict().values()) * 4 / 2**20
    print(output)
    print(f"{copy / 4 * 2**20 / 1e6:.1f} million parameters, {copy:.0f} MiB a copy")
    print(f"peak {large:.0f} MiB, with a tiny model {small:.0f} MiB: {(large - small) / copy:.2f} copies (wanted: 4)")


if __name__ == "__main__":
    main()
