"""How a combination's step time went over more than two files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from convbench.results.change_points import change_points
from convbench.results.pairing import Match
from convbench.results.schema import Combination
from convbench.results.statistics import geometric_mean
from convbench.results.verdicts import ALPHA, FLOOR_SPREAD, Difference, Verdict, as_ratio, judge


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
    words: dict[str, Verdict] = {"more": "slower", "less": "faster", "same": "same", "unclear": "unclear"}
    result = []
    alpha = ALPHA / max(len(lines), 1)  # of all histories together
    for combination, step_ms in lines.items():
        found_out = judged.get(combination)
        result.append(
            Trend(
                combination=combination,
                step_ms=step_ms,
                change=as_ratio(fits[combination].estimate),
                low=as_ratio(found_out.low) if found_out else None,
                high=as_ratio(found_out.high) if found_out else None,
                verdict=words[found_out.verdict] if found_out else "unclear",
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
    levels = [sum(logs[start:end]) / (end - start) for start, end in pairwise(edges)]
    for start, (before, after) in zip(edges[1:], pairwise(levels), strict=False):
        yield Change(known[start][0], as_ratio(after - before))


def fit(step_ms: Sequence[float | None]) -> Difference:
    """The change over all files, from the least-squares line through the logarithms of the times."""
    points = [(index, math.log(value)) for index, value in enumerate(step_ms) if value is not None]
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    freedom = count - 2
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    deviation = max(math.sqrt(rest / freedom), FLOOR_SPREAD) if freedom else FLOOR_SPREAD
    length = points[-1][0] - points[0][0]
    return Difference(slope * length, deviation / math.sqrt(spread) * length, freedom)
