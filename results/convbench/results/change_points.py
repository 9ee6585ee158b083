"""Finds where a series of runs changed its level, and does not find it where it did not.

Circular binary segmentation (Olshen, Venkatraman, Lucito and Wigler, "Circular binary segmentation for the
analysis of array-based DNA copy number data", Biostatistics 5, 2004): a series is cut where its end differs
from its beginning, or where a stretch within differs from what is around it, which a single cut could not
show; the parts are searched in turn. A series that goes up and down several times looks like scatter, and is
left alone. Every cut that could have been made is a test, so the p-value of the best is
corrected for their number (Bonferroni); there are too few runs in a history for permutations to reach small
p-values. A run is one observation, however many processes it has: the machine drifts between runs.

False alarms among series without a change, `tests/test_results_change_points.py`: below 1 % for normal scatter,
2 % for heavy tails (Student's t of 3), 5 % for a skewed one (exponential), of 4 to 20 runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from convbench.results.statistics import t_tail

LEVEL = 2  # runs at least: a single run apart from all others is a disturbance, or not yet a change


def change_points(values: Sequence[float], alpha: float, matters: float, floor: float) -> list[int]:
    """The positions at which a new level begins, in order.

    Args:
        values: the logarithms of times, one for each run.
        alpha: the chance of finding a change in a series that has none.
        matters: changes smaller than this are not told.
        floor: the least standard deviation between runs that is believed.
    """
    found = sorted(cuts(values, 0, alpha, floor))
    while found:  # a level may lie between two that hardly differ
        edges = [0, *found, len(values)]
        levels = [mean(values[start:end]) for start, end in pairwise(edges)]
        steps = [abs(after - before) for before, after in pairwise(levels)]
        least = min(range(len(steps)), key=steps.__getitem__)
        if steps[least] > matters:
            break
        del found[least]
    return found


def cuts(values: Sequence[float], offset: int, alpha: float, floor: float) -> Iterator[int]:
    """Cut a stretch, and then its parts; `offset` is where it begins."""
    count = len(values)
    if count < 2 * LEVEL:
        return
    single = [(start, count) for start in range(LEVEL, count - LEVEL + 1)]
    arcs = [(start, end) for start, _ in single for end in range(start + LEVEL, count - LEVEL + 1)]
    best: tuple[float, tuple[int, int]] = (1.0, (0, count))
    for candidates in filter(None, (single, arcs)):
        start, end = max(candidates, key=lambda arc: abs(student(values, arc, floor)))
        t = abs(student(values, (start, end), floor))
        # half of alpha for either kind of cut
        best = min(best, (2 * len(candidates) * t_tail(t, count - 2), (start, end)))
    p_value, (start, end) = best
    if p_value >= alpha:
        return
    edges = [0, start, end] if end == count else [0, start, end, count]
    for begin, stop in pairwise(edges):
        if begin:
            yield offset + begin
        yield from cuts(values[begin:stop], offset + begin, alpha, floor)


def student(values: Sequence[float], arc: tuple[int, int], floor: float) -> float:
    """Student's t of a stretch against the rest, with the spread that is left within both."""
    start, end = arc
    inside, outside = values[start:end], [*values[:start], *values[end:]]
    gap = mean(inside) - mean(outside)
    rest = sum((each - mean(part)) ** 2 for part in (inside, outside) for each in part)
    deviation = max(math.sqrt(rest / (len(values) - 2)), floor)
    return gap / (deviation * math.sqrt(1 / len(inside) + 1 / len(outside)))


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)
