"""The presets against NNC with one global qp, and against the other ways that a user has.

    python benchmarks/presets.py --data-root FOLDER [--anchor resnet20_cifar10] [--preset nnc_fast] [--seeds 1]
    python benchmarks/presets.py --data-root FOLDER --others     # and int8, int4, fp16, AdaRound, pruning, opt_qp
    python benchmarks/presets.py --untuned [--anchor gpt2_sources]  # those of benchmarks/untuned

The baseline is a scan of every qp: the smallest bitstream within the tolerance on the search split, measured on the
report split. The presets choose by the same rule, which asks that the drop is likely to be within it on other samples
too; with --as-measured a scan that takes the drop on the search split as it is has a line as well. Must hold, as size
over the baseline's: see LIMITS, and a tenth more on anchors that nobody tuned for; and sizes of several seeds within
5 % of each other; with --others, that no other transparent way is as small as any preset.
Prints a Markdown table; with --others also a plot for each anchor, presets-ANCHOR.png in the current folder: rate
against drop. The runs go to the tracking store as usual; which they were is kept in presets.json in the current folder,
and --resume takes those that are finished from there, for a call of hours that was interrupted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from multirun import compression_runs

CLASSES = {"nnc_fast": 0.85, "nnc_calibrated": 0.50, "nnc_best": 0.40}
OUTPUTS = {"nnc_fast": 0.90, "nnc_calibrated": 0.70, "nnc_best": 0.55}  # where every error of the outputs counts
LIMITS = {"resnet20_cifar10": CLASSES, "resnet56_cifar10": CLASSES, "vdsr_set5": OUTPUTS}
UNTUNED = {
    "mobilenet_photographs": CLASSES,
    "vit_photographs": CLASSES,
    "keras_photographs": CLASSES,
    "gpt2_sources": OUTPUTS,
    "llama_sources": OUTPUTS,
    "recommender_imports": OUTPUTS,
    "denoiser_photographs": OUTPUTS,
}
FOLDER = Path(__file__).parent
KEPT = Path("presets.json")
MARGIN = 1.1  # on anchors that nobody tuned for
SCAN = ["+codec=nnc", "target.drop=${task.tolerance}", "target.ahead=1000"]
ADAROUND = ["+codec=[quantsim,zstd]", "codec.quantsim.rounding=adaround"]
# AIMET's own are 10,000 and 15,000 for each layer, and hours for a network of 56 layers; sizes hardly depend on them.
ITERATIONS = ["codec.quantsim.adaround_iterations=2000"]
# Each layer has 64 outputs for every pixel, where those of the ResNets have fewer pixels the more channels they have.
FEWER = {"vdsr_set5": ["codec.quantsim.adaround_iterations=500", "codec.quantsim.crop=32"]}
OTHERS = {
    "int8": ["+codec=int8"],
    "int4": ["+codec=int4"],
    "fp16": ["+codec=fp16"],
    "AdaRound 8 bits": [*ADAROUND, "codec.quantsim.bits=8"],
    "AdaRound 4 bits": [*ADAROUND, "codec.quantsim.bits=4"],
    "pruned 0.5, zstd": ["+codec=[sparsify,zstd]", "codec.sparsify.sparsity=0.5"],
    "pruned 0.8, zstd": ["+codec=[sparsify,zstd]", "codec.sparsify.sparsity=0.8"],
    "nnc sparsity 0.5": ["+codec=nnc", "codec.nnc.sparsity=0.5"],
    "nnc sparsity 0.7": ["+codec=nnc", "codec.nnc.sparsity=0.7"],
    "opt_qp": ["+codec=nnc", "codec.nnc.opt_qp=true"],
}


class Runs:
    """What commands make, and have made."""

    def __init__(self, resume: bool) -> None:
        """Nothing is known yet, or what an earlier call finished."""
        self.kept: dict[str, list[str]] = json.loads(KEPT.read_text()) if resume and KEPT.exists() else {}

    def of(self, anchor: str, words: list[str], count: int = 1) -> list[Any]:
        """The runs that a command makes; fewer where it fails, with a comment."""
        command = " ".join(words)
        if command in self.kept:
            from mlflow import MlflowClient

            from tracker.tracking.store import tracking_uri

            return [MlflowClient(tracking_uri()).get_run(one) for one in self.kept[command]]
        own = ["tracking.registered_model=false", "tracking.evaluate_stages=false"]
        found = compression_runs(f"presets-{anchor}", count, [*words, *own], strict=False)
        if len(found) < count:
            print(f"<!-- {len(found)} of {count} runs of {command} -->", flush=True)
            return found
        self.kept[command] = [run.info.run_id for run in found]
        part = KEPT.with_suffix(".part")
        part.write_text(json.dumps(self.kept, indent=1))
        part.replace(KEPT)
        return found


def row(anchor: str, label: str, found: list[Any], baseline: float | None, limit: float | None) -> tuple[str, bool]:
    """A line of the table, and whether what must hold does."""
    sizes = [run.data.metrics["size/bitstream_bytes"] for run in found]
    drops = [run.data.metrics["performance/drop"] for run in found]
    seconds = [run.data.metrics["time/total_s"] for run in found]
    transparent = [run.data.tags["tracker.transparent"] == "true" for run in found]
    size = statistics.median(sizes)
    spread = (max(sizes) - min(sizes)) / size
    ratio = size / baseline if baseline else 1.0
    holds = all(transparent) and (limit is None or ratio <= limit) and spread < 0.05
    told = f"{ratio:.3f}" + (f" (at most {limit})" if limit else "")
    marks = f"{sum(transparent)} of {len(transparent)}"
    rate = statistics.median([run.data.metrics["size/rate_percent"] for run in found])
    line = (
        f"| {anchor} | {label} | {size:,.0f} | {rate:.2f} % | {told} | {statistics.median(drops):+.4f} | {marks} | "
        f"{spread:.1%} | {statistics.median(seconds):.0f} s |"
    )
    return line, holds


def plotted(anchor: str, points: dict[str, list[Any]]) -> None:
    """Rate against drop of all ways: presets are stars, and what is below the dashed line is transparent."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    tolerance = float(next(iter(points.values()))[0].data.params["task.tolerance"])
    figure = Figure(figsize=(9, 5), layout="constrained", dpi=110)
    axis = figure.subplots()
    for (label, found), color in zip(points.items(), itertools.cycle(colormaps["tab20"].colors), strict=False):
        rates = [run.data.metrics["size/rate_percent"] for run in found]
        drops = [run.data.metrics["performance/drop"] for run in found]
        preset = label.startswith("nnc_")
        axis.scatter(rates, drops, marker="*" if preset else "o", s=150 if preset else 35, color=color, label=label)
    axis.axhline(tolerance, linestyle="--", color="black", linewidth=0.8, label=f"tolerance {tolerance:g}")
    axis.set_xscale("log")
    for kind in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        kind(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axis.tick_params(which="both", labelsize=9)
    axis.set_xlabel("rate in percent of the anchor")
    axis.set_ylabel("drop on the report split")
    axis.set_yscale("symlog", linthresh=2 * tolerance)
    axis.margins(0.06)
    axis.set_title(anchor)
    axis.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(f"presets-{anchor}.png")


def measured(anchor: str, chosen: argparse.Namespace, runs: Runs) -> bool:
    """The lines of one anchor; whether all that must hold does."""
    limits = LIMITS.get(anchor) or {name: round(MARGIN * limit, 3) for name, limit in UNTUNED.get(anchor, {}).items()}
    common = [f"anchor={anchor}"]
    common += [f"data.root={chosen.data_root.resolve()}"] if anchor in LIMITS else []
    common += ["--config-dir", str(FOLDER / "untuned" / "conf")] if anchor in UNTUNED else []
    base = runs.of(anchor, [*common, *SCAN])
    if not base:
        return False
    points = {"global qp": base}
    line, well = row(anchor, "nnc, every qp", base, None, None)
    print(line, flush=True)
    size = base[0].data.metrics["size/bitstream_bytes"]
    plain = runs.of(anchor, [*common, *SCAN, "target.confidence=null"]) if chosen.as_measured else []
    if plain:
        print(row(anchor, "nnc, every qp, the drop as it is", plain, size, None)[0], flush=True)
    for preset in chosen.preset or ("nnc_fast", "nnc_calibrated", "nnc_best"):
        seeds = ",".join(map(str, range(chosen.seeds)))
        found = runs.of(anchor, [*common, f"+codec={preset}", f"seed={seeds}", *chosen.words], chosen.seeds)
        well = well and len(found) == chosen.seeds
        if not found:
            continue
        line, holds = row(anchor, preset, found, size, limits.get(preset))
        print(line, flush=True)
        points[preset] = found
        well = well and holds
    for label, words in OTHERS.items() if chosen.others else ():
        fewer = FEWER.get(anchor, ITERATIONS) if label.startswith("AdaRound") else []
        found = runs.of(anchor, [*common, *words, *fewer])
        if found:
            points[label] = found
            print(row(anchor, label, found, size, None)[0], flush=True)
    if chosen.others:
        plotted(anchor, points)
        well = well and smallest(points)
    return well


def smallest(points: dict[str, list[Any]]) -> bool:
    """Whether no other way gives a transparent model that is as small as those of the presets."""
    sizes = [
        (label.startswith("nnc_"), run.data.metrics["size/bitstream_bytes"])
        for label, found in points.items()
        for run in found
        if run.data.tags["tracker.transparent"] == "true"
    ]
    ours, others = ([size for preset, size in sizes if preset is which] for which in (True, False))
    return max(ours, default=0) < min(others, default=float("inf"))


def main() -> None:
    """Measure, and end with status 1 where what must hold does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--untuned", action="store_true")
    parser.add_argument("--anchor", action="append")
    parser.add_argument("--preset", action="append")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--others", action="store_true")
    parser.add_argument(
        "--as-measured", action="store_true", help="a second scan, by the drop on the search split alone"
    )
    parser.add_argument("--resume", action="store_true", help="take what presets.json says is finished")
    parser.add_argument("words", nargs="*", help="further words for the presets' command lines")
    chosen = parser.parse_args()
    anchors = chosen.anchor or list(UNTUNED if chosen.untuned else LIMITS)
    if chosen.data_root is None and any(anchor in LIMITS for anchor in anchors):
        parser.error("--data-root is needed: the folder with weights and images")
    # The modules that the configurations in `untuned` name are found from here.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
    print("| anchor | codec | bytes | rate | of the baseline | drop | transparent | spread | time |")
    print("|---|---|---|---|---|---|---|---|---|")
    runs = Runs(chosen.resume)
    well = [measured(anchor, chosen, runs) for anchor in anchors]
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
