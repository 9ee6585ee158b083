"""The step time of a combination over more than two runs, and the runs at which its level changed.

Change points are found by circular binary segmentation (Olshen, Venkatraman, Lucito and Wigler, "Circular
binary segmentation for the analysis of array-based DNA copy number data", Biostatistics 5, 2004): a series is
cut where its end differs from its beginning, or where a stretch within differs from what is around it, which
a single cut could not show; the parts are searched in turn. A series that goes up and down several times
looks like scatter, and is left alone. Every possible cut is a test, so the p-value of the best is corrected
for their number (Bonferroni); there are too few runs in a history for permutations to reach small p-values. A
run is one observation, however many processes it has: the machine drifts between runs.

`ruptures` 1.1.10 was tried: it gives no p-value, and with a penalty that raises as few false alarms (30 s^2 log n)
it misses up to a quarter of the planted steps in histories of 8 runs, all of which this finds.

False alarms among series without a change (`tests/results/comparison/test_change_points.py`): below 1 % for
normal scatter, 2 % for heavy tails (Student's t of 3), 5 % for a skewed one (exponential), of 4 to 20 runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, linear_regression

from convbench.results.analysis.significance import ALPHA, FLOOR_SPREAD, OF_TIMES, Difference, Verdict, judge
from convbench.results.analysis.statistics import exponential, geometric_mean, t_tail
from convbench.results.comparison.pairing import Match
from convbench.results.schema import Combination


@dataclass(frozen=True)
class Change:
    """Where a new level begins: the first file of it, and its ratio to the level before."""

    file: str
    ratio: float


@dataclass(frozen=True)
class Trend:
    """The step time of one combination in each file, None where it was not measured or not comparable.

    `change` is the ratio of the last to the first that there are, by a straight line through the logarithms.
    A file counts as one observation, since the machine drifts between runs; `low` and `high` are None for
    fewer than three. `changes` are the files at which the level changed, as far as four or more can tell.
    """

    combination: Combination
    step_ms: tuple[float | None, ...]
    change: float
    low: float | None
    high: float | None
    verdict: Verdict
    changes: tuple[Change, ...] = ()


def trends(files: Sequence[str], matches: Sequence[Match], min_effect: float) -> tuple[Trend, ...]:
    """The trend of each combination; the first file is the base."""
    times: dict[Combination, dict[str, float]] = {}
    for each in matches:
        if each.base.step_ms and each.new.step_ms:
            found = times.setdefault(each.combination, {files[0]: geometric_mean(each.base.step_ms)})
            found[each.file] = geometric_mean(each.new.step_ms)
    lines = {combination: tuple(found.get(file) for file in files) for combination, found in times.items()}
    fits = {combination: fit(step_ms) for combination, step_ms in lines.items()}
    sound = {combination: each for combination, each in fits.items() if each.freedom > 0}
    judged = dict(zip(sound, judge(list(sound.values()), math.log1p(min_effect)), strict=True))
    result = []
    alpha = ALPHA / max(len(lines), 1)  # of all histories together
    for combination, step_ms in lines.items():
        found_out = judged.get(combination)
        result.append(
            Trend(
                combination=combination,
                step_ms=step_ms,
                change=exponential(fits[combination].estimate),
                low=exponential(found_out.low) if found_out else None,
                high=exponential(found_out.high) if found_out else None,
                verdict=OF_TIMES[found_out.verdict] if found_out else "unclear",
                changes=tuple(changes(files, step_ms, alpha, math.log1p(min_effect))),
            )
        )
    return tuple(result)


def changes(
    files: Sequence[str], step_ms: Sequence[float | None], alpha: float, matters: float
) -> Iterator[Change]:
    """The files at which the level of the step time changed."""
    known = [(file, math.log(value)) for file, value in zip(files, step_ms, strict=True) if value is not None]
    logs = [value for _, value in known]
    edges = [0, *change_points(logs, alpha, matters, FLOOR_SPREAD), len(logs)]
    levels = [fmean(logs[start:end]) for start, end in pairwise(edges)]
    for start, (before, after) in zip(edges[1:], pairwise(levels), strict=False):
        yield Change(known[start][0], exponential(after - before))


def fit(step_ms: Sequence[float | None]) -> Difference:
    """The change over all files, from the least-squares line through the logarithms of the times."""
    found = [(at, math.log(value)) for at, value in enumerate(step_ms) if value is not None]
    at, logs = zip(*found, strict=True)
    slope, start = linear_regression(at, logs)
    freedom, middle = len(at) - 2, fmean(at)
    rest = sum((value - start - slope * x) ** 2 for x, value in found)
    deviation = max(math.sqrt(rest / freedom), FLOOR_SPREAD) if freedom else FLOOR_SPREAD
    length, spread = at[-1] - at[0], math.sqrt(sum((x - middle) ** 2 for x in at))
    return Difference(slope * length, deviation / spread * length, freedom)


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
        levels = [fmean(values[start:end]) for start, end in pairwise(edges)]
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
    gap = fmean(inside) - fmean(outside)
    rest = sum((each - fmean(part)) ** 2 for part in (inside, outside) for each in part)
    deviation = max(math.sqrt(rest / (len(values) - 2)), floor)
    return gap / (deviation * math.sqrt(1 / len(inside) + 1 / len(outside)))
