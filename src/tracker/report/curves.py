"""Curves of rate and performance: their fronts, and the average rate saving between two of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tracker.report.collect import Application, Point

LEAST_POINTS = 4  # of a curve: as many as the test conditions of video coding ask for


@dataclass(frozen=True)
class Saving:
    """How much smaller one codec's bitstreams are than another's at the same performance, on average.

    Attributes:
        percent: of the baseline's bytes; negative where bytes are saved; None where it cannot be told.
        reason: why it cannot.
        overlap: the smallest and the largest drop that both curves reach.
        points: of the two curves, the baseline's first.
    """

    percent: float | None
    reason: str
    overlap: tuple[float, float] | None
    points: tuple[Sequence[Point], Sequence[Point]]


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in bytes and in drop, from the smallest on; of equal ones the newest."""
    found: list[Point] = []
    measured = [point for point in points if math.isfinite(point.drop) and point.size > 0]
    for point in sorted(measured, key=lambda one: (one.size, one.drop, -one.started, one.run_id)):
        if not found or point.drop < found[-1].drop:
            found.append(point)
    return found


def rate_saving(baseline: Sequence[Point], tested: Sequence[Point]) -> Saving:
    """The average difference in rate between two codecs, over the performances that both reach (BD-rate).

    With r(p) the logarithm of a curve's bytes at the performance p, interpolated by piecewise cubic polynomials that
    keep its monotony, and [a, b] the performances that both curves cover:

        100 * (exp(1 / (b - a) * integral from a to b of (r_tested(p) - r_baseline(p)) dp) - 1)

    G. Bjøntegaard, "Calculation of average PSNR differences between RD-curves", ITU-T SG16 Q.6 VCEG-M33, 2001, with one
    cubic polynomial through four points; piecewise cubic interpolation, for any number of points, as in the common test
    conditions of JCT-VC and JVET (JCTVC-L1100; ITU-T HSTP-VID-WPOM, "Working practices using objective metrics for
    evaluation of video coding efficiency experiments", 2020). The interpolation is that of F. N. Fritsch and
    J. Butland, SIAM J. Sci. Stat. Comput. 5(2), 1984. The performance is the drop with its sign changed, so that a
    metric for which less is better needs nothing of its own.

    Args:
        baseline: working points; those on their front count.
        tested: of the other codec, on the same anchor and task.
    """
    from scipy.interpolate import PchipInterpolator

    curves = front(baseline), front(tested)
    for name, curve in zip(("the baseline", "the codec"), curves, strict=True):
        if len(curve) < LEAST_POINTS:
            have = f"{name} has {len(curve)} {'point' if len(curve) == 1 else 'points'} on its front"
            return Saving(None, f"{have}, {LEAST_POINTS} are needed", None, curves)
    # A front's drops fall from its smallest bitstream to its largest, so performances rise.
    low = max(-curve[0].drop for curve in curves)
    high = min(-curve[-1].drop for curve in curves)
    if low >= high:
        return Saving(None, "the curves share no range of performance", None, curves)
    means = [
        float(
            PchipInterpolator([-one.drop for one in curve], [math.log(one.size) for one in curve]).integrate(low, high)
        )
        / (high - low)
        for curve in curves
    ]
    return Saving(100 * math.expm1(means[1] - means[0]), "", (-high, -low), curves)


def usual_baseline(applications: Sequence[Application]) -> str:
    """The codec that was tried in most applications; of several the plainest, and of these the one with most runs."""
    tried: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    for application in applications:
        for codec, points in application.points.items():
            tried[codec] += 1
            runs[codec] += len(points)
    return min(tried, key=lambda codec: (-tried[codec], codec.count(">"), -runs[codec], codec))
