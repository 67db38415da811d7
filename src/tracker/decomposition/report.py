"""What a transform of layers tells of what it did: the same metrics, tables and figures whichever transform it was."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tracker.decomposition import plots

if TYPE_CHECKING:
    from tracker.decomposition.options import ByLayer

log = logging.getLogger(__name__)


def reported(
    stage: ByLayer,
    ratios: tuple[float, float],
    rows: list[dict[str, Any]],
    changed: int,
    agreed: float | None,
    scores: list[dict[str, Any]],
) -> dict[str, Any]:
    """The statistics, as arguments of `Transformed`.

    Args:
        stage: the options.
        ratios: the model's MACs and its memory, after over before.
        rows: the table of layers.
        changed: how many layers are smaller now.
        agreed: how well the model agrees with the anchor; None where that is not measured.
        scores: of the greedy search: layer, ratio, score, source (computed, cache), and rank or channels.
    """
    mac, memory = ratios
    reached = mac if stage.cost_metric == "mac" else memory
    if stage.mode == "auto" and reached > stage.target + 0.02:
        log.warning(
            "codec.%s reached a ratio of %.3f, not %.3f: the layers allow no less", stage.key, reached, stage.target
        )
    metrics = {f"{stage.key}/layers": float(changed)}
    if agreed is not None:
        metrics[f"{stage.key}/agreement"] = agreed
    tables: dict[str, Any] = {"layers": rows}
    figures = {"layers": plots.by_layer(rows, f"{stage.key}: MACs {mac:.3f}, memory {memory:.3f}")}
    if stage.mode == "auto":
        tables["scores"] = scores
        figures["scores"] = plots.by_score(scores, f"{stage.key}: agreement with the anchor")
        computed = sum(row["source"] == "computed" for row in scores)
        metrics[f"{stage.key}/scores_computed"] = float(computed)
        metrics[f"{stage.key}/scores_reused"] = float(len(scores) - computed)
    return {"mac_ratio": mac, "memory_ratio": memory, "metrics": metrics, "tables": tables, "figures": figures}


def tell_left(stage: ByLayer, left: Sequence[tuple[str, str]]) -> None:
    """A warning about layers that stay as they are because AIMET fails on them.

    Args:
        stage: the options.
        left: their names and the reasons.
    """
    if left:
        told = "; ".join(f"{name} ({reason})" for name, reason in left[:3])
        more = f"; and {len(left) - 3} more, in stages/*/layers.json" if len(left) > 3 else ""
        log.warning("codec.%s leaves layers as they are: %s%s", stage.key, told, more)
