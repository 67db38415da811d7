"""What a transform of layers tells of what it did: the same metrics, tables and figures whichever transform it was."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tracker.decomposition import plots

if TYPE_CHECKING:
    from tracker.decomposition.options import ByLayer

log = logging.getLogger(__name__)
OTHER_KIND, OTHERS = "not for ", " layers are left alone by it"  # notes of layers that the transform is not for


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
    if stage.mode == "auto":
        _tell_target(stage, mac if stage.cost_metric == "mac" else memory)
    if not changed:
        _tell_nothing(stage, rows)
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


def _tell_target(stage: ByLayer, reached: float) -> None:
    """A warning where the greedy search ended far from its target.

    It looks for one score that all layers keep, and takes the highest at which the cost is within the target. Where
    many scores are equal, as agreements on few samples are, nothing is near the target; a fit makes them differ.
    """
    costs = "MACs" if stage.cost_metric == "mac" else "memory"
    if reached > stage.target + 0.02:
        log.warning(
            "codec.%s reached a ratio of %.3f, not %.3f: the layers allow no less", stage.key, reached, stage.target
        )
    elif reached < stage.target - 0.05:
        fit = "" if stage.monotonic_fit else f"codec.{stage.key}.monotonic_fit=true or "
        log.warning(
            "codec.%s: asked for %.2f of the %s, AIMET's candidates gave %.2f; "
            "%smore codec.%s.candidates may come closer",
            *(stage.key, stage.target, costs, reached, fit, stage.key),
        )


def _tell_nothing(stage: ByLayer, rows: Sequence[Mapping[str, Any]]) -> None:
    """A warning where all layers stay as they are, with the reason that most of them have."""
    notes = [row["note"] or ("" if row["ratio"] is None else f"ratio {row['ratio']:g}") for row in rows]
    reasons = Counter(note for note in notes if note and not note.startswith(OTHER_KIND) and not note.endswith(OTHERS))
    done = "pruned" if stage.kind == "prune" else "decomposed"
    if stage.mode == "auto" or not reasons:
        log.warning("codec.%s %s no layer: its ratios leave each as it is; lower them", stage.key, done)
        return
    ((reason, count),) = reasons.most_common(1)
    log.warning("codec.%s %s no layer: %s (%d layer%s)", stage.key, done, reason, count, "s"[: count > 1])


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
