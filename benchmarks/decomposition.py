"""Spatial SVD of tracker against AIMET's ModelCompressor called directly, and the decoded model without AIMET.

    python benchmarks/decomposition.py --data-root FOLDER [--anchor digits]

must hold: at ratios 0.9, 0.75 and 0.5 of every convolution the same MAC and memory ratio (to three digits) and the same
top-1; and the bitstream of the chain svd>nnc decodes to the same top-1 in a process that cannot import aimet_torch.
Prints a Markdown table; the runs go to the tracking store as usual.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from multirun import compression_runs

RATIOS = (0.9, 0.75, 0.5)
# Hides the packages, composes the run's own configuration again, decodes, and prints the accuracy.
RECEIVER = """
import sys
sys.modules["aimet_torch"] = sys.modules["aimet_tensorflow"] = None
from tracker.__main__ import main
sys.argv = ["tracker", *sys.argv[1:]]
main()
"""


def parts(anchor: str, root: Path) -> tuple[Any, Any, Any]:
    """The anchor, the data set and the task that tracker uses."""
    from tracker.anchors.digits import Digits
    from tracker.anchors.resnet_cifar import ResNetCifar
    from tracker.data.digits import Digits as DigitsData
    from tracker.data.folders import Cifar10
    from tracker.tasks.classification import Classification

    task = Classification(name="classification", split="report", tolerance=0.005)
    if anchor == "digits":
        return Digits(name=anchor), DigitsData(name="digits"), task
    depth = int(anchor.removeprefix("resnet").removesuffix("_cifar10"))
    found = ResNetCifar(name=anchor, depth=depth, weights_file=root / f"{anchor}.safetensors")
    return found, Cifar10(name="cifar10", root=root, calibration_per_class=500), task


def direct(anchor: str, root: Path) -> dict[float, tuple[float, float, float]]:
    """MAC ratio, memory ratio and top-1 by ratio, with nothing of tracker's stage."""
    from tracker import aimet

    aimet.load()
    from aimet_torch.common.defs import CompressionScheme, CostMetric
    from aimet_torch.compress import ModelCompressor
    from aimet_torch.defs import ModuleCompRatioPair, SpatialSvdParameters
    from torch import nn

    from tracker.evaluation import Batches, evaluate
    from tracker.models import choose_device

    (built, data, task), device = parts(anchor, root), choose_device("auto")
    batches = Batches(data.samples("report"), built, task)
    shape = (1, *batches[0][0].shape)
    found = {}
    for ratio in RATIOS:
        model = built.build()
        model.load_state_dict(built.weights(), strict=False)
        pairs = [ModuleCompRatioPair(module, ratio) for module in model.modules() if isinstance(module, nn.Conv2d)]
        mode = SpatialSvdParameters.Mode.manual
        parameters = SpatialSvdParameters(mode, SpatialSvdParameters.ManualModeParams(pairs))
        compressed, stats = ModelCompressor.compress_model(
            model.eval(),
            lambda *_: 0.0,
            1,
            shape,
            CompressionScheme.spatial_svd,
            CostMetric.mac,
            parameters,
        )
        top1 = evaluate(built, compressed, task, batches, device, "direct").metrics["top1"]
        found[ratio] = float(stats.mac_compression_ratio), float(stats.memory_compression_ratio), top1
    return found


def received(anchor: str, root: Path, run: Any) -> float:
    """Top-1 of a run's bitstream, decoded by the receiver in a process without AIMET."""
    from mlflow.artifacts import download_artifacts

    from tracker.tracking.store import tracking_uri

    folder = download_artifacts(run_id=run.info.run_id, artifact_path="bitstream", tracking_uri=tracking_uri())
    words = [f"anchor={anchor}", "scenario=receive", f"scenario.bitstream={folder}"]
    words += [] if anchor == "digits" else [f"data.root={root}"]
    done = subprocess.run(
        [sys.executable, "-c", RECEIVER, *words], check=True, capture_output=True, text=True, env=os.environ
    )
    return float(next(word for word in done.stdout.replace(",", " ").split("top1 ")[1].split()))


def main() -> None:
    """Measure, compare, and end with status 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path())
    parser.add_argument("--anchor", choices=("digits", "resnet20_cifar10", "resnet56_cifar10"), action="append")
    chosen = parser.parse_args()
    root, wrong, here = chosen.data_root.resolve(), 0, Path.cwd()
    print(
        "| anchor | ratio | MACs | direct | memory | direct | top-1 | direct | decoded | received |\n"
        + "|---" * 10
        + "|"
    )
    for anchor in chosen.anchor or ("digits", "resnet56_cifar10"):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # AIMET, called directly, writes into the working folder
            expected = direct(anchor, root)
            os.chdir(here)
        ratios = ",".join(map(str, RATIOS))
        words = [f"anchor={anchor}", "+codec=[svd,nnc]", f"codec.svd.ratio={ratios}"]
        words += [] if anchor == "digits" else [f"data.root={root}"]
        for run in compression_runs(f"decomposition-{anchor}", len(RATIOS), words):
            metrics, ratio = run.data.metrics, float(run.data.params["codec.svd.ratio"])
            mac, memory, top1 = expected[ratio]
            decoded, other = metrics["performance/decoded"], received(anchor, root, run)
            same = (
                abs(metrics["cost/mac_ratio"] - mac) < 0.0005
                and abs(metrics["cost/memory_ratio"] - memory) < 0.0005
                and metrics["performance/after_svd"] == top1
                and abs(decoded - other) < 0.00006
            )
            wrong += not same
            figures = (metrics["cost/mac_ratio"], mac, metrics["cost/memory_ratio"], memory)
            accuracies = (metrics["performance/after_svd"], top1, decoded, other)
            cells = [anchor, str(ratio), *(f"{figure:.4f}" for figure in (*figures, *accuracies))]
            print(f"| {' | '.join(cells)} |{'' if same else ' differs'}", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
