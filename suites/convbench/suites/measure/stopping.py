"""Stopping rules: measure until an interval is narrow enough, whatever its value is.

A rule that stops when a result looks good finds good results in noise. These rules use only the width of one
combination's interval, so that they cannot favour any backend (docs/measuring.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from convbench.results.analysis.statistics import Interval, mean_interval, median

CONFIDENCE = 0.95


def steps_suffice(times: Sequence[float], precision: float) -> bool:
    """Whether the median of these step times is known to `precision`, as a share of itself."""
    bounds = median_bounds(times)
    return bounds is not None and half_width(bounds) <= precision


def rounds_suffice(medians: Sequence[float], precision: float) -> bool:
    """Whether the centre of these processes' medians is known to `precision`, as a share of itself."""
    bounds = mean_interval(medians, CONFIDENCE)
    return bounds is not None and half_width(bounds) <= precision


def half_width(bounds: Interval) -> float:
    """The wider side of an interval, over its value."""
    return max(bounds.high - bounds.value, bounds.value - bounds.low) / bounds.value


def median_bounds(values: Sequence[float]) -> Interval | None:
    """The median and an interval for it from the ranks of the values; None where they are too few.

    It assumes no distribution: the number of values below the true median is binomial (Le Boudec, "Performance
    Evaluation of Computer and Communication Systems", 2010, section 2.2; Hoefler & Belli, SC15).
    """
    count = len(values)
    outside = (1 - CONFIDENCE) / 2
    below, rank = 0.0, 0  # the chance that fewer than `rank` values lie below the true median
    while rank < count // 2:
        ways = math.lgamma(count + 1) - math.lgamma(rank + 1) - math.lgamma(count - rank + 1)
        chance = math.exp(ways - count * math.log(2))
        if below + chance > outside:
            break
        below += chance
        rank += 1
    if rank == 0:
        return None
    ordered = sorted(values)
    return Interval(median(values), ordered[rank - 1], ordered[count - rank])
