"""A codec's transforms, one after the other, and what each of them gave."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracker.codecs.records import Transformed
from tracker.scenarios import aiming
from tracker.scenarios.draft import Draft, Workshop

if TYPE_CHECKING:
    from tracker.codecs.chain import Codec
    from tracker.settings import Aim
    from tracker.tracking.run import MetricsOnly, Run


log = logging.getLogger(__name__)


def transform(
    codec: Codec,
    draft: Draft,
    shop: Workshop,
    aim: Aim,
    performance: Callable[[Any, str], float | None],
    run: Run | MetricsOnly,
) -> tuple[Codec, float]:
    """Apply a codec's transforms to a draft, and log the size, performance and statistics after each.

    Args:
        codec: the chain.
        draft: the anchor's; changed.
        shop: what it is worked on with; its folder is empty.
        aim: the working point that is looked for, if any.
        performance: of a model, by the primary metric; None where it is not to be measured.
        run: to log to.

    Returns:
        The chain at the working point that was found, and the seconds that all took, without measuring.
    """
    pivot = aiming.pivot(codec, aim)
    if not codec.transforms and pivot is None:
        return codec, 0.0
    draft.model = shop.begin(draft).model  # stages may change it in place, and the anchor is still needed as it was
    return _through(codec, codec.stages, pivot, draft, shop, performance, run)


def _through(
    codec: Codec,
    names: list[str],
    pivot: aiming.Pivot | None,
    draft: Draft,
    shop: Workshop,
    performance: Callable[[Any, str], float | None],
    run: Run | MetricsOnly,
) -> tuple[Codec, float]:
    """The stages of these names, the last ones of the chain; see `transform`."""
    total, before = 0.0, None
    without = aiming.left_out(codec, pivot, shop) if pivot is not None else frozenset()
    for name in names:
        began = time.perf_counter()
        if pivot is not None and name == pivot.first:
            if aiming.is_bold(codec, pivot, shop):
                before = codec, shop.begin(draft), names[names.index(name) :]
            codec = aiming.aimed(codec, pivot, draft, shop, run)
        if name not in codec.transforms:
            return codec, total + time.perf_counter() - began
        if name in without:
            log.info("%s is left out: training begins from the weights as they are before it", name)
            (shop.scratch / name).mkdir()
            log_stage(run, name, draft, None, None, 0.0, shop.scratch / name)
            continue
        given = shop.apply(codec.without(without), codec.transforms[name], draft, shop.scratch / name)
        seconds = time.perf_counter() - began
        total += seconds
        if isinstance(given, Transformed) and not given.met:
            if before is not None:
                log.info("%s loses too much, and is begun once more where nothing is lost before it", name)
                codec, kept, again = before
                vars(draft).update(vars(kept))
                found, seconds = _through(codec, again, pivot, draft, shop.careful(), performance, run)
                return found, total + seconds
            log.warning("%s: nothing is within the target on the search split; raise it, or the seconds to train", name)
        log_stage(run, name, draft, given, performance(draft.model, name), seconds, shop.scratch / name)
    return codec, total


def log_stage(
    run: Run | MetricsOnly, name: str, draft: Draft, given: Any, performance: float | None, seconds: float, folder: Path
) -> None:
    """Log what a transform gave: figures, tables, plots, and the files that it left."""
    size = draft.bytes()
    draft.rows.append(stage_row(name, size, performance, draft, seconds))
    metrics = {f"size/after_{name}_bytes": float(size), f"time/{name}_s": seconds}
    if performance is not None:
        metrics[f"performance/after_{name}"] = performance
    if isinstance(given, Transformed):
        metrics |= given.metrics
        for table, rows in given.tables.items():
            run.log_table(rows, f"stages/{name}/{table}.json")
        if given.figures:
            plots = folder.parent / f"{name}-plots"
            plots.mkdir()
            for title, figure in given.figures.items():
                figure.savefig(plots / f"{name}-{title}.png")
            run.log_folder(plots, "plots")
    run.log_metrics(metrics)
    if any(folder.iterdir()):
        run.log_folder(folder, f"stages/{name}")


def stage_row(name: str, size: int, performance: float | None, draft: Draft, seconds: float) -> dict[str, Any]:
    """A row of stages.json."""
    return {
        "stage": name,
        "bytes": size,
        "performance": performance,
        "mac ratio": draft.mac_ratio,
        "memory ratio": draft.memory_ratio,
        "seconds": seconds,
    }
